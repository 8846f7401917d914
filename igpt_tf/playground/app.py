"""The web application: one page, its requests, and who may send them."""

import base64
import contextlib
import io
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator

import flask
import numpy as np
import waitress
from PIL import Image
from werkzeug.exceptions import BadRequest, HTTPException, ServiceUnavailable

from igpt_tf.errors import InputError
from igpt_tf.files import MAX_FILE_BYTES
from igpt_tf.playground import requests
from igpt_tf.playground.backends import Backend, HeldOutImages
from igpt_tf.serving.transports import ServerError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")  # as browsers write them
_PAGE_FOLDER = os.path.join(os.path.dirname(__file__), "page")
_MAX_JSON_BYTES = 2**22  # an image of the model's size in base64
_MAX_WAITING = 8  # requests to the model
_NUM_THREADS = 2 * _MAX_WAITING  # the others answer what needs no model
_NUM_ROUNDS = 8
_HEADERS = {
    # The page loads nothing from the network, and no other page may embed it.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app(backend: Backend, hosts: Collection[str] | None = LOCAL_HOSTS) -> flask.Flask:
    """Creates the application over one model.

    Errors are answered with {"error": one line}: status 400 for invalid requests, 403 for requests
    that another web site sends, 502 if a server behind the page fails, 503 if too many wait.

    Args:
        backend: The model.
        hosts: Names by which the page may be called, without port. A foreign web site may point
            its own name to this machine; such requests are rejected. None for any IP address and
            this machine's own names, which no web site can have.
    """
    app = flask.Flask(__name__, static_folder=_PAGE_FOLDER, static_url_path="/page")
    app.config.update(MAX_CONTENT_LENGTH=_MAX_JSON_BYTES)
    size, queue = backend.image_size, _Queue()
    heldout = HeldOutImages(backend.metadata, size)
    description = _describe(backend)

    @app.get("/")
    def page():
        return app.send_static_file("index.html")

    @app.get("/about")
    def about():
        return description

    @app.get("/heldout")
    def heldout_image():
        index = flask.request.args.get("index", 0, int) % len(heldout)
        image, class_name = heldout.load(index)
        answer = {"index": index, "count": len(heldout), "class_name": class_name}
        with queue.turn():
            return {**answer, "image": _in_palette_colours(backend, image)}

    @app.post("/shrink")
    def shrink():
        flask.request.max_content_length = MAX_FILE_BYTES
        name = flask.request.args.get("name", "upload")[:200]
        with queue.turn():
            image = requests.decode_upload(flask.request.get_data(), name, size)
            return {"image": _in_palette_colours(backend, image)}

    @app.post("/complete")
    def complete():
        content = _json()
        with queue.turn():
            return _complete(backend, requests.parse_completion(content, size))

    @app.post("/score")
    def score():
        content = _json()
        with queue.turn():
            answer = backend.call("score", images=requests.parse_image(content, size))
        return {
            "nats_per_token": float(answer["nats_per_token"][0]),
            "surprise": answer["surprise"][0].astype(float).round(4).tolist(),
        }

    @app.post("/classify")
    def classify():
        content = _json()
        with queue.turn():
            answer = backend.call("classify", images=requests.parse_image(content, size))
        return {"classes": _ranked_classes(backend, answer["probabilities"][0])}

    app.before_request(lambda: _check_sender(flask.request, hosts))
    app.after_request(_add_headers)
    app.register_error_handler(InputError, lambda error: _error(str(error), 400))
    app.register_error_handler(ServerError, lambda error: _error(str(error), 502))
    app.register_error_handler(HTTPException, _http_error)
    return app


def create_server(app: flask.Flask, listener: socket.socket):
    """Creates the HTTP server of the application; its `run()` ends at an interrupt.

    Args:
        app: From `create_app`.
        listener: A listening socket.
    """
    return waitress.create_server(
        app,
        sockets=[listener],
        threads=_NUM_THREADS,
        ident=None,
        connection_limit=2 * _NUM_THREADS,
        max_request_body_size=MAX_FILE_BYTES + 1,  # the application refuses the last with a reason
        max_request_header_size=2**16,
        channel_timeout=30,  # seconds without a byte of a request
        cleanup_interval=10,
        channel_request_lookahead=1,  # notices that a client has left while its request waits
        log_socket_errors=False,
    )


class _Queue:
    """Lets one request use the model at a time, so that memory stays bounded."""

    def __init__(self):
        self._places = threading.Semaphore(1 + _MAX_WAITING)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the model.

        Raises:
            ServiceUnavailable: Too many requests wait, or the client of this one has left.
        """
        if not self._places.acquire(blocking=False):
            raise ServiceUnavailable("too many requests wait for the model; try again")
        try:
            while not self._lock.acquire(timeout=0.2):
                self._check_client()
            try:
                self._check_client()
                yield
            finally:
                self._lock.release()
        finally:
            self._places.release()

    def _check_client(self) -> None:
        has_left: Callable[[], bool] | None
        has_left = flask.request.environ.get("waitress.client_disconnected")
        if has_left and has_left():
            raise ServiceUnavailable("the client has left")


def _check_sender(request: flask.Request, hosts: Collection[str] | None) -> None:
    """Rejects requests to other names and requests that other web sites send.

    Browsers name the site of a request in Origin and Sec-Fetch-Site; other programs
    send neither. A link on another site may open the page, but nothing else.
    """
    host = re.sub(r":\d*$", "", request.host)
    allowed = host in hosts if hosts is not None else _is_address_or_own_name(host)
    if not allowed:
        names = ", ".join(hosts) if hosts is not None else "IP addresses and this machine's name"
        raise InputError(f"this page answers to {names} only. Received: host={request.host}")
    site = request.headers.get("Sec-Fetch-Site", "none")
    is_link = (
        request.path == "/"
        and request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )
    origin = request.headers.get("Origin")
    if origin not in (None, f"http://{request.host}"):
        flask.abort(403, f"requests from other web sites are refused. Received: origin={origin}")
    if site not in ("none", "same-origin") and not is_link:
        flask.abort(403, f"requests from other web sites are refused. Received: site={site}")


def _is_address_or_own_name(host: str) -> bool:
    names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    if host.lower() in names:
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _describe(backend: Backend) -> dict:
    """What the page needs to know about the model to show its controls."""
    metadata = backend.metadata
    return {
        "location": backend.location,
        "image_size": list(backend.image_size),
        "signatures": backend.signature_names,
        "is_grey": _is_grey(backend),
        "vocabulary_size": metadata.get("model", {}).get("vocabulary_size"),
        "step": metadata.get("step"),
        "nats_per_token": metadata.get("nats_per_token"),
        "names_its_data": metadata.get("data") is not None,
        "max_completions": requests.MAX_COMPLETIONS,
        "max_file_bytes": MAX_FILE_BYTES,
    }


def _is_grey(backend: Backend) -> bool:
    """Whether the palette has greys only: pure colours then come back grey."""
    height, width = backend.image_size
    colours = 255 * np.eye(3, dtype="uint8")
    pixels = np.resize(colours, (1, height, width, 3))
    shown = _quantize(backend, pixels)
    return bool(np.all(shown == shown[..., :1]))


def _quantize(backend: Backend, images: np.ndarray) -> np.ndarray:
    tokens = backend.call("encode", images=images)["tokens"]
    return backend.call("decode", tokens=tokens)["images"]


def _in_palette_colours(backend: Backend, image: np.ndarray) -> str:
    """Returns uint8[1,H,W,3] as the model sees it, as a data URL."""
    return _data_url(_quantize(backend, image)[0])


def _complete(backend: Backend, request: requests.CompletionRequest) -> dict:
    """Generates completions. A signature answers once, so the page cannot show progress."""
    started = time.monotonic()
    inputs = {
        "images": request.image.repeat(request.completions, axis=0),
        **request.params.as_dict(),
    }
    if request.hidden is None:
        answer = backend.call("complete", num_given=request.num_given, **inputs)
    else:
        known = _known_pixels(backend, request).repeat(request.completions, axis=0)
        answer = backend.call("inpaint", known=known, num_rounds=_NUM_ROUNDS, **inputs)
    return {
        "images": [_data_url(image) for image in answer["images"]],
        "seconds": round(time.monotonic() - started, 2),
    }


def _known_pixels(backend: Backend, request: requests.CompletionRequest) -> np.ndarray:
    """bool[1,H,W]: given and not hidden."""
    if "inpaint" not in backend.signature_names:
        raise InputError(
            "this model generates pixels in raster order and cannot fill in hidden ones; only "
            "masked (BERT) models can. Received: hidden"
        )
    positions = np.arange(request.hidden.size).reshape(request.hidden.shape)
    return (positions < request.num_given) & ~request.hidden


def _ranked_classes(backend: Backend, probabilities: np.ndarray) -> list[dict]:
    """Names and probabilities, the most probable class first."""
    names = backend.metadata.get("class_names") or [f"class {i}" for i in range(len(probabilities))]
    order = np.argsort(-probabilities, kind="stable")
    return [{"name": str(names[i]), "probability": float(probabilities[i])} for i in order]


def _data_url(image: np.ndarray) -> str:
    """uint8[H,W,3] as a data URL of a PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _json():
    """The request's JSON. Raises: InputError."""
    try:
        return flask.request.get_json()
    except (BadRequest, RecursionError):
        raise InputError("the request is not JSON, or nested too deeply") from None


def _http_error(error: HTTPException):
    if error.code == 413:
        limit = flask.request.max_content_length
        return _error(f"the request must have at most {limit} bytes", 400)
    return _error(error.description or error.name, 400 if error.code == 415 else error.code)


def _error(message: str, status: int):
    return {"error": " ".join(message.split())}, status


def _add_headers(response: flask.Response) -> flask.Response:
    response.headers.update(_HEADERS)
    return response
