"""The page's requests: valid ones are answered, invalid ones get one line."""

import base64
import contextlib
import io
import json
import select
import socket
import threading
import time
import types
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from igpt_tf.data import source_from_description
from igpt_tf.files import MAX_FILE_BYTES, MAX_FILE_PIXELS
from igpt_tf.playground import requests
from igpt_tf.playground.app import create_app, create_server
from igpt_tf.playground.backends import LocalModel, ServedModel
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import Rest, ServerAddress
from tests.serving import exported, standin

HEIGHT, WIDTH = exported.SIZES["image_size"]
PREFIX = "data:image/png;base64,"


def _png(pixels, kind="PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.asarray(pixels, "uint8")).save(content, kind)
    return content.getvalue()


def _url(pixels) -> str:
    return PREFIX + base64.b64encode(_png(pixels)).decode()


def _pixels(url: str) -> np.ndarray:
    content = base64.b64decode(url.removeprefix(PREFIX))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def backend(folder):
    return LocalModel(exported.write(folder / "causal"))


@pytest.fixture(scope="module")
def page(backend):
    return create_app(backend).test_client()


@pytest.fixture(scope="module")
def masked_page(folder):
    return create_app(LocalModel(exported.write(folder / "masked", causal=False))).test_client()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3))


def _request(pixels, **changes) -> dict:
    request = {"image": _url(pixels), "num_given": WIDTH, "completions": 2, "seed": 3}
    return {**request, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **changes}


def _answer(response) -> dict:
    assert response.status_code == 200, response.text
    return response.json


def _refusal(response) -> str:
    assert response.status_code == 400, response.text
    assert set(response.json) == {"error"} and "\n" not in response.json["error"]
    return response.json["error"]


def test_the_page_loads_nothing_from_elsewhere(page):
    html = page.get("/").text
    assert html.startswith("<!doctype html>") and "//" not in html.replace("<!--", "")
    for name in ("style.css", "editor.js", "page.js"):
        assert f"/page/{name}" in html
        response = page.get(f"/page/{name}")
        assert response.status_code == 200 and "http" not in response.text
    assert "default-src 'self'" in page.get("/").headers["Content-Security-Policy"]


def test_every_control_has_a_label(page):
    html = page.get("/").text
    controls = [
        part.split('id="')[1].split('"')[0]
        for part in html.split("<input ")[1:]
        if "id=" in part[:40]
    ]
    assert {"given", "temperature", "top_k", "top_p", "seed", "completions"} <= set(controls)
    assert all(f'for="{control}"' in html for control in controls)


def test_about_names_the_models_signatures(page, masked_page):
    causal, masked = _answer(page.get("/about")), _answer(masked_page.get("/about"))
    assert causal["image_size"] == [HEIGHT, WIDTH] and causal["step"] == 5
    assert {"complete", "score", "sample"} <= set(causal["signatures"])
    assert {"complete", "score", "inpaint"} <= set(masked["signatures"])
    assert not causal["is_grey"] and not causal["names_its_data"]


@pytest.fixture(scope="module")
def data(folder):
    """Description of a data set of 10 images, as a SavedModel's metadata holds it."""
    images = np.random.default_rng(8).integers(0, 256, (10, HEIGHT, WIDTH, 3)).astype("uint8")
    np.savez(folder / "data.npz", images=images, labels=np.arange(10) % 2)
    arguments = {"path": str(folder / "data.npz"), "image_size": [HEIGHT, WIDTH], "heldout": 0.3}
    return {"name": "npz", "arguments": arguments}


def test_held_out_images_of_the_models_data_set_are_offered(backend, data, monkeypatch):
    monkeypatch.setitem(backend.metadata, "data", data)
    client = create_app(backend).test_client()
    assert _answer(client.get("/about"))["names_its_data"]
    valid = source_from_description(data).valid.arrays()[0]
    for index in (0, 2, 5):
        answer = _answer(client.get(f"/heldout?index={index}"))
        assert answer["count"] == 3 and answer["index"] == index % 3
        tokens = backend.call("encode", images=valid[index % 3][None])["tokens"]
        expected = backend.call("decode", tokens=tokens)["images"][0]
        np.testing.assert_array_equal(_pixels(answer["image"]), expected)


def test_a_data_set_that_is_not_here_gets_one_line(backend, data, monkeypatch):
    elsewhere = {**data, "arguments": {**data["arguments"], "path": "none.npz"}}
    for wrong in (elsewhere, {"name": "unknown", "arguments": {}}, None):
        monkeypatch.setitem(backend.metadata, "data", wrong)
        assert _refusal(create_app(backend).test_client().get("/heldout"))


def test_an_upload_becomes_an_image_of_the_models_size_in_the_palettes_colours(page, backend):
    content = _png(np.random.default_rng(5).integers(0, 256, (3 * HEIGHT, 2 * WIDTH, 3)), "JPEG")
    shrunk = _pixels(_answer(page.post("/shrink", data=content))["image"])
    again = backend.call("decode", tokens=backend.call("encode", images=shrunk[None])["tokens"])
    np.testing.assert_array_equal(again["images"][0], shrunk)
    assert shrunk.shape == (HEIGHT, WIDTH, 3)


def test_completions_keep_the_given_pixels_and_differ_in_the_others(page, image):
    kept = _pixels(_answer(page.post("/shrink", data=_png(image)))["image"])
    answer = _answer(page.post("/complete", json=_request(image, num_given=2 * WIDTH)))
    first, second = map(_pixels, answer["images"])
    np.testing.assert_array_equal(first[:2], kept[:2])
    np.testing.assert_array_equal(second[:2], kept[:2])
    assert np.any(first != second)


def test_the_same_seed_gives_the_same_images_and_the_second_uses_the_next_seed(page, image):
    one = _answer(page.post("/complete", json=_request(image, seed=3)))["images"]
    two = _answer(page.post("/complete", json=_request(image, seed=4)))["images"]
    assert one == _answer(page.post("/complete", json=_request(image, seed=3)))["images"]
    assert one[1] == two[0] != one[0]


def test_a_masked_model_fills_in_hidden_pixels_and_keeps_the_others(masked_page, image):
    kept = _pixels(_answer(masked_page.post("/shrink", data=_png(image)))["image"])
    hidden = [int(place % WIDTH < 2) for place in range(HEIGHT * WIDTH)]
    body = _request(image, num_given=HEIGHT * WIDTH, hidden=hidden)
    for url in _answer(masked_page.post("/complete", json=body))["images"]:
        np.testing.assert_array_equal(_pixels(url)[:, 2:], kept[:, 2:])
        assert np.any(_pixels(url)[:, :2] != kept[:, :2])


def test_an_autoregressive_model_cannot_fill_in_hidden_pixels(page, image):
    body = _request(image, hidden=[1] * (HEIGHT * WIDTH))
    assert "only masked" in _refusal(page.post("/complete", json=body))


def test_the_surprise_has_one_number_per_pixel(page, image):
    answer = _answer(page.post("/score", json={"image": _url(image)}))
    assert np.shape(answer["surprise"]) == (HEIGHT, WIDTH)
    assert np.mean(answer["surprise"]) == pytest.approx(answer["nats_per_token"], abs=1e-3)


def test_classes_are_sorted_by_probability(folder, image):
    backend = LocalModel(exported.write_classifier(folder / "classifier"))
    backend.metadata["class_names"] = ["ant", "bee", "cow"]
    client = create_app(backend).test_client()
    assert "classify" in _answer(client.get("/about"))["signatures"]
    found = _answer(client.post("/classify", json={"image": _url(image)}))["classes"]
    shares = [one["probability"] for one in found]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    assert sorted(one["name"] for one in found) == ["ant", "bee", "cow"]


def _bomb(side: int) -> bytes:
    """A small PNG file whose header, checksum and all, promises so many rows and columns."""
    content = bytearray(_png(np.zeros((8, 8, 3))))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def _noise(side: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (side, side, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no image at all", "PNG, JPEG, WebP, BMP and GIF can be read"),
        (b"<!doctype html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (_bomb(2**14), f"more than {MAX_FILE_PIXELS}"),
        (_bomb(2**15), f"more than {MAX_FILE_PIXELS}"),
        (_bomb(2**31 - 1), f"more than {MAX_FILE_PIXELS}"),
        (_png(_noise(99))[:200], "damaged or incomplete"),
        (_png(_noise(99), "JPEG")[:-900], "damaged or incomplete"),
        (_png(np.zeros((2, 2, 3))), "smaller"),
    ],
    ids=range(10),
)
def test_files_that_are_not_usable_images_are_rejected_by_name(page, content, message):
    error = _refusal(page.post("/shrink?name=photo.png", data=content))
    assert message in error and "photo.png" in error


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP"])
def test_all_kinds_of_files_that_training_accepts_are_accepted(page, kind):
    assert _pixels(_answer(page.post("/shrink", data=_png(_noise(12), kind)))["image"]).any()


def test_an_upload_of_too_many_bytes_is_rejected(page):
    announced = {"CONTENT_LENGTH": str(MAX_FILE_BYTES + 1)}
    response = page.post("/shrink", environ_overrides=announced)
    assert f"at most {MAX_FILE_BYTES} bytes" in _refusal(response)
    response = page.post("/score", data=b" " * 2**22 + b"{}", content_type="application/json")
    assert "at most 4194304 bytes" in _refusal(response)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_given": -1},
        {"num_given": HEIGHT * WIDTH + 1},
        {"num_given": 1.5},
        {"completions": 0},
        {"completions": 17},
        {"completions": True},
        {"seed": 2**31},
        {"seed": -(2**31) - 1},
        {"seed": None},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 0},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"temperature": 1e39},
        {"temperature": 1e-50},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_p": 1e-50},
        {"image": "data:image/png;base64,!"},
        {"image": "data:image/png;base64,ä"},
        {"image": "https://example.org/cat.png"},
        {"image": None},
        {"hidden": [0, 1]},
        {"hidden": [2] * (HEIGHT * WIDTH)},
        {"hidden": [[0]] * (HEIGHT * WIDTH)},
    ],
)
def test_an_invalid_field_is_named(page, image, changes):
    message = _refusal(page.post("/complete", json=_request(image, **changes)))
    assert next(iter(changes)) in message


# Not JSON, not an object, or too much for Python's parser.
_BODIES = ["", "{", "[]", "null", '"x"', "7", b"\xff", "[" * 10**5, '{"seed":' + "1" * 9999 + "}"]


@pytest.mark.parametrize("body", _BODIES, ids=range(len(_BODIES)))
def test_a_body_that_is_not_a_json_object_is_rejected(page, body):
    for path in ("/complete", "/score", "/classify"):
        _refusal(page.post(path, data=body, content_type="application/json"))
    _refusal(page.post("/complete", data=body))


def test_every_int32_is_a_seed(page, image):
    for seed in (-(2**31), -1, 2**31 - 1):
        assert len(_answer(page.post("/complete", json=_request(image, seed=seed)))["images"]) == 2


@pytest.mark.parametrize("path", ["/", "/about", "/page/page.js"])
def test_the_page_answers_to_names_of_this_machine_only(backend, path):
    client = create_app(backend, ["127.0.0.1", "[::1]"]).test_client()
    for host in ("127.0.0.1:8008", "127.0.0.1", "[::1]:8008"):
        assert client.get(path, headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:127.0.0.1", "", "a b"):
        assert "answers to 127.0.0.1" in _refusal(client.get(path, headers={"Host": host}))


def test_a_page_for_other_machines_answers_to_addresses_and_the_machines_name(backend):
    client = create_app(backend, hosts=None).test_client()
    for host in ("10.0.0.7:8008", "[fe80::1]:8008", "localhost", socket.gethostname()):
        assert client.get("/about", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "10.0.0.7.evil.example", ""):
        assert "answers to IP addresses" in _refusal(client.get("/about", headers={"Host": host}))


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9999"},
    {"Origin": "https://localhost"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=range(len(FOREIGN)))
def test_requests_of_other_web_sites_are_rejected_before_any_work(page, image, headers):
    for path, content in (("/shrink", _png(image)), ("/complete", b"{}"), ("/score", b"{}")):
        response = page.post(path, data=content, headers=headers)
        assert response.status_code == 403 and "other web sites" in response.json["error"]
    for path in ("/", "/about", "/heldout"):
        assert page.get(path, headers=headers).status_code == 403


def test_the_pages_own_requests_and_links_to_it_are_accepted(page, image):
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert page.post("/shrink", data=_png(image), headers=own).status_code == 200
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for site in ("cross-site", "same-site", "none"):
        assert page.get("/", headers={"Sec-Fetch-Site": site, **link}).status_code == 200
    foreign = page.get("/about", headers={"Sec-Fetch-Site": "cross-site", **link})
    assert foreign.status_code == 403


@pytest.mark.parametrize("path", ["/", "/about", "/page/page.js", "/none", "/heldout"])
def test_every_answer_forbids_embedding_sniffing_and_foreign_content(page, path):
    headers = page.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_an_answer_that_is_not_finite_gets_one_line(backend, image, monkeypatch):
    nats = np.full((1, HEIGHT, WIDTH), np.nan, "float32")
    model = types.SimpleNamespace(signature=lambda name: lambda **inputs: {"surprise": nats})
    page = create_app(backend).test_client()
    monkeypatch.setattr(backend, "_model", model)
    monkeypatch.setattr(requests, "decode_upload", lambda *_: np.zeros((1, HEIGHT, WIDTH, 3)))
    assert "not finite" in _refusal(page.post("/score", json={"image": _url(image)}))


class _SlowModel:
    """Takes as long as the test wants."""

    location, metadata, signature_names = "a slow model", {}, ["encode", "decode", "score"]
    image_size = (HEIGHT, WIDTH)

    def __init__(self):
        self.is_free, self.calls = threading.Event(), 0

    def call(self, name, **inputs):
        if name == "score":
            self.calls += 1
            assert self.is_free.wait(60)
            nats = np.ones((1, HEIGHT, WIDTH), "float32")
            return {"surprise": nats, "nats_per_token": np.ones(1, "float32")}
        if name == "encode":
            return {"tokens": np.zeros((1, HEIGHT * WIDTH), "int32")}
        return {"images": np.zeros((1, HEIGHT, WIDTH, 3), "uint8")}


def _run(server) -> None:
    with contextlib.suppress(OSError):  # the test closes its sockets
        server.run()


@pytest.fixture
def slow():
    """(slow model, address of a server of its page)."""
    model = _SlowModel()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = create_server(create_app(model), listener)
        server.adj.channel_timeout = server.adj.cleanup_interval = 1
        thread = threading.Thread(target=_run, args=(server,))
        thread.start()
        yield model, listener.getsockname()
        model.is_free.set()
        server.close()
        thread.join(60)


def test_a_connection_that_sends_nothing_more_is_closed(slow):
    model, address = slow
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(100) == b""
    assert not model.calls


def _send(address, image) -> socket.socket:
    body = json.dumps({"image": _url(image)}).encode()
    head = (
        "POST /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(address, timeout=60)
    connection.sendall(head.encode() + body)
    return connection


def _status(connection) -> str:
    with connection:
        return connection.recv(2**16).decode().split(" ", 2)[1]


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_few_requests_wait_for_the_model_and_the_page_stays_reachable(slow, image):
    model, address = slow
    connections = [_send(address, image)]
    _wait_until(lambda: model.calls == 1)
    connections += [_send(address, image) for _ in range(11)]
    refused = []
    _wait_until(lambda: _drain(connections, refused) == 3)  # one runs and 8 wait
    with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/about", timeout=30) as response:
        assert response.status == 200
    model.is_free.set()
    assert [_status(connection) for connection in connections] == ["200"] * 9
    assert refused == ["503"] * 3 and model.calls == 9


def _drain(connections, statuses) -> int:
    """Moves what has been answered to `statuses`; how many these are."""
    for connection in select.select(connections, [], [], 0)[0]:
        connections.remove(connection)
        statuses.append(_status(connection))
    return len(statuses)


def test_waiting_requests_of_clients_that_have_left_are_dropped(slow, image):
    model, address = slow
    first = _send(address, image)
    _wait_until(lambda: model.calls == 1)
    for _ in range(3):
        _send(address, image).close()
    last = _send(address, image)
    time.sleep(1)  # more than the interval at which waiting requests look at their clients
    model.is_free.set()
    assert [_status(first), _status(last)] == ["200", "200"]
    assert model.calls == 2


@pytest.fixture
def served(backend):
    """(page over the same model behind a server, the server's model)."""
    served = standin.Served(backend.location)
    with standin.rest(served) as address:
        client = Client(Rest(ServerAddress(address, standin.MODEL)))
        yield create_app(ServedModel(client, address)).test_client(), served
    served.session.close()


@pytest.fixture
def served_page(served):
    return served[0]


def test_a_served_model_gives_the_same_answers(page, served_page, image):
    assert _answer(served_page.get("/about"))["location"].startswith("the server at 127.0.0.1:")
    for path, content in (("/complete", _request(image)), ("/score", {"image": _url(image)})):
        local, remote = (_answer(one.post(path, json=content)) for one in (page, served_page))
        assert local.keys() == remote.keys()
        if path == "/complete":
            assert local["images"] == remote["images"]
        else:
            np.testing.assert_allclose(local["surprise"], remote["surprise"], atol=2e-4)


HOSTILE = {
    "too few": lambda answer: {key: value[:0] for key, value in answer.items()},
    "NaN": lambda answer: {key: value * np.nan for key, value in answer.items()},
    "other shape": lambda answer: {key: value.reshape(-1) for key, value in answer.items()},
    "no JSON": lambda answer: b"<html>",
    "no object": lambda answer: b"[1, 2]",
    "nothing": lambda answer: b"",
    "endless": lambda answer: b'{"outputs": [' + b"1, " * 2**20,
    "null": lambda answer: b'{"outputs": null}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_server_that_answers_wrongly_is_status_502_and_one_line(served, image, name):
    page, served = served
    served.tamper = HOSTILE[name]
    for path, body in (("/score", {"image": _url(image)}), ("/complete", _request(image))):
        response = page.post(path, json=body)
        assert response.status_code == 502 and "\n" not in response.json["error"]
        assert "server" in response.json["error"]


def test_a_server_that_is_gone_is_status_502(backend, image):
    served = standin.Served(backend.location)
    with standin.rest(served) as address:
        client = Client(Rest(ServerAddress(address, standin.MODEL)))
        page = create_app(ServedModel(client, address)).test_client()
    response = page.post("/score", json={"image": _url(image)})
    assert response.status_code == 502 and "no answer from the server" in response.json["error"]


def test_a_signature_that_the_server_lacks_is_named(served_page, image):
    assert "signature=classify" in _refusal(
        served_page.post("/classify", json={"image": _url(image)})
    )


def test_simultaneous_requests_are_answered_as_each_alone(page, image):
    bodies = [_request(image, seed=seed) for seed in range(4)]
    alone = [_answer(page.post("/complete", json=body))["images"] for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        clients = [page.application.test_client() for _ in bodies]
        posts = [
            pool.submit(one.post, "/complete", json=body)
            for one, body in zip(clients, bodies, strict=True)
        ]
        assert [_answer(post.result())["images"] for post in posts] == alone
