"""Every shipped run file starts: its configuration parses, and its model and data fit together."""

import gzip
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import gin
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from igpt_tf import config
from igpt_tf.data import ArrayExamples, Source
from igpt_tf.data.tfrecords import write_shards
from igpt_tf.errors import InputError
from igpt_tf.evaluation.finetune import finetune
from igpt_tf.evaluation.supervised_baseline import supervised_baseline
from igpt_tf.palette import Palette
from igpt_tf.training.train import train

RUNS = sorted(Path("gin/runs").glob("*.gin"))
WEIGHTS = {  # of the paper's models
    "imagenet32_s": "76,571,648",
    "imagenet32_m": "455,157,760",
    "imagenet32_l_ar": "1,362,250,752",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a palette of 512 colours and small data sets in their own formats."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    Palette(rng.uniform(-1, 1, (512, 3)).astype("float32")).save(root / "palette.npy")
    write_cifar(root, rng)
    write_mnist(root, rng)
    for i in range(60):
        folder = root / "images" / "train" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(rng, 300, 280)).save(folder / f"{i}.png")
    web = ArrayExamples(random_images(rng, 20, 64, 64))
    write_shards(Source(web, web, None, None), str(root / "web64"), images_per_shard=8)
    return root


@pytest.fixture(scope="module", autouse=True)
def _shared_tables():
    """One table per palette for all run files: each takes seconds."""
    compute, tables = Palette.table.func, {}

    def table(palette):
        if palette.fingerprint not in tables:
            tables[palette.fingerprint] = compute(palette)
        return tables[palette.fingerprint]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Palette, "table", property(table))
        yield


def random_images(rng, *shape):
    return rng.integers(0, 256, (*shape, 3), dtype="uint8")


def write_cifar(root, rng):
    names = {10: [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 100: ["train", "test"]}
    folders = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
    for classes, folder in folders.items():
        (root / folder).mkdir()
        kind, meta = ("", "batches.meta") if classes == 10 else ("fine_", "meta")
        for name in names[classes]:
            content = {
                b"data": random_images(rng, 100, 32, 32).reshape(100, 3072),
                f"{kind}labels".encode(): [i % classes for i in range(100)],
            }
            (root / folder / name).write_bytes(pickle.dumps(content))
        class_names = [f"class{i}".encode() for i in range(classes)]
        content = {f"{kind}label_names".encode(): class_names}
        (root / folder / meta).write_bytes(pickle.dumps(content))


def write_mnist(root, rng):
    (root / "mnist").mkdir()
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (20, 28, 28), dtype="uint8")
        labels = np.arange(20, dtype="uint8") % 10
        for array, name in ((images, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = root / "mnist" / f"{part}-{name}.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))


class FakeBuilder:
    """A builder of TensorFlow Datasets with random images, instead of a download."""

    def __init__(self, name):
        self.name = name
        label = SimpleNamespace(names=[f"class{i}" for i in range(10)])
        split = SimpleNamespace(num_examples=20)
        self.info = SimpleNamespace(
            features={"image": None, "label": label}, splits={"train": split, "test": split}
        )

    def download_and_prepare(self):
        pass

    def as_dataset(self, **_):
        images = random_images(np.random.default_rng(0), 20, 96, 96)
        labels = np.arange(20) % 10
        return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})


def bindings_for(text, data):
    """Bindings that replace the paths of a run file by those of the test data."""
    paths = {
        "cifar10.directory": ("cifar10.gin", "cifar-10-batches-py"),
        "cifar100.directory": ("cifar100.gin", "cifar-100-python"),
        "mnist.directory": ("mnist.gin", "mnist"),
        "tfrecords.directory": ("web_mixture.gin", "web64"),
        "load_palette.path": ("512", "palette.npy"),
    }
    found = [f"{name} = '{data / path}'" for name, (mark, path) in paths.items() if mark in text]
    if any(mark in text for mark in ("imagenet.gin", "image_folder.gin", "web_mixture.gin")):
        found.append(f"image_folder.directory = '{data / 'images'}'")
    return found


def dry_run(path, data):
    text = path.read_text()
    colours = "digits" not in text and "mnist" not in text
    # A mesh for shards can only be created before TensorFlow is used: one device stands in for it.
    one_device = "train.strategy = @default_strategy()"
    bindings = bindings_for(text + ("512" if colours else ""), data)
    config.parse([str(path)], [*bindings, one_device])
    train(workdir=None, dry_run=True)
    gin.clear_config()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_builds_its_model_and_loads_a_batch(path, data, capsys, monkeypatch):
    if path.stem.startswith("stl10"):
        import tensorflow_datasets as tfds

        monkeypatch.setattr(tfds, "builder", lambda name, **_: FakeBuilder(name))
    dry_run(path, data)
    output = capsys.readouterr().out
    assert "weights" in output
    for name, count in WEIGHTS.items():
        assert not path.stem.startswith(name) or "masked" in path.stem or count in output


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_file_has_a_header_and_at_most_a_dozen_bindings(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and "python -m igpt_tf.main" in lines[1]
    assert f"--gin_file={path}" in lines[1] and max(map(len, lines)) <= 110
    assert sum("=" in line for line in lines if not line.startswith("#")) <= 12


@pytest.mark.parametrize(
    "binding",
    [
        "train.source = @grey_palette()",
        "train.palette = @digits()",
        "train.strategy = @step_options()",
        "train.build_model = @build_optimizer",
        "train.augmentation = [@digits()]",
        "train.augmentation = [@shift]",
        "train.augmentation = @shift()",
    ],
)
def test_a_function_of_the_wrong_kind_is_refused(binding):
    with pytest.raises(InputError, match=binding.split(" ")[0]):
        config.parse(["gin/runs/digits_tiny_ar.gin"], [binding])


@pytest.mark.parametrize("function", [train, finetune, supervised_baseline])
def test_an_augmentation_without_parentheses_is_refused_with_the_fix(function):
    name = function.__name__
    binding = f"{name}.augmentation = [@flip(), @shift]"
    with pytest.raises(InputError, match=rf"{name}.augmentation must be .*write @shift\(\)"):
        config.parse([], [binding])
