"""One local web page to paint with a model: draw or upload, complete, see where it is surprised.

python -m tools.playground --saved_model=DIR [--port=8008]
python -m tools.playground --server=HOST:PORT [--model=igpt] [--saved_model=DIR]

The second form asks TensorFlow Serving over REST; --saved_model then only names classes and step.
"""

import logging
import socket

from absl import flags

from igpt_tf import cli, runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel import metadata as exported

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets others in.")
flags.DEFINE_integer("port", 8008, "Port to listen on; 0 for any free one.", 0, 65535)
flags.DEFINE_string("server", None, "HOST:PORT of TensorFlow Serving's REST interface.")
flags.DEFINE_string("model", "igpt", "The model's name at that server.")

_LOCAL = ["127.0.0.1", "localhost", "[::1]"]  # as browsers write them


def main() -> None:
    """Flags -> backend -> page, until interrupted."""
    flag = flags.FLAGS
    if not flag.server:
        cli.require_flags("saved_model")
    with _door() as door:  # first: it is no use to read a model if the port is taken
        runtime.import_tensorflow()
        server = _server(door)
        print(f"http://{_host()}:{server.port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    raise KeyboardInterrupt  # which Werkzeug keeps to itself


def _host() -> str:
    host = flags.FLAGS.host
    return f"[{host}]" if ":" in host else host


def _door() -> socket.socket:
    """Listens. Raises: InputError: the port is taken, or the host not of this machine."""
    flag = flags.FLAGS
    family = socket.AF_INET6 if ":" in flag.host else socket.AF_INET
    try:
        return socket.create_server((flag.host, flag.port), family=family)
    except OSError as error:
        reason = error.strerror.split(" (")[0]
        raise InputError(
            f"cannot listen there ({reason}); choose another --host or --port. "
            f"Received: host={flag.host}, port={flag.port}"
        ) from None


def _server(door: socket.socket):
    """Of the page, with a thread for each request. Raises: InputError: there is no such model."""
    from werkzeug.serving import make_server

    from igpt_tf.playground.app import create_app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port, *_ = door.getsockname()
    hosts = _LOCAL if _host() in _LOCAL else None
    return make_server(host, port, create_app(_backend(), hosts), threaded=True, fd=door.fileno())


def _backend():
    flag = flags.FLAGS
    from igpt_tf.playground.backends import Local, Served

    if not flag.server:
        return Local(flag.saved_model)
    from igpt_tf.serving.addresses import Address
    from igpt_tf.serving.rest import Rest

    metadata = None
    if flag.saved_model:
        metadata = exported.read_metadata(exported.find(flag.saved_model))
    return Served(Rest(Address(flag.server, flag.model)), flag.server, metadata)


if __name__ == "__main__":
    cli.run(main)
