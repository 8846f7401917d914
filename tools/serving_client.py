"""Sends image files or a request for samples to a model behind TensorFlow Serving.

python -m tools.serving_client --ask=complete --images=FILE,FOLDER --workdir=DIR
python -m tools.serving_client --ask=sample --num_images=16 --workdir=DIR --grpc --server=HOST:8500
python -m tools.serving_client --ask=inpaint --images=FOLDER --known=MASK.png --workdir=DIR

docs/serving.md explains how to start a server. gRPC needs
`pip install -r requirements-serving.txt`.
"""

from absl import flags

from igpt_tf import cli, files, runtime
from igpt_tf.errors import InputError
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.serving.client import Client
from igpt_tf.serving.file_requests import REQUESTS
from igpt_tf.serving.transports import Grpc, Rest, ServerAddress

flags.DEFINE_enum("ask", None, list(REQUESTS), "The request.")
flags.DEFINE_string("workdir", None, "Folder for the results, as JSON and PNG files.")
flags.DEFINE_string("server", None, "HOST:PORT; localhost:8501 for REST, :8500 for gRPC.")
flags.DEFINE_bool("grpc", False, "Use gRPC instead of REST.")
flags.DEFINE_string("model", "igpt", "Name of the model at the server.")
flags.DEFINE_integer("model_version", None, "Version of the model (default: the newest).")
flags.DEFINE_float("timeout", 300.0, "Seconds within which an answer must be complete.")
flags.DEFINE_integer("batch_size", 16, "Images per request.")
flags.DEFINE_list("images", None, "Image files, or folders of them.")
flags.DEFINE_integer("num_images", 16, "sample: number of images.")
flags.DEFINE_integer("seed", 0, "Random seed; image i uses seed + i.")
flags.DEFINE_float("temperature", 1.0, "Divisor of the logits; below 1 less diverse, above more.")
flags.DEFINE_integer("top_k", 0, "Sample from this many most likely colours; 0 for all.")
flags.DEFINE_float("top_p", 1.0, "Sample from the most likely colours of this total probability.")
flags.DEFINE_string("num_given", "0.5", "complete: share of the image, or number of rows, kept.")
flags.DEFINE_string("known", None, "inpaint: an image file; bright pixels are kept.")
flags.DEFINE_integer("num_rounds", 8, "inpaint: number of forward passes.")

_PARAMS = ("seed", "temperature", "top_k", "top_p")
_FLAGS = {  # of each request
    "features": ("images",),
    "classify": ("images",),
    "score": ("images",),
    "sample": ("num_images", *_PARAMS),
    "complete": ("images", "num_given", *_PARAMS),
    "inpaint": ("images", "known", "num_rounds", *_PARAMS),
}


def main() -> None:
    """Flags -> one request -> files."""
    cli.require_flags("ask", "workdir")
    flag = flags.FLAGS
    if flag.ask == "inpaint":
        cli.require_flags("known")
    if flag.ask == "inpaint":
        cli.require_flags("known")
    arguments = {name: flag[name].value for name in _FLAGS[flag.ask]}
    for name in sorted(set().union(*_FLAGS.values()) - arguments.keys()):
        if flag[name].present:
            raise InputError(
                f"--ask={flag.ask} does not use --{name}; leave it out, or ask for something else. "
                f"Received: {name}={flag[name].value}"
            )
    if "seed" in arguments:
        params = {name: arguments.pop(name) for name in _PARAMS}
        arguments["params"] = SamplingParams(**params)
    workdir = files.make_workdir(flag.workdir)
    client = Client(_transport(), flag.batch_size)
    report = REQUESTS[flag.ask](client, workdir, **arguments)
    print(report.summary)
    report.check(workdir)


def _transport() -> Grpc | Rest:
    flag = flags.FLAGS
    server = flag.server or ("localhost:8500" if flag.grpc else "localhost:8501")
    address = ServerAddress(server, flag.model, flag.model_version, flag.timeout)
    if not flag.grpc:
        return Rest(address)
    runtime.import_tensorflow()
    return Grpc(address)


if __name__ == "__main__":
    cli.run(main)
