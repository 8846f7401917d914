"""The web application: one page, four questions."""

import os
import re

import flask
from werkzeug.exceptions import BadRequest, HTTPException

from igpt_tf.errors import InputError
from igpt_tf.playground import answers, door
from igpt_tf.playground.backends import Backend
from igpt_tf.sampling.params import MAX_FILE_BYTES

_PAGE = os.path.join(os.path.dirname(__file__), "page")
_POLICY = "default-src 'self'; img-src 'self' data:"


def create_app(backend: Backend, hosts: list[str] | None = None) -> flask.Flask:
    """The application over one model.

    Every mistake of the caller is answered with status 400 and {"error": one line}.

    Args:
        backend: The model.
        hosts: Names this page may be called by, without port; others, which a foreign web site
            may have pointed here, are refused. None for any.
    """
    app = flask.Flask(__name__, static_folder=_PAGE, static_url_path="/page")
    app.config.update(MAX_CONTENT_LENGTH=MAX_FILE_BYTES)
    size = backend.image_size

    @app.get("/")
    def page():
        return app.send_static_file("index.html")

    @app.get("/about")
    def about():
        return answers.about(backend)

    @app.post("/shrink")
    def shrink():
        return answers.shrunk(backend, door.read_file(flask.request.get_data(), size))

    @app.post("/complete")
    def complete():
        return answers.completions(backend, door.read_wish(_json(), size))

    @app.post("/score")
    def score():
        return answers.score(backend, door.read_image(_json(), size))

    @app.post("/classify")
    def classify():
        return answers.classes(backend, door.read_image(_json(), size))

    app.before_request(lambda: _check_host(flask.request.host, hosts))
    app.register_error_handler(InputError, lambda error: _refused(str(error)))
    app.register_error_handler(HTTPException, _explained)
    app.after_request(_confined)
    return app


def _check_host(host: str, hosts: list[str] | None) -> None:
    """Raises: InputError: `host`, of which the port does not count, is none of `hosts`."""
    if hosts is not None and re.sub(r":\d*$", "", host) not in hosts:
        raise InputError(f"this page answers to {', '.join(hosts)} only. Received: host={host}")


def _json():
    """The request's content. Raises: InputError."""
    try:
        return flask.request.get_json()
    except (BadRequest, RecursionError):
        raise InputError("the request is not JSON, or too deep") from None


def _explained(error: HTTPException):
    if error.code == 413:
        return _refused(f"an upload must have at most {MAX_FILE_BYTES} bytes")
    code = 400 if error.code == 415 else error.code
    return _refused(error.description or error.name, code)


def _refused(said: str, code: int = 400):
    return {"error": " ".join(said.split())}, code


def _confined(response: flask.Response) -> flask.Response:
    """Nothing from the network, and nothing old after an update."""
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Cache-Control"] = "no-store"
    return response
