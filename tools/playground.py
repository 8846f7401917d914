"""One local web page to paint with a model: draw or upload, complete, see where it is surprised.

python -m tools.playground --saved_model=DIR [--port=8008]
python -m tools.playground --server=HOST:PORT [--model=igpt] [--saved_model=DIR]

The second form asks TensorFlow Serving over REST; --saved_model then only names classes and step.
"""

from absl import flags

from igpt_tf import exported, program
from igpt_tf.errors import InputError

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets others in.")
flags.DEFINE_integer("port", 8008, "Port to listen on; 0 for any free one.", 0, 65535)
flags.DEFINE_string("server", None, "HOST:PORT of TensorFlow Serving's REST interface.")
flags.DEFINE_string("model", "igpt", "The model's name at that server.")

_LOCAL = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    """Flags -> backend -> page, until interrupted."""
    flag = flags.FLAGS
    if not flag.server:
        program.require_flags("saved_model")
    program.import_tensorflow()
    from igpt_tf.playground.app import create_app

    hosts = [*_LOCAL[:2], "[::1]"] if flag.host in _LOCAL else None
    server = _listen(create_app(_backend(), hosts))
    host = f"[{flag.host}]" if ":" in flag.host else flag.host
    print(f"http://{host}:{server.port}/  (Ctrl-C ends it)", flush=True)
    server.serve_forever()
    raise KeyboardInterrupt  # which Werkzeug keeps to itself


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


def _listen(app):
    """A server with a thread for each request. Raises: InputError: the port is taken."""
    import logging
    import socket

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    flag = flags.FLAGS
    family = socket.AF_INET6 if ":" in flag.host else socket.AF_INET
    try:
        door = socket.create_server((flag.host, flag.port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen there ({error.strerror}); choose another --port. "
            f"Received: host={flag.host}, port={flag.port}"
        ) from None
    return make_server(flag.host, door.getsockname()[1], app, threaded=True, fd=door.detach())


if __name__ == "__main__":
    program.run(main)
