"""Clusters: how several processes of a run find each other, and bounded waits for them."""

import contextlib
import json
import os
import socket
import time

import tensorflow as tf

from igpt_tf.errors import InputError, check_choice


def resolve(cluster: str) -> tf.distribute.cluster_resolver.ClusterResolver:
    """The cluster of this process.

    Args:
        cluster: "tf_config" (the TF_CONFIG variable) or "slurm".

    Raises:
        InputError: The environment does not describe a cluster of a chief and workers, or the port
            of this worker is in use.
    """
    check_choice("the cluster", cluster, ("tf_config", "slurm"))
    if cluster == "tf_config":
        _check_tf_config(os.environ.get("TF_CONFIG", ""))
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
        resolver.cluster_spec()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"Slurm does not describe a cluster ({error}); start the program with srun. "
            f"Received: {cluster=}"
        ) from None
    return resolver


def processes(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> tuple[list[str], int]:
    """(addresses of all processes, the chief first; index of this process)."""
    jobs = resolver.cluster_spec().as_dict()
    chief, workers = jobs.get("chief", []), jobs.get("worker", [])
    index = resolver.task_id if resolver.task_type == "chief" else resolver.task_id + len(chief)
    return [*chief, *workers], index


def _check_tf_config(text: str) -> None:
    """Raises InputError unless TF_CONFIG describes a cluster and this process' place in it."""
    problem = None
    try:
        described = json.loads(text or "{}")
        task = described.get("task", {})
        kind, index = task.get("type"), task.get("index")
        cluster = {job: list(addresses) for job, addresses in described["cluster"].items()}
        addresses = cluster.get(kind, [])
    except KeyError:
        problem = "it names no cluster"
    except (ValueError, TypeError, AttributeError):
        problem = 'it is not {"cluster": {"worker": [ADDRESS, ...]}, "task": {"type", "index"}}'
    if problem is None:
        others = sorted(cluster.keys() - {"chief", "worker", "evaluator"})
        wrong = [a for job in cluster.values() for a in job if not _is_address(a)]
        if kind is None or index is None:
            problem = "it names no task; set the type and the index of this process"
        elif kind not in ("chief", "worker"):
            problem = "a task must be of type chief or worker; start no process for another"
        elif others:
            problem = f"jobs of type {others[0]} are not supported; only chief and worker are"
        elif len(cluster.get("chief", [])) > 1:
            problem = "there may be one chief only"
        elif not isinstance(index, int | str) or not str(index).isdecimal():
            problem = "the index of the task must be a whole number"
        elif int(index) >= len(addresses):
            problem = f"the index of the task must be below {len(addresses)}, the number of {kind}s"
        elif wrong:
            problem = f"{wrong[0]!r} is not an address HOST:PORT"
    if problem:
        raise InputError(
            f"TF_CONFIG does not describe a cluster: {problem} (docs/training.md). "
            f"Received: TF_CONFIG={text!r}"
        )
    _check_port(addresses[int(index)])


def _is_address(address) -> bool:
    host, _, port = str(address).rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def _check_port(address: str) -> None:
    """Raises InputError if another process uses the port of this worker."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise InputError(
                f"the port of this worker cannot be used ({error.strerror}); end the process that "
                f"uses it, or choose another port on every host. Received: address={address}"
            ) from None


def describe(resolver) -> str:
    return (
        f"task={resolver.task_type} {resolver.task_id}, cluster={resolver.cluster_spec().as_dict()}"
    )


def first_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", error)).split())[:160]


def wait_for_workers(addresses: list[str], index: int, seconds: float, setting: str) -> None:
    """Returns when every process of the cluster has called it.

    TensorFlow's own wait at the start lasts an hour and cannot be interrupted. Here the chief
    listens at its address until all others have connected, before TensorFlow takes over the port.

    Args:
        addresses: Addresses of all processes, the chief first.
        index: Index of this process.
        seconds: Time to wait.
        setting: Name of the parameter that sets the time, for the error.

    Raises:
        InputError: Not all processes called it in time.
    """
    deadline = time.monotonic() + seconds
    try:
        if index == 0:
            missing = _accept_workers(addresses, deadline)
        else:
            missing = [] if _connect_to_chief(addresses[0], index, deadline) else [addresses[0]]
    except OSError as error:
        raise InputError(
            f"the workers cannot be connected ({error}); check the addresses. "
            f"Received: {addresses=}, {index=}"
        ) from None
    if missing:
        raise InputError(
            f"not all workers started within {seconds:g} seconds; start every one, or set "
            f"{setting}. Received: no answer from {', '.join(missing)}"
        )


def _accept_workers(addresses: list[str], deadline: float) -> list[str]:
    """Addresses of the workers that did not connect to this process, the chief, in time."""
    connections = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", int(addresses[0].rpartition(":")[2])))
        listener.listen(len(addresses))
        while len(connections) < len(addresses) - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
                stack.enter_context(connection)
                connection.settimeout(1)
                index = connection.recv(16).decode("ascii", "replace")
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                break
            if index.isdecimal() and 0 < int(index) < len(addresses):
                connections[int(index)] = connection
        missing = [a for i, a in enumerate(addresses) if i and i not in connections]
        for connection in [] if missing else connections.values():
            connection.sendall(b"start")
            # The other side closes first, so that the port is free for TensorFlow at once.
            with contextlib.suppress(TimeoutError):
                connection.recv(1)
    return missing


def _connect_to_chief(address: str, index: int, deadline: float) -> bool:
    """Whether the chief answered that all workers have started."""
    host, _, port = address.rpartition(":")
    while (seconds := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as chief:
                chief.sendall(str(index).encode())
                if chief.recv(16) == b"start":
                    return True
        except OSError:
            pass  # the chief has not started, or was restarted
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    return False
