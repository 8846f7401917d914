"""The page in a real browser: an image goes in, a click completes it, what was given stays."""

import base64
import io
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from werkzeug.serving import make_server

from igpt_tf.playground.app import create_app
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


def _served(backend):
    server = make_server("127.0.0.1", 0, create_app(backend, ["127.0.0.1"]), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    backends = {
        "causal": LocalModel(exported.write(folder / "causal")),
        "masked": LocalModel(exported.write(folder / "masked", causal=False)),
        "classifier": LocalModel(exported.write_classifier(folder / "classifier")),
    }
    running = {name: _served(backend) for name, backend in backends.items()}
    yield {name: f"http://127.0.0.1:{server.port}/" for name, server in running.items()}
    for server in running.values():
        server.shutdown()


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
    _wait(browser, lambda: browser.execute_script("return document.body.dataset.ready"))


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


# Notes when each row of a picture is drawn.
_WATCH = """
    window.drawn = [];
    const draw = CanvasRenderingContext2D.prototype.drawImage;
    CanvasRenderingContext2D.prototype.drawImage = function (...all) {
      if (all.length === 9) window.drawn.push([all[6], performance.now()]);
      return draw.apply(this, all);
    };"""


def test_a_picture_is_painted_row_by_row_after_what_is_given(browser, servers):
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


def test_the_surprise_of_an_image_that_has_changed_since_is_dimmed(browser, servers):
    _open(browser, servers["causal"])
    surprise = _find(browser, "surprise")
    _find(browser, "score").click()
    _wait(browser, surprise.is_displayed)
    assert "stale" not in surprise.get_attribute("class")
    webdriver.ActionChains(browser).move_to_element(_find(browser, "canvas")).click().perform()
    assert "stale" in surprise.get_attribute("class")
    _find(browser, "score").click()
    _wait(browser, lambda: "stale" not in surprise.get_attribute("class"))


def test_the_keyboard_paints_a_pixel_and_presses_the_button(browser, servers):
    from selenium.webdriver.common.keys import Keys

    _open(browser, servers["causal"])
    before = _canvas(browser, "#canvas")
    _find(browser, "canvas").send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.SPACE)
    changed = np.argwhere(np.any(_canvas(browser, "#canvas") != before, axis=2))
    assert changed.tolist() == [[HEIGHT // 2 - 1, WIDTH // 2 - 1]]
    _find(browser, "complete").send_keys(Keys.ENTER)
    _wait(browser, lambda: _find(browser, "status").text.endswith(" s."))


def test_a_mistake_is_shown_in_one_line(browser, servers, tmp_path):
    _open(browser, servers["causal"])
    _set(browser, "completions", 99)
    _find(browser, "complete").click()
    _wait(browser, lambda: "completions must be 1 to 16" in _find(browser, "error").text)
    wrong = browser.find_elements("css selector", "[aria-invalid=true]")
    assert [one.get_attribute("id") for one in wrong] == ["completions"]
    (tmp_path / "not.png").write_text("an image?")
    _find(browser, "file").send_keys(str(tmp_path / "not.png"))
    _wait(browser, lambda: "PNG or JPEG" in _find(browser, "error").text)
    assert not browser.find_elements("css selector", "[aria-invalid=true]")


def test_a_program_that_has_ended_is_missed_in_one_line(browser, servers):
    _open(browser, servers["causal"])
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('refused'))")
    _find(browser, "complete").click()
    _wait(browser, lambda: "is it still running?" in _find(browser, "error").text)
    assert _find(browser, "complete").is_enabled()


def test_a_file_dropped_on_the_easel_is_shown(browser, servers):
    _open(browser, servers["causal"])
    image = np.random.default_rng(9).integers(0, 256, (HEIGHT, WIDTH, 3)).astype("uint8")
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    browser.execute_script(
        """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "dropped.png"));
        easel.canvas.dispatchEvent(new DragEvent("drop", { dataTransfer }));""",
        base64.b64encode(content.getvalue()).decode(),
    )
    _wait(browser, lambda: "dropped.png" in _find(browser, "status").text)
    assert np.any(_canvas(browser, "#canvas"))


def test_a_masked_model_fills_in_what_the_brush_hides(browser, servers, tmp_path):
    _open(browser, servers["masked"])
    _upload(browser, tmp_path)
    _set(browser, "given", HEIGHT)
    browser.find_element("css selector", "[value=hide]").click()
    canvas = _find(browser, "canvas")
    webdriver.ActionChains(browser).move_to_element(canvas).click().perform()
    original = _canvas(browser, "#canvas")
    hidden = browser.execute_script("return easel.hidden")
    assert sum(hidden) == 1
    kept = ~np.reshape(np.array(hidden, bool), (HEIGHT, WIDTH))
    for picture in _complete(browser):
        np.testing.assert_array_equal(picture[kept], original[kept])


def test_a_fine_tuned_model_shows_its_classes(browser, servers):
    _open(browser, servers["classifier"])
    _find(browser, "classify").click()
    _wait(browser, lambda: "Most likely" in _find(browser, "status").text)
    assert len(browser.find_elements("css selector", "#classes tr")) == 3


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_of_a_narrow_or_a_wide_window(browser, servers, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    _open(browser, servers["masked"])
    script = "return document.documentElement.scrollWidth"
    assert browser.execute_script(script) <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
