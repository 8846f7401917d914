"""Servers that answer wrongly, slowly or without end: one line in bounded time and memory."""

import contextlib
import functools
import http.server
import json
import socket
import threading
import time

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import Grpc, Rest, ServerAddress, ServerError
from tests.serving import exported, standin

IMAGES = np.random.default_rng(3).integers(0, 256, (2, 4, 6, 3)).astype("uint8")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = standin.Served(exported.write(tmp_path_factory.mktemp("export") / "5"))
    yield served
    served.session.close()


@pytest.fixture(scope="module", params=["rest", "grpc"])
def client(request, served):
    if request.param == "grpc":
        pytest.importorskip("tensorflow_serving", reason="no tensorflow-serving-api")
    with getattr(standin, request.param)(served) as address:
        transport = {"rest": Rest, "grpc": Grpc}[request.param]
        yield Client(transport(ServerAddress(address, standin.MODEL, timeout=20)))


@pytest.fixture(scope="module")
def rest_client(served):
    with standin.rest(served) as address:
        yield Client(Rest(ServerAddress(address, standin.MODEL, timeout=20)))


@pytest.fixture
def tampered(served):
    """Sets what the server makes of its answers, for the time of a test."""

    def tamper(function):
        served.tamper = function

    yield tamper
    served.tamper = None


def _with(name, change):
    return lambda answer: {**answer, name: change(answer[name])}


WRONG_SCORES = {
    "too few": _with("surprise", lambda surprise: surprise[:1]),
    "too many": _with("surprise", lambda surprise: np.concatenate([surprise, surprise])),
    "other shape": _with("surprise", lambda surprise: surprise[:, :3]),
    "flat": _with("surprise", lambda surprise: surprise.reshape(2, -1)),
    "scalar": _with("nats_per_token", lambda nats: nats[0]),
    "NaN": _with("nats_per_token", lambda nats: np.full_like(nats, np.nan)),
    "infinite": _with("surprise", lambda surprise: np.full_like(surprise, -np.inf)),
    "text": _with("nats_per_token", lambda nats: np.array(["1", "2"])),
    "bool": _with("nats_per_token", lambda nats: nats > 0),
    "missing": lambda answer: {"surprise": answer["surprise"]},
}


@pytest.mark.parametrize("name", WRONG_SCORES)
def test_a_score_that_is_not_the_signatures_is_rejected(client, tampered, name):
    tampered(WRONG_SCORES[name])
    with pytest.raises(ServerError, match="answer is not one of the signature score") as caught:
        client.score(IMAGES)
    assert "\n" not in str(caught.value)


WRONG_SAMPLES = {
    "fractions": _with("images", lambda images: images + np.float32(0.5)),
    "too large": _with("images", lambda images: images.astype("int32") + 300),
    "negative": _with("images", lambda images: images.astype("int32") - 300),
    "beyond int64": _with("tokens", lambda tokens: tokens.astype("float64") * 1e30),
    "another count": lambda answer: {key: value[:1] for key, value in answer.items()},
}


@pytest.mark.parametrize("name", WRONG_SAMPLES)
def test_images_that_are_not_the_signatures_are_rejected(client, tampered, name):
    tampered(WRONG_SAMPLES[name])
    with pytest.raises(ServerError, match="answer is not one of the signature sample"):
        client.sample(2)


# Bodies with status 200 that are no answers, or answers of another model.
BODIES = [
    b"",
    b"null",
    b"7",
    b"[]",
    b"{}",
    b'"text"',
    b"\xff\xfe",
    b"<html></html>",
    b'{"outputs": null}',
    b'{"outputs": []}',
    b'{"outputs": {"surprise": [[]], "nats_per_token": {}}}',
    b'{"outputs": {"surprise": 1, "nats_per_token": [1, 2]}}',
    b'{"outputs": {"surprise": [[[1], [2, 3]]], "nats_per_token": [1, [2]]}}',
    b'{"outputs": {"surprise": ' + b"[" * 50_000 + b'], "nats_per_token": [1, 2]}}',
    b'{"outputs": {"surprise": 1, "nats_per_token": [1, ' + b"9" * 400 + b"]}}",
    b'{"outputs": {"surprise": 1, "nats_per_token": [1, ' + b"9" * 5000 + b"]}}",
    b'{"predictions": [1, 2]}',
    b'{"error": "none"}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_no_answer_is_rejected_in_one_line(rest_client, tampered, body):
    tampered(lambda answer: body)
    with pytest.raises(ServerError, match="answer") as caught:
        rest_client.score(IMAGES)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_answer_without_end_is_cut_off(rest_client, tampered):
    tampered(lambda answer: b'{"outputs": [' + b"1, " * 2**20)
    with pytest.raises(ServerError, match="more than [0-9]+ bytes; ask for fewer images"):
        rest_client.score(IMAGES)


@contextlib.contextmanager
def _raw_server(respond):
    """A server that calls `respond(connection)` after the first bytes of a request."""

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(2**16)
                    respond(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _drip(prefix):
    def respond(connection):
        connection.sendall(prefix)
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)

    return respond


@pytest.mark.parametrize(
    "prefix",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"],
    ids=["status", "headers", "body"],
)
def test_an_answer_must_be_complete_within_the_timeout(prefix):
    """A byte every 50 ms restarts a socket's own timeout."""
    with _raw_server(_drip(prefix)) as address:
        started = time.monotonic()
        with pytest.raises(ServerError, match="no answer from the server .timed out"):
            Client(Rest(ServerAddress(address, "igpt", timeout=0.5))).sample(1)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=range(9),
)
def test_a_broken_answer_is_rejected_in_one_line(answer):
    with (
        _raw_server(lambda connection: connection.sendall(answer)) as address,
        pytest.raises(ServerError, match="no answer from|does not answer as") as caught,
    ):
        Client(Rest(ServerAddress(address, "igpt", timeout=5))).sample(1)
    assert "\n" not in str(caught.value)


def _metadata(**signatures) -> bytes:
    def tensors(specs):
        return {
            key: {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(s)} for s in sizes]}}
            for key, (dtype, sizes) in specs.items()
        }

    known = {
        name: {"inputs": tensors(inputs), "outputs": tensors(outputs)}
        for name, (inputs, outputs) in signatures.items()
    }
    body = json.dumps({"metadata": {"signature_def": {"signature_def": known}}}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


_ENCODE = ({"images": ("DT_UINT8", (-1, 4, 6, 3))}, {"tokens": ("DT_INT32", (-1, 24))})
FOREIGN_MODELS = [
    {},
    {"classify": ({"x": ("DT_FLOAT", (-1, 8))}, {"y": ("DT_FLOAT", (-1, 3))})},
    {"encode": ({"images": ("DT_FLOAT", (-1, 4, 6, 3))}, _ENCODE[1])},
    {"encode": ({"images": ("DT_UINT8", (-1, -1, -1, 3))}, _ENCODE[1])},
    {"encode": ({"images": ("DT_UINT8", (-1, 8))}, _ENCODE[1])},
    {"encode": (_ENCODE[0], {"tokens": ("DT_INT32", (-1, 25))})},
    {"encode": (_ENCODE[0], {"codes": ("DT_INT32", (-1, 24))})},
    {"encode": _ENCODE, "score": (_ENCODE[0], {"nats_per_token": ("DT_FLOAT", (-1,))})},
]


@pytest.mark.parametrize("signatures", FOREIGN_MODELS, ids=range(len(FOREIGN_MODELS)))
def test_a_model_with_other_signatures_is_named(signatures):
    answer = _metadata(**signatures)
    with (
        _raw_server(lambda connection: connection.sendall(answer)) as address,
        pytest.raises(ServerError, match="the served model is not one of igpt_tf's"),
    ):
        Client(Rest(ServerAddress(address, "igpt", timeout=5))).sample(1)


def test_a_web_server_that_is_no_model_server_is_named(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            address = ServerAddress(f"127.0.0.1:{server.server_port}", "igpt")
            with pytest.raises(InputError, match="does not answer as TensorFlow Serving"):
                Client(Rest(address)).sample(1)
        finally:
            server.shutdown()
            thread.join()
