"""A local web page for a model: complete images, see where they surprise it, classify them.

python -m tools.playground --saved_model=DIR [--port=8008]
python -m tools.playground --server=HOST:PORT [--model=igpt] [--saved_model=DIR]

The second form asks TensorFlow Serving over REST; --saved_model is then read for the step, the
names of classes and held-out images only.
"""

import socket
import sys

from absl import flags

from igpt_tf import cli, runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel import metadata
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import Rest, ServerAddress

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all of this machine.")
flags.DEFINE_integer("port", 8008, "Port to listen on; 0 for any free one.", 0, 65535)
flags.DEFINE_string("server", None, "HOST:PORT of TensorFlow Serving's REST interface.")
flags.DEFINE_string("model", "igpt", "Name of the model at that server.")


def main() -> None:
    """Flags -> backend -> page, until interrupted."""
    flag = flags.FLAGS
    if not flag.server:
        cli.require_flags("saved_model")
    with _listen(flag.host, flag.port) as listener:  # first, as loading a model takes seconds
        runtime.import_tensorflow()
        from igpt_tf.playground import app

        host = f"[{flag.host}]" if ":" in flag.host else flag.host
        is_local = host in app.LOCAL_HOSTS
        hosts = app.LOCAL_HOSTS if is_local else None
        server = app.create_server(app.create_app(_backend(), hosts), listener)
        if not is_local:
            print(
                f"warning: --host={flag.host} lets other machines use this page, without a "
                "password",
                file=sys.stderr,
            )
        print(f"http://{host}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
        server.run()
    raise KeyboardInterrupt  # which the server catches


def _listen(host: str, port: int) -> socket.socket:
    """Raises: InputError: The port is taken, or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]
        raise InputError(
            f"cannot listen there ({reason}); choose another --host or --port. "
            f"Received: host={host}, port={port}"
        ) from None


def _backend():
    from igpt_tf.playground.backends import LocalModel, ServedModel

    flag = flags.FLAGS
    if not flag.server:
        return LocalModel(flag.saved_model)
    client = Client(Rest(ServerAddress(flag.server, flag.model)))
    known = metadata.read_metadata(metadata.find(flag.saved_model)) if flag.saved_model else None
    return ServedModel(client, flag.server, known)


if __name__ == "__main__":
    cli.run(main)
