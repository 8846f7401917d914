"""Claims about the page's questions: sound ones are answered, absurd ones get one line."""

import base64
import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from igpt_tf.playground.app import create_app
from igpt_tf.playground.backends import Local, Served
from igpt_tf.sampling.params import MAX_FILE_BYTES, MAX_FILE_PIXELS
from igpt_tf.serving.addresses import Address
from igpt_tf.serving.rest import Rest
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
    return Local(exported.write(folder / "causal"))


@pytest.fixture(scope="module")
def page(backend):
    return create_app(backend).test_client()


@pytest.fixture(scope="module")
def masked_page(folder):
    return create_app(Local(exported.write(folder / "masked", causal=False))).test_client()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3))


def _wish(pixels, **changes) -> dict:
    wish = {"image": _url(pixels), "num_given": WIDTH, "completions": 2, "seed": 3}
    return {**wish, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **changes}


def _answer(response) -> dict:
    assert response.status_code == 200, response.text
    return response.json


def _refusal(response) -> str:
    assert response.status_code == 400, response.text
    assert set(response.json) == {"error"} and "\n" not in response.json["error"]
    return response.json["error"]


def test_the_page_and_all_it_loads_come_from_the_program_itself(page):
    html = page.get("/").text
    assert html.startswith("<!doctype html>") and "//" not in html.replace("<!--", "")
    for name in ("style.css", "canvas.js", "page.js"):
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


def test_about_says_what_the_model_can_do(page, masked_page):
    causal, masked = _answer(page.get("/about")), _answer(masked_page.get("/about"))
    assert causal["image_size"] == [HEIGHT, WIDTH] and causal["step"] == 5
    assert causal["paints"] and causal["scores"] and not causal["hides"]
    assert masked["paints"] and masked["hides"] and not masked["classifies"]


def test_an_upload_becomes_an_image_of_the_models_size_in_the_palettes_colours(page, backend):
    content = _png(np.random.default_rng(5).integers(0, 256, (3 * HEIGHT, 2 * WIDTH, 3)), "JPEG")
    shrunk = _pixels(_answer(page.post("/shrink", data=content))["image"])
    again = backend.ask("decode", tokens=backend.ask("encode", images=shrunk[None])["tokens"])
    np.testing.assert_array_equal(again["images"][0], shrunk)
    assert shrunk.shape == (HEIGHT, WIDTH, 3)


def test_completions_keep_what_is_given_and_differ_in_the_rest(page, image):
    kept = _pixels(_answer(page.post("/shrink", data=_png(image)))["image"])
    answer = _answer(page.post("/complete", json=_wish(image, num_given=2 * WIDTH)))
    first, second = map(_pixels, answer["images"])
    np.testing.assert_array_equal(first[:2], kept[:2])
    np.testing.assert_array_equal(second[:2], kept[:2])
    assert np.any(first != second)


def test_the_same_seed_paints_the_same_and_the_second_picture_is_of_the_next_seed(page, image):
    one = _answer(page.post("/complete", json=_wish(image, seed=3)))["images"]
    two = _answer(page.post("/complete", json=_wish(image, seed=4)))["images"]
    assert one == _answer(page.post("/complete", json=_wish(image, seed=3)))["images"]
    assert one[1] == two[0] != one[0]


def test_a_masked_model_fills_in_what_is_hidden_and_keeps_the_rest(masked_page, image):
    kept = _pixels(_answer(masked_page.post("/shrink", data=_png(image)))["image"])
    hidden = [int(place % WIDTH < 2) for place in range(HEIGHT * WIDTH)]
    wish = _wish(image, num_given=HEIGHT * WIDTH, hidden=hidden)
    for url in _answer(masked_page.post("/complete", json=wish))["images"]:
        np.testing.assert_array_equal(_pixels(url)[:, 2:], kept[:, 2:])
        assert np.any(_pixels(url)[:, :2] != kept[:, :2])


def test_a_causal_model_says_that_it_cannot_fill_in(page, image):
    wish = _wish(image, hidden=[1] * (HEIGHT * WIDTH))
    assert "only masked" in _refusal(page.post("/complete", json=wish))


def test_the_surprise_has_a_number_for_each_pixel(page, image):
    answer = _answer(page.post("/score", json={"image": _url(image)}))
    assert np.shape(answer["surprise"]) == (HEIGHT, WIDTH)
    assert np.mean(answer["surprise"]) == pytest.approx(answer["nats_per_token"], abs=1e-3)


def test_classes_come_with_names_and_probabilities_the_likeliest_first(folder, image):
    backend = Local(exported.write_classifier(folder / "classifier"))
    backend.metadata["class_names"] = ["ant", "bee", "cow"]
    client = create_app(backend).test_client()
    assert _answer(client.get("/about"))["classifies"]
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
    ("content", "said"),
    [
        (b"", "PNG or JPEG"),
        (b"GIF89a, or so it says", "PNG or JPEG"),
        (_bomb(2**13), f"at most {MAX_FILE_PIXELS} pixels"),
        (_bomb(2**15), f"at most {MAX_FILE_PIXELS} pixels"),
        (_bomb(2**31 - 1), f"at most {MAX_FILE_PIXELS} pixels"),
        (_bomb(2**12), "corrupt"),
        (_png(_noise(99))[:200], "corrupt"),
        (_png(_noise(99), "JPEG")[:-900], "corrupt"),
        (_png(_noise(99), "BMP"), "PNG or JPEG"),
        (_png(np.zeros((2, 2, 3))), "smaller"),
        (bytes(MAX_FILE_BYTES + 1), f"at most {MAX_FILE_BYTES} bytes"),
    ],
)
def test_what_is_no_image_or_too_much_of_one_is_refused(page, content, said):
    assert said in _refusal(page.post("/shrink", data=content))


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
def test_an_absurd_wish_is_refused_by_name(page, image, changes):
    said = _refusal(page.post("/complete", json=_wish(image, **changes)))
    assert next(iter(changes)) in said


# What is no JSON, no object, or too much for Python's reader.
_BODIES = ["", "{", "[]", "null", '"x"', "7", b"\xff", "[" * 10**5, '{"seed":' + "1" * 9999 + "}"]


@pytest.mark.parametrize("body", _BODIES, ids=range(len(_BODIES)))
def test_what_is_not_a_json_object_is_refused(page, body):
    for path in ("/complete", "/score", "/classify"):
        _refusal(page.post(path, data=body, content_type="application/json"))
    _refusal(page.post("/complete", data=body))


def test_any_seed_of_the_models_is_painted(page, image):
    for seed in (-(2**31), -1, 2**31 - 1):
        assert len(_answer(page.post("/complete", json=_wish(image, seed=seed)))["images"]) == 2


@pytest.mark.parametrize("path", ["/", "/about", "/page/page.js"])
def test_a_page_of_this_machine_is_not_lent_to_other_names(backend, path):
    client = create_app(backend, ["127.0.0.1", "[::1]"]).test_client()
    for host in ("127.0.0.1:8008", "127.0.0.1", "[::1]:8008"):
        assert client.get(path, headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:127.0.0.1", "", "a b"):
        assert "answers to 127.0.0.1" in _refusal(client.get(path, headers={"Host": host}))


@pytest.fixture
def served_page(backend):
    """The page over the same model behind a server."""
    with standin.rest(standin.Served(backend.where)) as address:
        transport = Rest(Address(address, standin.MODEL))
        yield create_app(Served(transport, address)).test_client()


def test_a_server_in_the_models_place_gives_the_same_answers(page, served_page, image):
    assert _answer(served_page.get("/about"))["where"].startswith("the server at 127.0.0.1:")
    for path, content in (("/complete", _wish(image)), ("/score", {"image": _url(image)})):
        mine, theirs = (_answer(one.post(path, json=content)) for one in (page, served_page))
        assert mine.keys() == theirs.keys()
        if path == "/complete":
            assert mine["images"] == theirs["images"]
        else:
            np.testing.assert_allclose(mine["surprise"], theirs["surprise"], atol=2e-4)


def test_a_signature_the_server_lacks_is_named(served_page, image):
    assert "signature=classify" in _refusal(
        served_page.post("/classify", json={"image": _url(image)})
    )


def test_questions_at_once_are_all_answered_as_each_alone(page, image):
    wishes = [_wish(image, seed=seed) for seed in range(4)]
    alone = [_answer(page.post("/complete", json=wish))["images"] for wish in wishes]
    with ThreadPoolExecutor(4) as pool:
        clients = [page.application.test_client() for _ in wishes]
        posts = [
            pool.submit(one.post, "/complete", json=wish)
            for one, wish in zip(clients, wishes, strict=True)
        ]
        assert [_answer(post.result())["images"] for post in posts] == alone
