"""The program: where it listens, which model it uses, and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from absl import flags

from igpt_tf.errors import InputError
from igpt_tf.playground.backends import LocalModel, ServedModel
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import Rest, ServerAddress, ServerError
from tests.serving import exported, standin
from tools import playground


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("models") / "causal")


@pytest.fixture(scope="module")
def served(saved_model):
    return standin.Served(saved_model)


@contextlib.contextmanager
def _started(*arguments):
    """The running program and the page's address; SIGKILL if the test leaves it running."""
    command = [sys.executable, "-m", "tools.playground", "--port=0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs, this test perhaps among them, pass on that they ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process, re.match(r"(http://[\d.]+:\d+/) ", process.stdout.readline())[1]
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_it_with_130_and_no_traceback(served):
    with standin.rest(served) as address, _started(f"--server={address}") as (process, url):
        with urllib.request.urlopen(url + "about") as response:
            assert json.load(response)["location"] == f"the server at {address}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def _refused(monkeypatch, *arguments) -> str:
    """The message with which `main` rejects these flags; `cli.run` prints it and exits with 2."""
    values = flags.FLAGS.flag_values_dict()
    flags.FLAGS(["playground", *arguments])
    monkeypatch.setattr(playground.runtime, "import_tensorflow", lambda: None)
    try:
        with pytest.raises(InputError) as refusal:
            playground.main()
    finally:
        flags.FLAGS.unparse_flags()
        for name in ("saved_model", "server", "host", "port"):
            flags.FLAGS[name].value = values[name]
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_port_that_is_taken_is_named(saved_model, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = _refused(monkeypatch, f"--saved_model={saved_model}", f"--port={port}")
    assert "Address already in use); choose another" in message and f"port={port}" in message


def test_a_host_that_is_not_of_this_machine_is_named(saved_model, monkeypatch):
    message = _refused(monkeypatch, f"--saved_model={saved_model}", "--host=192.0.2.1")
    assert "cannot listen there" in message and "host=192.0.2.1" in message


def test_neither_model_nor_server_is_refused(monkeypatch):
    assert "--saved_model is missing" in _refused(monkeypatch)


def test_a_wrong_saved_model_is_refused(tmp_path, monkeypatch):
    message = _refused(monkeypatch, f"--saved_model={tmp_path / 'none'}")
    assert "does not exist" in message
    (tmp_path / "other" / "assets").mkdir(parents=True)
    (tmp_path / "other" / "saved_model.pb").write_bytes(b"no graph")
    message = _refused(monkeypatch, f"--saved_model={tmp_path / 'other'}")
    assert "not written by igpt_tf" in message


def test_a_damaged_saved_model_is_refused(tmp_path, monkeypatch):
    path = exported.write(tmp_path / "damaged")
    with open(os.path.join(path, "saved_model.pb"), "r+b") as file:
        file.truncate(1000)
    assert "damaged" in _refused(monkeypatch, f"--saved_model={path}")


def test_a_server_that_is_not_there_is_named(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and listens not
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        message = _refused(monkeypatch, f"--server={address}")
    assert "no answer from the server" in message and f"server={address}" in message


def test_a_served_model_answers_as_the_same_local_model(saved_model, served):
    local, image = LocalModel(saved_model), np.random.default_rng(8).integers(0, 256, (2, 4, 6, 3))
    image = image.astype("uint8")
    params = {"num_given": 8, "seed": 3, "temperature": 0.9, "top_k": 5, "top_p": 0.95}
    with standin.rest(served) as address:
        remote = ServedModel(Client(Rest(ServerAddress(address, standin.MODEL))), address)
        assert remote.image_size == local.image_size
        answers = [one.call("complete", images=image, **params) for one in (local, remote)]
        np.testing.assert_array_equal(answers[0]["images"], answers[1]["images"])
        answers = [one.call("score", images=image) for one in (local, remote)]
        np.testing.assert_allclose(answers[0]["surprise"], answers[1]["surprise"], atol=2e-4)


def test_a_server_that_stops_is_named(served):
    with standin.rest(served) as address:
        remote = ServedModel(Client(Rest(ServerAddress(address, standin.MODEL))), address)
    with pytest.raises(ServerError, match="no answer from the server"):
        remote.call("score", images=np.zeros((1, 4, 6, 3), "uint8"))


def test_listening_on_all_addresses_prints_a_warning(served):
    arguments = ["--host=0.0.0.0"]
    with standin.rest(served) as address, _started(f"--server={address}", *arguments) as started:
        process, url = started
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        warning = process.stderr.read()
    assert warning.count("\n") == 1 and "--host=0.0.0.0 lets other machines use" in warning
