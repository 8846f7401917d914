"""The client over REST and gRPC: answers equal the model's, invalid requests are not sent.

The server is the stand-in of tests/serving/standin.py.
"""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from igpt_tf.errors import InputError
from igpt_tf.files import MAX_FILE_BYTES
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.serving import file_requests
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import Grpc, RequestRefused, Rest, ServerAddress, ServerError
from tests import programs
from tests.serving import exported, standin

PARAMS = SamplingParams(seed=3, temperature=0.9, top_k=6, top_p=0.95)
TRANSPORTS = {"rest": Rest, "grpc": Grpc}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("export") / "5")


@pytest.fixture(scope="module")
def model(path):
    return SavedModel(path)


@pytest.fixture(scope="module")
def served(path):
    served = standin.Served(path)
    yield served
    served.session.close()


@contextlib.contextmanager
def _served_by(kind, served):
    """Yields (class of the transport, address of the stand-in)."""
    if kind == "grpc" and importlib.util.find_spec("tensorflow_serving") is None:
        pytest.skip("tensorflow-serving-api is not installed")
    with getattr(standin, kind)(served) as server:
        yield TRANSPORTS[kind], server


@pytest.fixture(scope="module", params=["rest", "grpc"])
def server(request, served):
    """(class of the transport, address of a server of the autoregressive model)."""
    with _served_by(request.param, served) as server:
        yield server


@pytest.fixture
def client(server):
    transport, address = server
    return Client(transport(ServerAddress(address, standin.MODEL)), batch_size=2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3)).astype("uint8")


def _png(image) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _write_images(folder, images, scale=1) -> list[str]:
    paths = [str(folder / f"{number}.png") for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.repeat(scale, 0).repeat(scale, 1)).save(path)
    return paths


def test_features_of_files_equal_the_models(client, model, images):
    found = client.features([_png(image) for image in images])["features"]
    expected = model.signature("features")(images=images)["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_of_images_equal_the_models(client, model, images):
    found, expected = client.score(images), model.signature("score")(images=images)
    for name in ("nats_per_token", "surprise"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_samples_in_batches_equal_those_of_one_request(client, served, model):
    served.requests.clear()
    found = client.sample(5, PARAMS)
    assert [name for name, _ in served.requests] == ["sample"] * 3
    expected = model.signature("sample")(num_images=5, **PARAMS.as_dict())
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["images"], expected["images"])


def test_completions_keep_the_given_pixels(client, model, images):
    found = client.complete(images, 12, PARAMS)
    expected = model.signature("complete")(images=images, num_given=12, **PARAMS.as_dict())
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    given = model.palette.encode(images)[:, :12]
    np.testing.assert_array_equal(found["tokens"][:, :12], given)


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_classifiers_classes_equal_the_models(kind, tmp_path, images):
    path = exported.write_classifier(tmp_path / "5")
    expected = SavedModel(path).signature("classify")(images=images)
    file = _write_images(tmp_path, images[1:2])
    with _served_by(kind, standin.Served(path)) as (transport, address):
        client = Client(transport(ServerAddress(address, standin.MODEL)), batch_size=2)
        found = client.classify([_png(image) for image in images])
        report = file_requests.classify(client, str(tmp_path), images=file)
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], rtol=1e-5)
    assert json.loads((tmp_path / "classify.json").read_text())["labels"] == [found["labels"][1]]
    assert f"0.png  {found['labels'][1]:>5}  " in report.summary


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_masked_model_in_paints_what_the_mask_does_not_keep(kind, tmp_path, images):
    path = exported.write(tmp_path / "masked", causal=False)
    files = _write_images(tmp_path, images)
    mask = np.zeros((8, 12), "uint8")
    mask[:, :6] = 255  # keeps the left half
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with _served_by(kind, standin.Served(path)) as (transport, address):
        client = Client(transport(ServerAddress(address, standin.MODEL)), batch_size=2)
        report = file_requests.inpaint(
            client,
            str(tmp_path),
            images=files,
            known=str(tmp_path / "mask.png"),
            num_rounds=3,
            params=PARAMS,
        )
    known = np.zeros((3, 4, 6), bool)
    known[..., :3] = True
    signature = SavedModel(path).signature("inpaint")
    expected = signature(images=images, known=known, num_rounds=3, **PARAMS.as_dict())
    content = json.loads((tmp_path / "inpaint.json").read_text())
    assert content["tokens"] == expected["tokens"].tolist() and content["num_rounds"] == 3
    assert report.summary == "3 images in-painted, 12 of 24 pixels known"
    written = np.asarray(Image.open(tmp_path / "inpaint_0001_seed_4.png"))
    np.testing.assert_array_equal(written[::16, ::16], expected["images"][1])
    assert (tmp_path / "inpaint.png").exists()


def test_a_version_can_be_named(server, images):
    transport, address = server
    client = Client(transport(ServerAddress(address, standin.MODEL, standin.VERSION)))
    assert client.image_size == (4, 6)
    assert client.score(images)["surprise"].shape == (3, 4, 6)


def test_seeds_wrap_around_as_in_the_graph(client):
    found = client.sample(4, SamplingParams(seed=2**31 - 1))["tokens"]
    second = client.sample(2, SamplingParams(seed=-(2**31)))["tokens"]
    np.testing.assert_array_equal(found[1:3], second)


def test_images_are_named_by_their_seed_also_where_seeds_wrap_around(client, tmp_path):
    params = SamplingParams(seed=2**31 - 1)
    file_requests.sample(client, str(tmp_path), num_images=2, params=params)
    names = {path.name for path in tmp_path.glob("sample_*.png")}
    assert names == {"sample_0000_seed_2147483647.png", "sample_0001_seed_-2147483648.png"}


@pytest.mark.parametrize(
    ("model", "version"), [("absent", None), (standin.MODEL, 6), ("a/b?c", None)]
)
def test_a_model_that_is_not_served_is_named_in_one_line(server, model, version):
    transport, address = server
    with pytest.raises(InputError, match="no such model .Servable not found|refuses") as caught:
        Client(transport(ServerAddress(address, model, version))).sample(1)
    assert "\n" not in str(caught.value)


def test_a_missing_signature_is_named_with_the_available_ones(client, images):
    with pytest.raises(InputError, match="no signature classify_bytes, only complete, decode"):
        client.classify([_png(images[0])])


def test_the_servers_refusal_is_passed_on(client):
    with pytest.raises(RequestRefused, match="the server refuses the request: an image"):
        client.features([b"nonsense"])


def test_an_input_of_another_shape_or_type_is_rejected(client, served, images):
    client.image_size  # noqa: B018 - asks for the signatures
    served.requests.clear()
    for wrong in (images[:, :3], images.astype("float32"), images[0]):
        with pytest.raises(InputError, match=r"images must be uint8\[B,4,6,3\]. Received: "):
            client.score(wrong)
    assert not served.requests


@pytest.mark.parametrize("num_images", [0, -1, 4097])
def test_invalid_numbers_of_images_are_not_sent(client, served, num_images):
    served.requests.clear()
    with pytest.raises(InputError, match="num_images must be 1 to 4096"):
        client.sample(num_images)
    with pytest.raises(InputError, match="num_images must be 1 to 4096"):
        Client(None, batch_size=num_images)
    assert not served.requests


@pytest.mark.parametrize("num_given", [-1, 25])
def test_an_invalid_number_of_given_pixels_is_not_sent(client, served, images, num_given):
    served.requests.clear()
    with pytest.raises(InputError, match="num_given must be 0 to 24"):
        client.complete(images, num_given)
    assert not served.requests


def test_a_large_top_k_keeps_all_colours(client):
    few, many = (client.sample(2, SamplingParams(top_k=k))["tokens"] for k in (0, 2**40))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize(
    "server",
    ["nowhere", "http://a:80", "a:b", "a:1/../", "", "a:0", "a:65536", "a:99999", "a:\u0661"],
)
def test_a_server_must_be_host_and_port(server):
    with pytest.raises(InputError, match="HOST:PORT"):
        ServerAddress(server, "igpt")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_positive_and_finite(timeout):
    with pytest.raises(InputError, match="timeout must be positive"):
        ServerAddress("a:1", "igpt", timeout=timeout)


def test_each_request_writes_json_and_pictures(client, model, images, tmp_path):
    _write_images(tmp_path, images, scale=3)
    folder, out = [str(tmp_path)], str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    file_requests.features(client, out, images=folder)
    file_requests.score(client, out, images=folder)
    file_requests.sample(client, out, num_images=2, params=PARAMS)
    file_requests.complete(client, out, images=folder, num_given="0.5", params=PARAMS)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"score.png", "sample.png", "sample_0001_seed_4.png", "complete.png"} <= pictures
    content = json.loads((tmp_path / "out" / "score.json").read_text())
    expected = model.signature("score")(images=images)["nats_per_token"]
    np.testing.assert_allclose(content["nats_per_token"], expected, rtol=1e-5)
    assert json.loads((tmp_path / "out" / "complete.json").read_text())["num_given"] == 12


def _damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.truncate(60)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_damaged_file_is_named_and_the_answers_for_the_others_are_kept(
    server, images, tmp_path, batch_size
):
    transport, address = server
    client = Client(transport(ServerAddress(address, standin.MODEL)), batch_size)
    paths = _write_images(tmp_path, images)
    whole = client.features([_png(image) for image in images])["features"]
    completed = client.complete(images, 6, PARAMS)["tokens"]
    _damage(paths[1])
    reports = [
        file_requests.features(client, str(tmp_path), images=paths),
        file_requests.complete(client, str(tmp_path), images=paths, num_given="1", params=PARAMS),
    ]
    for report in reports:
        assert list(report.left_out) == [paths[1]]
        with pytest.raises(InputError, match=r"1 of 3 files were left out.*1\.png \("):
            report.check(str(tmp_path))
    content = json.loads((tmp_path / "features.json").read_text())
    assert content["files"] == [paths[0], paths[2]] and list(content["left_out"]) == [paths[1]]
    np.testing.assert_allclose(content["features"], whole[[0, 2]], rtol=1e-4, atol=1e-6)
    content = json.loads((tmp_path / "complete.json").read_text())
    assert content["tokens"] == completed[[0, 2]].tolist()  # with the seeds of their places
    assert (tmp_path / "complete_0002_seed_5.png").exists()


def test_escape_sequences_in_file_names_do_not_reach_the_terminal(client, tmp_path, images):
    path = tmp_path / "\x1b[31mred\x07.png"
    Image.fromarray(images[0]).save(path)
    report = file_requests.score(client, str(tmp_path), images=[str(path)])
    assert "\\x1b[31mred\\x07.png" in report.summary and "\x1b" not in report.summary


def test_an_error_names_the_file_if_none_is_left(client, tmp_path, images):
    (path,) = _write_images(tmp_path, images[:1])
    _damage(path)
    with pytest.raises(InputError, match=r"refuses the request: .*0\.png"):
        file_requests.features(client, str(tmp_path), images=[path])
    with pytest.raises(InputError, match=r"0\.png"):
        file_requests.score(client, str(tmp_path), images=[path])
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("num_bytes", "message"), [(0, "bytes=0"), (MAX_FILE_BYTES + 1, f"bytes={MAX_FILE_BYTES + 1}")]
)
def test_a_file_of_too_many_or_no_bytes_is_not_read(tmp_path, num_bytes, message):
    path = tmp_path / "image.png"
    with open(path, "wb") as file:
        file.truncate(num_bytes)
    with pytest.raises(InputError, match=message):
        file_requests.read_image_file(str(path))


def test_images_must_be_named(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*none\.png"):
        file_requests.read_image_file(str(tmp_path / "none.png"))
    for nothing in (None, []):
        with pytest.raises(InputError, match="name 1 to 4096 image files"):
            file_requests.list_images(nothing)


def test_the_program_samples_from_a_server(server, tmp_path):
    transport, address = server
    kind = "--grpc" if transport is Grpc else "--nogrpc"
    arguments = "--ask=sample", f"--server={address}", kind, "--num_images=2"
    printed = programs.done("tools.serving_client", *arguments, f"--workdir={tmp_path}")
    assert printed == "2 samples\n"
    assert (tmp_path / "sample.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ask=sample", "--temperature=nan"),
        ("--ask=sample", "--num_images=9999"),
        ("--ask=score",),
        ("--ask=unknown",),
        ("--ask=inpaint", "--images=x.png"),
        ("--ask=sample", "--server=127.0.0.1:9"),
        ("--ask=sample", "--server=127.0.0.1:99999"),
        ("--ask=features", "--images=\x1b[31mred.png"),
    ],
)
def test_the_program_ends_with_2_and_one_line_for_a_mistake(arguments, tmp_path):
    workdir = f"--workdir={tmp_path}"
    assert "\x1b" not in programs.refused_at_once("tools.serving_client", *arguments, workdir)


@pytest.mark.parametrize(
    ("ask", "flag"),
    [("complete", "known=mask.png"), ("sample", "images=x.png"), ("features", "top_p=0.9")],
)
def test_a_flag_that_the_request_does_not_use_is_refused(ask, flag, tmp_path):
    arguments = f"--ask={ask}", f"--{flag}", f"--workdir={tmp_path}"
    line = programs.refused_at_once("tools.serving_client", *arguments)
    assert line.startswith(f"error: --ask={ask} does not use --{flag.partition('=')[0]};")


def test_rest_does_not_import_tensorflow_unless_images_are_decoded(served, tmp_path, images):
    """Samples over REST, in a process in which TensorFlow cannot be imported."""
    script = (
        "import sys; sys.modules['tensorflow'] = None; sys.argv[0] = 'client'\n"
        "from igpt_tf import cli\nfrom tools import serving_client\n"
        "cli.run(serving_client.main)\n"
    )
    paths = ",".join(_write_images(tmp_path, images))
    with standin.rest(served) as address:
        for ask in (["--ask=sample"], ["--ask=features", f"--images={paths}"]):
            command = [sys.executable, "-c", script, *ask]
            command += [f"--server={address}", f"--workdir={tmp_path}"]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr


def test_unreachable_servers_are_named(server):
    transport, _ = server
    with pytest.raises(ServerError, match="no answer from the server .*server=127.0.0.1:9,"):
        Client(transport(ServerAddress("127.0.0.1:9", "igpt", timeout=5))).sample(1)


def test_the_port_of_the_other_interface_is_rejected_in_one_line(server):
    transport, address = server
    other = Grpc if transport is Rest else Rest
    with pytest.raises(InputError, match="no answer from the server|does not answer as") as caught:
        Client(other(ServerAddress(address, standin.MODEL, timeout=2))).sample(1)
    assert "\n" not in str(caught.value)
