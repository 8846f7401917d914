"""Claims about the client: over both wires it answers as the model does, and asks nothing absurd.

The server is the stand-in of tests/serving/standin.py.
"""

import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from igpt_tf.data.images import fit
from igpt_tf.errors import InputError
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.serving import asking, files
from igpt_tf.serving.addresses import Address
from igpt_tf.serving.client import Client
from igpt_tf.serving.over_grpc import Grpc
from igpt_tf.serving.rest import Rest
from tests.serving import exported, standin

CHOICE = {"seed": 3, "temperature": 0.9, "top_k": 6, "top_p": 0.95}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("export") / "5")


@pytest.fixture(scope="module")
def saved(path):
    return SavedModel(path)


@pytest.fixture(scope="module")
def served(path):
    served = standin.Served(path)
    yield served
    served.session.close()


@contextlib.contextmanager
def _wire(kind, served):
    """(class of the transport, address of the stand-in)."""
    if kind == "grpc" and importlib.util.find_spec("tensorflow_serving") is None:
        pytest.skip("tensorflow-serving-api is not installed")
    with getattr(standin, kind)(served) as server:
        yield {"rest": Rest, "grpc": Grpc}[kind], server


@pytest.fixture(scope="module", params=["rest", "grpc"])
def wire(request, served):
    with _wire(request.param, served) as wire:
        yield wire


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = exported.write_classifier(tmp_path_factory.mktemp("classifier") / "5")
    served = standin.Served(path)
    yield path, served
    served.session.close()


@pytest.fixture(scope="module", params=["rest", "grpc"])
def wire_of_classifier(request, classifier):
    path, served = classifier
    with _wire(request.param, served) as wire:
        yield *wire, path


@pytest.fixture
def client(wire):
    transport, server = wire
    return Client(transport(Address(server, standin.MODEL)), batch_size=2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3)).astype("uint8")


def _png(image) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def test_features_of_files_are_the_models(client, saved, images):
    found = client.features([_png(image) for image in images])["features"]
    expected = saved.signature("features")(images=images)["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_classes_of_files_are_the_models(wire_of_classifier, tmp_path, images):
    transport, server, path = wire_of_classifier
    client = Client(transport(Address(server, standin.MODEL)), batch_size=2)
    expected = SavedModel(path).signature("classify")(images=images)
    found = client.classify([_png(image) for image in images])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], rtol=1e-5)
    Image.fromarray(images[1]).save(tmp_path / "one.png")
    said = asking.classify(client, str(tmp_path), images=[str(tmp_path / "one.png")])
    assert json.loads((tmp_path / "classify.json").read_text())["labels"] == [found["labels"][1]]
    assert f"one.png  {found['labels'][1]:>5}  " in said


def test_scores_of_images_are_the_models(client, saved, images):
    found, expected = client.score(images), saved.signature("score")(images=images)
    for name in ("nats_per_token", "surprise"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_samples_in_batches_are_those_of_one_request(client, served, saved):
    served.asked.clear()
    found = client.sample(5, **CHOICE)
    assert [name for name, _ in served.asked] == ["sample"] * 3
    expected = saved.signature("sample")(num_images=5, **CHOICE)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["images"], expected["images"])


def test_completions_keep_what_is_given(client, saved, images):
    found = client.complete(images, 12, **CHOICE)
    expected = saved.signature("complete")(images=images, num_given=12, **CHOICE)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    given = saved.palette.encode(images)[:, :12]
    np.testing.assert_array_equal(found["tokens"][:, :12], given)


def test_a_version_can_be_named(wire, images):
    transport, server = wire
    client = Client(transport(Address(server, standin.MODEL, standin.VERSION)))
    assert client.image_size == (4, 6)
    assert client.score(images)["surprise"].shape == (3, 4, 6)


def test_seeds_wrap_around_as_in_the_graph(client, saved):
    last = 2**31 - 1
    found = client.sample(4, seed=last)["tokens"]
    second = client.sample(2, seed=-(2**31))["tokens"]
    np.testing.assert_array_equal(found[1:3], second)


@pytest.mark.parametrize(
    ("model", "version"), [("nobody", None), (standin.MODEL, 6), ("a/b?c", None)]
)
def test_a_model_that_is_not_served_is_refused_in_one_line(wire, model, version):
    transport, server = wire
    with pytest.raises(InputError, match="no such model .Servable not found|refuses") as caught:
        Client(transport(Address(server, model, version))).sample(1)
    assert "\n" not in str(caught.value)


def test_a_missing_signature_is_refused_with_those_there_are(client, images):
    with pytest.raises(InputError, match="no signature classify_bytes, only complete, decode"):
        client.classify([_png(images[0])])


def test_the_servers_own_refusal_is_passed_on(client):
    refusal = "the server refuses the request: an image must be a PNG or JPEG file$"
    with pytest.raises(InputError, match=refusal):
        client.features([b"nonsense"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": 2**31},
    ],
)
def test_absurd_choices_never_reach_the_server(client, served, images, wrong):
    served.asked.clear()
    for ask in (lambda: client.sample(1, **wrong), lambda: client.complete(images, 3, **wrong)):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            ask()
    assert not served.asked


def test_absurd_sizes_never_reach_the_server(client, served, images):
    served.asked.clear()
    for num_images in (0, -1, 4097):
        with pytest.raises(InputError, match="num_images must be 1 to 4096"):
            client.sample(num_images)
        with pytest.raises(InputError, match="num_images must be 1 to 4096"):
            Client(None, batch_size=num_images)
    for num_given in (-1, 25):
        with pytest.raises(InputError, match="num_given must be 0 to 24"):
            client.complete(images, num_given)
    assert not served.asked


def test_all_colours_may_be_asked_for_by_any_large_number(client):
    few, many = (client.sample(2, top_k=top_k)["tokens"] for top_k in (0, 2**40))
    np.testing.assert_array_equal(few, many)


def _unused_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_where_nobody_listens_the_line_says_so(wire):
    transport, _ = wire
    server = f"127.0.0.1:{_unused_port()}"
    with pytest.raises(InputError, match=f"no answer from the server .*server={server}"):
        Client(transport(Address(server, "igpt", timeout=5))).sample(1)


def test_the_port_of_the_other_wire_is_refused_in_one_line(wire):
    transport, server = wire
    other = Grpc if transport is Rest else Rest
    with pytest.raises(InputError, match="no answer from the server|does not answer as") as caught:
        Client(other(Address(server, standin.MODEL, timeout=2))).sample(1)
    assert "\n" not in str(caught.value)


def test_a_web_server_that_is_no_model_server_is_named(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(InputError, match="does not answer as TensorFlow Serving"):
                Client(Rest(Address(f"127.0.0.1:{server.server_port}", "igpt"))).sample(1)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("server", ["nowhere", "http://a:80", "a:b", "a:1/../", ""])
def test_an_address_must_be_one(server):
    with pytest.raises(InputError, match="HOST:PORT"):
        Address(server, "igpt")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_end(timeout):
    with pytest.raises(InputError, match="timeout must be positive"):
        Address("a:1", "igpt", timeout=timeout)


def _bomb(side: int) -> bytes:
    """A small PNG file whose header promises so many rows and columns."""
    content = bytearray(_png(np.zeros((8, 8, 3), "uint8")))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "1 to 33554432 bytes"),
        (b"no image", "PNG or JPEG"),
        (b"GIF89a" + bytes(50), "PNG or JPEG"),
        (_bomb(2**13), "at most 33554432 pixels"),
        (_bomb(2**15), "at most 33554432 pixels"),
    ],
)
def test_files_that_are_no_sane_images_stay_at_the_door(content, said, tmp_path):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        files.read(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_too_large_is_not_even_read(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(InputError, match="bytes=33554433"):
        files.read(str(path))
    with pytest.raises(InputError, match="No such file"):
        files.read(str(tmp_path / "none.png"))
    os.remove(path)
    for nothing in (None, [], [str(tmp_path)]):
        with pytest.raises(InputError, match="name 1 to 4096 image files.*0 files"):
            files.find(nothing)


def test_each_question_leaves_json_and_pictures(client, saved, images, tmp_path):
    for number, image in enumerate(images):
        Image.fromarray(image.repeat(3, 0).repeat(3, 1)).save(tmp_path / f"{number}.png")
    folder, out = [str(tmp_path)], str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    asking.features(client, out, images=folder)
    asking.score(client, out, images=folder)
    asking.sample(client, out, num_images=2, **CHOICE)
    asking.complete(client, out, images=folder, num_given="0.5", **CHOICE)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"score.png", "sample.png", "sample_0001_seed_4.png", "complete.png"} <= pictures
    report = json.loads((tmp_path / "out" / "score.json").read_text())
    shrunk = fit(images.repeat(3, 1).repeat(3, 2), (4, 6))
    expected = saved.signature("score")(images=shrunk)["nats_per_token"]
    np.testing.assert_allclose(report["nats_per_token"], expected, rtol=1e-5)
    assert json.loads((tmp_path / "out" / "complete.json").read_text())["num_given"] == 12


def _run(*arguments):
    command = [sys.executable, "-m", "tools.serving_client", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_program_samples_over_the_wire(wire, tmp_path):
    transport, server = wire
    kind = "--grpc" if transport is Grpc else "--nogrpc"
    ended = _run(
        "--ask=sample", f"--server={server}", kind, "--num_images=2", f"--workdir={tmp_path}"
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "2 samples\n"
    assert (tmp_path / "sample.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ask=sample", "--temperature=nan"),
        ("--ask=sample", "--num_images=9999"),
        ("--ask=score",),
        ("--ask=paint",),
        ("--ask=sample", "--server=127.0.0.1:9"),
    ],
)
def test_the_program_ends_with_2_and_one_line_for_a_mistake(arguments, tmp_path):
    ended = _run(*arguments, f"--workdir={tmp_path}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
