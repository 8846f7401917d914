"""Asks a model behind TensorFlow Serving: features, classify, score, sample or complete.

python -m tools.serving_client --ask=complete --images=FILE,FOLDER --workdir=DIR
python -m tools.serving_client --ask=sample --num_images=16 --workdir=DIR --grpc --server=HOST:8500

How to start a server: docs/serving.md. gRPC needs `pip install -r requirements-serving.txt`.
"""

from absl import flags

from igpt_tf import cli, files, runtime
from igpt_tf.serving import asking
from igpt_tf.serving.addresses import Address
from igpt_tf.serving.client import Client

flags.DEFINE_enum("ask", None, list(asking.QUESTIONS), "What to ask.")
flags.DEFINE_string("workdir", None, "Where the answers go, as JSON and PNGs.")
flags.DEFINE_string("server", None, "HOST:PORT; localhost:8501 for REST, :8500 for gRPC.")
flags.DEFINE_bool("grpc", False, "Speak gRPC instead of REST.")
flags.DEFINE_string("model", "igpt", "The model's name at the server.")
flags.DEFINE_integer("model_version", None, "A version of it; the newest by default.")
flags.DEFINE_float("timeout", 300.0, "Seconds to wait for an answer.")
flags.DEFINE_integer("batch_size", 16, "Images of one request.")
flags.DEFINE_list("images", None, "PNG or JPEG files, or folders of them.")
flags.DEFINE_integer("num_images", 16, "How many samples.")
flags.DEFINE_integer("seed", 0, "Image i is that of seed + i.")
flags.DEFINE_float("temperature", 1.0, "Below 1: safer choices of colours; above: wilder.")
flags.DEFINE_integer("top_k", 0, "Choose among so many best colours; 0 for all.")
flags.DEFINE_float("top_p", 1.0, "Choose among the best colours of so much probability.")
flags.DEFINE_string("num_given", "0.5", "Complete: a share of the image, or a number of rows.")

_CHOICE = ("seed", "temperature", "top_k", "top_p")
_ARGUMENTS = {
    "features": ("images",),
    "classify": ("images",),
    "score": ("images",),
    "sample": ("num_images", *_CHOICE),
    "complete": ("images", "num_given", *_CHOICE),
}


def main() -> None:
    """Flags -> one question -> files."""
    cli.require_flags("ask", "workdir")
    flag = flags.FLAGS
    workdir = files.make_workdir(flag.workdir)
    client = Client(_transport(), flag.batch_size)
    arguments = {name: flag[name].value for name in _ARGUMENTS[flag.ask]}
    print(asking.QUESTIONS[flag.ask](client, workdir, **arguments))


def _transport():
    flag = flags.FLAGS
    server = flag.server or ("localhost:8500" if flag.grpc else "localhost:8501")
    address = Address(server, flag.model, flag.model_version, flag.timeout)
    if flag.grpc:
        runtime.import_tensorflow()
        from igpt_tf.serving.over_grpc import Grpc

        return Grpc(address)
    from igpt_tf.serving.rest import Rest

    return Rest(address)


if __name__ == "__main__":
    cli.run(main)
