"""Tests of strategies: devices and clusters that cannot be are refused in one line."""

import json
import re
import socket
import threading
from types import SimpleNamespace

import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.training import clusters, strategies

WORKERS = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("GPU:7",), "no device GPU:7; choose from CPU:0"),
        (("CPU:0", "GPU:7"), "no device GPU:7"),
        (("CPU:0", "CPU:0"), "named twice"),
        (("/cpu:0", "CPU:0"), "named twice"),
        (("cpu:9",), "no device CPU:9"),
        ((), "at least one device"),
    ],
)
def test_absent_and_duplicate_devices_are_refused(devices, message):
    with pytest.raises(InputError, match=message) as error:
        strategies.mirrored_strategy(devices=devices)
    assert "\n" not in str(error.value) and "mirrored_strategy.devices=" in str(error.value)


def refuse(tf_config, monkeypatch):
    """The one line with which a TF_CONFIG is refused."""
    text = tf_config if isinstance(tf_config, str) else json.dumps(tf_config)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError) as error:
        strategies.multi_worker_strategy()
    assert "\n" not in str(error.value) and "Received: TF_CONFIG=" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("", "names no cluster"),
        ("{", "it is not"),
        ("[1]", "it is not"),
        ({"cluster": 3}, "it is not"),
        ({"task": {"type": "worker", "index": 0}}, "names no cluster"),
        ({"cluster": WORKERS}, "names no task"),
        ({"cluster": WORKERS, "task": {"type": "worker"}}, "names no task"),
        ({"cluster": WORKERS, "task": {"type": "worker", "index": 2}}, "index .* below 2"),
        ({"cluster": WORKERS, "task": {"type": "worker", "index": -1}}, "whole number"),
        ({"cluster": WORKERS, "task": {"type": "worker", "index": 0.5}}, "whole number"),
        ({"cluster": WORKERS, "task": {"type": "chief", "index": 0}}, "index .* below 0"),
        ({"cluster": WORKERS, "task": {"type": "evaluator", "index": 0}}, "of type chief or"),
        ({"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}, "HOST:PORT"),
        ({"cluster": {"worker": ["a:x"]}, "task": {"type": "worker", "index": 0}}, "HOST:PORT"),
        ({"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}, "HOST:PO"),
        (
            {"cluster": {**WORKERS, "ps": ["c:3"]}, "task": {"type": "worker", "index": 0}},
            "type ps are not supported",
        ),
        (
            {"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}},
            "one chief only",
        ),
    ],
)
def test_tf_config_that_describes_no_cluster_is_refused(tf_config, message, monkeypatch):
    assert re.search(message, refuse(tf_config, monkeypatch))


def test_port_in_use_is_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        tf_config = {"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(tf_config))
        with pytest.raises(InputError, match=f"port of this worker.*address={address}"):
            strategies.multi_worker_strategy()


def test_unknown_kind_of_cluster_is_refused():
    with pytest.raises(InputError, match="one of tf_config, slurm"):
        strategies.multi_worker_strategy(cluster="kubernetes")


@pytest.mark.parametrize(
    ("cluster", "task", "index"),
    [
        (WORKERS, ("worker", 0), 0),
        (WORKERS, ("worker", 1), 1),
        ({"chief": ["c:3"], **WORKERS}, ("chief", 0), 0),
        ({"chief": ["c:3"], **WORKERS}, ("worker", 0), 1),
        ({"chief": ["c:3"], **WORKERS}, ("worker", 1), 2),
    ],
)
def test_chief_is_worker_0_and_only_one(cluster, task, index, monkeypatch):
    tf_config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(tf_config))
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert strategies.worker_index(SimpleNamespace(cluster_resolver=resolver)) == index


def test_single_process_is_the_chief():
    assert strategies.worker_index(tf.distribute.get_strategy()) == 0


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_all_workers_start_together_whichever_is_first():
    addresses, order, ready = [free_address() for _ in range(3)], [], threading.Event()

    def worker(index):
        clusters.wait_for_workers(addresses, index, 20, "seconds")
        order.append(index)
        ready.set()

    threads = [threading.Thread(target=worker, args=(index,)) for index in (2, 0, 1)]
    threads[0].start(), threads[1].start()
    assert not ready.wait(0.5)
    threads[2].start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [0, 1, 2]
    with socket.socket() as again:  # the chief's port is free
        again.bind(("127.0.0.1", int(addresses[0].rpartition(":")[2])))


@pytest.mark.parametrize("index", [0, 1])
def test_worker_that_waits_in_vain_names_the_missing_ones(index):
    addresses = [free_address(), free_address()]
    with pytest.raises(InputError, match="within 0.3 seconds.*set seconds") as error:
        clusters.wait_for_workers(addresses, index, 0.3, "seconds")
    assert str(error.value).endswith(f"no answer from {addresses[1 - index]}")
