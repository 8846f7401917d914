"""The page in Chromium, over the real server."""

import base64
import contextlib
import http.server
import io
import shutil
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from igpt_tf.playground.app import create_app, create_server
from igpt_tf.playground.backends import LocalModel
from tests.serving import exported

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="no selenium: pip install -r requirements-dev.txt"
)

HEIGHT, WIDTH = exported.SIZES["image_size"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]


class _GreyModel:
    """A model whose palette has greys only; it neither generates nor scores."""

    location, metadata, image_size = "a grey model", {}, (HEIGHT, WIDTH)
    signature_names = ["decode", "encode"]

    def call(self, name, **inputs):
        if name == "encode":
            return {"tokens": inputs["images"].mean(axis=-1).reshape(1, -1).astype("int32")}
        greys = inputs["tokens"].reshape(1, HEIGHT, WIDTH, 1).astype("uint8")
        return {"images": greys.repeat(3, axis=-1)}


@contextlib.contextmanager
def _serve(backend):
    """Yields the address of the backend's page."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = create_server(create_app(backend), listener)

        def serve():
            with contextlib.suppress(OSError):  # closed below
                server.run()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.close()
        thread.join(5)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Name of a model -> address of its page."""
    folder = tmp_path_factory.mktemp("models")
    images = np.random.default_rng(8).integers(0, 256, (10, HEIGHT, WIDTH, 3)).astype("uint8")
    np.savez(folder / "data.npz", images=images, labels=np.arange(10) % 2)
    with_data = LocalModel(exported.write(folder / "causal"))
    arguments = {"path": str(folder / "data.npz"), "heldout": 0.3}
    with_data.metadata["data"] = {"name": "npz", "arguments": arguments}
    backends = {
        "causal": LocalModel(str(folder / "causal")),
        "with data": with_data,
        "masked": LocalModel(exported.write(folder / "masked", causal=False)),
        "classifier": LocalModel(exported.write_classifier(folder / "classifier")),
        "grey": _GreyModel(),
    }
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(_serve(model)) for name, model in backends.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def _wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def _open(browser, url):
    browser.get(url)
    _wait(browser, lambda: browser.execute_script("return document.body.dataset.started"))


def _find(browser, name):
    return browser.find_element("id", name)


def _canvas(browser, selector) -> np.ndarray:
    """uint8[H,W,3] of a canvas."""
    script = "return document.querySelector(arguments[0]).toDataURL('image/png')"
    content = browser.execute_script(script, selector).split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def _set(browser, name, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input'))",
        *(name, str(value)),
    )


def _upload(browser, tmp_path):
    image = np.random.default_rng(6).integers(0, 256, (5 * HEIGHT, 5 * WIDTH, 3)).astype("uint8")
    Image.fromarray(image).save(tmp_path / "mine.png")
    before = _canvas(browser, "#canvas")
    _find(browser, "file").send_keys(str(tmp_path / "mine.png"))
    _wait(browser, lambda: "mine.png" in _find(browser, "status").text)
    assert np.any(_canvas(browser, "#canvas") != before)


def _complete(browser):
    _find(browser, "complete").click()
    _wait(browser, lambda: _find(browser, "status").text.endswith(" s."))
    assert _find(browser, "error").text == ""
    count = len(browser.find_elements("css selector", "#pictures canvas"))
    places = range(1, count + 1)
    return [_canvas(browser, f"#pictures figure:nth-child({i}) canvas") for i in places]


def test_a_click_completes_an_uploaded_image_and_keeps_the_given_pixels(browser, servers, tmp_path):
    _open(browser, servers["causal"])
    _upload(browser, tmp_path)
    _set(browser, "given", 2)
    _set(browser, "completions", 3)
    pictures = _complete(browser)
    original = _canvas(browser, "#canvas")
    assert len(pictures) == 3
    for picture in pictures:
        np.testing.assert_array_equal(picture[:2], original[:2])
        assert np.any(picture[2:] != original[2:])
    assert np.any(pictures[0] != pictures[1])
    serious = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert serious == []


# Records when each row of a picture is drawn.
_WATCH = """
    window.drawn = [];
    const draw = CanvasRenderingContext2D.prototype.drawImage;
    CanvasRenderingContext2D.prototype.drawImage = function (...all) {
      if (all.length === 9) window.drawn.push([all[6], performance.now()]);
      return draw.apply(this, all);
    };"""


def test_a_completion_is_replayed_row_by_row_after_the_given_rows(browser, servers):
    _open(browser, servers["causal"])
    browser.execute_script(_WATCH)
    _set(browser, "given", 1)
    _set(browser, "completions", 1)
    _complete(browser)
    rows, times = zip(*browser.execute_script("return window.drawn"), strict=True)
    assert list(rows) == list(range(HEIGHT))
    assert times[1] - times[0] < 100 < min(np.diff(times[1:]))  # milliseconds
    marked = browser.find_element("css selector", ".picture").get_attribute("style")
    assert f"--given: {1 / HEIGHT}" in marked and _find(browser, "legend").is_displayed()


def test_the_surprise_map_is_drawn(browser, servers):
    _open(browser, servers["causal"])
    _find(browser, "score").click()
    _wait(browser, lambda: "nats" in _find(browser, "surprise-text").text)
    assert len(np.unique(_canvas(browser, "#map").reshape(-1, 3), axis=0)) > 3
    # 10 right of and below the corner where the four pixels in the middle meet.
    corner = webdriver.ActionChains(browser).move_to_element_with_offset
    corner(_find(browser, "map"), 10, 10).perform()
    assert f"Row {HEIGHT // 2 + 1}, column {WIDTH // 2 + 1}: " in _find(browser, "pixel-text").text


def test_the_surprise_of_an_image_that_has_changed_is_dimmed(browser, servers):
    _open(browser, servers["causal"])
    surprise = _find(browser, "surprise")
    _find(browser, "score").click()
    _wait(browser, surprise.is_displayed)
    assert "stale" not in surprise.get_attribute("class")
    webdriver.ActionChains(browser).move_to_element(_find(browser, "canvas")).click().perform()
    assert "stale" in surprise.get_attribute("class")
    _find(browser, "score").click()
    _wait(browser, lambda: "stale" not in surprise.get_attribute("class"))


def test_the_keyboard_draws_a_pixel_and_presses_the_button(browser, servers):
    from selenium.webdriver.common.keys import Keys

    _open(browser, servers["causal"])
    before = _canvas(browser, "#canvas")
    _find(browser, "canvas").send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.SPACE)
    changed = np.argwhere(np.any(_canvas(browser, "#canvas") != before, axis=2))
    assert changed.tolist() == [[HEIGHT // 2 - 1, WIDTH // 2 - 1]]
    _find(browser, "complete").send_keys(Keys.ENTER)
    _wait(browser, lambda: _find(browser, "status").text.endswith(" s."))


def test_errors_are_shown_in_one_line_and_name_the_control_or_the_file(browser, servers, tmp_path):
    _open(browser, servers["causal"])
    _set(browser, "completions", 99)
    _find(browser, "complete").click()
    _wait(browser, lambda: "completions must be 1 to 16" in _find(browser, "error").text)
    wrong = browser.find_elements("css selector", "[aria-invalid=true]")
    assert [one.get_attribute("id") for one in wrong] == ["completions"]
    (tmp_path / "not.png").write_text("an image?")
    _find(browser, "file").send_keys(str(tmp_path / "not.png"))
    _wait(browser, lambda: "not.png" in _find(browser, "error").text)
    assert not browser.find_elements("css selector", "[aria-invalid=true]")


def test_a_program_that_has_ended_is_named_in_one_line(browser, servers):
    _open(browser, servers["causal"])
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('refused'))")
    _find(browser, "complete").click()
    _wait(browser, lambda: "is it still running?" in _find(browser, "error").text)
    assert _find(browser, "complete").is_enabled()


def test_a_file_dropped_on_the_image_is_shown(browser, servers):
    _open(browser, servers["causal"])
    image = np.random.default_rng(9).integers(0, 256, (HEIGHT, WIDTH, 3)).astype("uint8")
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    browser.execute_script(
        """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "dropped.png"));
        editor.canvas.dispatchEvent(new DragEvent("drop", { dataTransfer }));""",
        base64.b64encode(content.getvalue()).decode(),
    )
    _wait(browser, lambda: "dropped.png" in _find(browser, "status").text)
    assert np.any(_canvas(browser, "#canvas"))


def test_a_masked_model_fills_in_pixels_hidden_with_the_brush(browser, servers, tmp_path):
    _open(browser, servers["masked"])
    _upload(browser, tmp_path)
    _set(browser, "given", HEIGHT)
    browser.find_element("css selector", "[value=hide]").click()
    canvas = _find(browser, "canvas")
    webdriver.ActionChains(browser).move_to_element(canvas).click().perform()
    original = _canvas(browser, "#canvas")
    hidden = browser.execute_script("return editor.hidden")
    assert sum(hidden) == 1
    kept = ~np.reshape(np.array(hidden, bool), (HEIGHT, WIDTH))
    for picture in _complete(browser):
        np.testing.assert_array_equal(picture[kept], original[kept])


def test_a_fine_tuned_model_shows_its_classes(browser, servers):
    _open(browser, servers["classifier"])
    _find(browser, "classify").click()
    _wait(browser, lambda: "Most likely" in _find(browser, "status").text)
    assert len(browser.find_elements("css selector", "#classes tr")) == 3


def test_the_page_starts_with_a_held_out_image_and_one_completion(browser, servers):
    _open(browser, servers["with data"])
    assert _find(browser, "status").text.startswith("Held-out image 1 of 3, class ")
    first = _canvas(browser, "#canvas")
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 1
    assert len(browser.find_elements("css selector", "#pictures canvas")) == 1
    completion = _canvas(browser, "#pictures canvas")
    np.testing.assert_array_equal(completion[: HEIGHT // 2], first[: HEIGHT // 2])
    shown = [first]
    for number in (2, 3, 1):
        _find(browser, "next").click()
        expected = f"Held-out image {number} of 3"
        _wait(browser, lambda text=expected: text in _find(browser, "status").text)
        shown.append(_canvas(browser, "#canvas"))
    np.testing.assert_array_equal(shown[3], first)
    assert np.any(shown[1] != first) and np.any(shown[2] != first)
    _find(browser, "clear").click()
    _find(browser, "try").click()
    _wait(browser, lambda: np.array_equal(_canvas(browser, "#canvas"), first))


def test_without_its_data_set_the_page_starts_empty_and_works(browser, servers):
    _open(browser, servers["causal"])
    assert not _find(browser, "heldout").is_displayed()
    assert not _canvas(browser, "#canvas").any()
    assert len(_complete(browser)) == 6


def test_one_completion_and_all_can_be_downloaded(browser, servers, tmp_path):
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    _open(browser, servers["causal"])
    _set(browser, "completions", 3)
    _set(browser, "seed", 5)
    pictures = _complete(browser)
    browser.find_element("css selector", "[aria-label='Save the completion with seed 6']").click()
    _find(browser, "save-all").click()
    one, every = tmp_path / "igpt_seed_6.png", tmp_path / "igpt_seeds_5_to_7.png"
    _wait(browser, lambda: one.exists() and every.exists())
    scale = round(256 / WIDTH)
    saved = np.asarray(Image.open(one).convert("RGB"))
    np.testing.assert_array_equal(saved, pictures[1].repeat(scale, 0).repeat(scale, 1))
    sheet = np.asarray(Image.open(every).convert("RGB"))
    assert sheet.shape[:2] == (2 * (HEIGHT * scale + 8) + 8, 2 * (WIDTH * scale + 8) + 8)
    np.testing.assert_array_equal(sheet[8 : 8 + HEIGHT * scale, 16 + WIDTH * scale : -8], saved)


def test_a_grey_palette_has_a_brightness_instead_of_a_colour(browser, servers):
    _open(browser, servers["grey"])
    assert not _find(browser, "colour").is_displayed() and _find(browser, "grey").is_displayed()
    assert _find(browser, "hint").text == "This model does not generate images."
    _set(browser, "grey", 100)
    webdriver.ActionChains(browser).move_to_element(_find(browser, "canvas")).click().perform()
    drawn = _canvas(browser, "#canvas")
    assert drawn.max() == 100 and np.all(drawn == drawn[..., :1])
    _open(browser, servers["causal"])
    assert _find(browser, "colour").is_displayed() and not _find(browser, "grey").is_displayed()


def test_a_masked_model_is_described_as_one(browser, servers):
    _open(browser, servers["masked"])
    assert "masked (BERT) model" in _find(browser, "about").text
    assert "most certain ones first" in _find(browser, "hint").text
    _complete(browser)
    _find(browser, "score").click()
    _wait(browser, lambda: "pseudo-likelihood" in _find(browser, "surprise-text").text)
    _open(browser, servers["causal"])
    assert "autoregressive model" in _find(browser, "about").text
    assert "raster order" in _find(browser, "hint").text


def test_another_site_cannot_use_the_model(browser, tmp_path):
    """A page of another port sends what a browser allows without asking."""
    model = _GreyModel()
    calls = []
    model.call = lambda name, **inputs: calls.append(name) or _GreyModel.call(model, name, **inputs)
    (tmp_path / "index.html").write_text("<!doctype html><title>other</title>")
    handler = type("Handler", (http.server.SimpleHTTPRequestHandler,), {"log_message": print})
    site = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *all: handler(*all, directory=str(tmp_path))
    )
    threading.Thread(target=site.serve_forever, args=(0.05,)).start()
    try:
        with _serve(model) as url:
            _open(browser, url)
            before = len(calls)
            browser.get(f"http://127.0.0.1:{site.server_port}/")
            sent = browser.execute_async_script(
                """const [url, done] = arguments;
                fetch(url + "shrink", { method: "POST", mode: "no-cors", body: "x" })
                  .then((response) => done(response.type), (error) => done(String(error)));""",
                url,
            )
            assert sent in ("opaque", "TypeError: Failed to fetch") and len(calls) == before
    finally:
        site.shutdown()
        site.server_close()


@contextlib.contextmanager
def _window(browser, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("model", "width"),
    [("masked", 360), ("with data", 390), ("with data", 800), ("classifier", 1280)],
)
def test_controls_fit_the_window_and_are_44_pixels_high_and_wide(browser, servers, width, model):
    with _window(browser, width, 844):
        _open(browser, servers[model])
        _complete(browser)
        script = "return document.documentElement.scrollWidth"
        assert browser.execute_script(script) <= width
        script = """
            return [...document.querySelectorAll("button, label:has(input), input")]
              .filter((e) => e.offsetParent && e.type !== "radio" && e.type !== "file")
              .map((e) => [e.id || e.textContent.trim(), e.getBoundingClientRect()])
              .filter(([name, box]) => box.height < 44 || box.width < 44)
              .map(([name, box]) => `${name}: ${box.width}x${box.height}`);"""
        assert browser.execute_script(script) == []


def test_results_are_beside_the_controls_and_above_the_fold_on_a_laptop(browser, servers):
    with _window(browser, 1280, 800):
        _open(browser, servers["with data"])
        _complete(browser)
        _find(browser, "score").click()
        _wait(browser, lambda: _find(browser, "map").is_displayed())
        _wait(browser, lambda: "Scored" in _find(browser, "status").text)
        boxes = {name: _find(browser, name).rect for name in ("complete", "pictures", "map")}
        assert browser.execute_script("return window.scrollY") == 0
    assert boxes["pictures"]["x"] > boxes["complete"]["x"] + boxes["complete"]["width"]
    for box in boxes.values():
        assert box["y"] + box["height"] <= 800
