"""Every run file that ships is a claim that can be started."""

import glob
import pickle

import gin
import numpy as np
import pytest
from PIL import Image

from igpt_tf import config
from igpt_tf.data import ArrayExamples, Source, shards
from igpt_tf.palette import Palette
from igpt_tf.training.train import train

RUNS = sorted(glob.glob("gin/runs/*.gin"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A palette of 512 colours, CIFAR-10 in its own format and a folder of pictures."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    Palette(rng.uniform(-1, 1, (512, 3)).astype("float32")).save(root / "palette.npy")
    cifar = root / "cifar-10-batches-py"
    cifar.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {
            b"data": rng.integers(0, 256, (20, 3072), dtype="uint8"),
            b"labels": list(range(10)) * 2,
        }
        (cifar / name).write_bytes(pickle.dumps(batch))
    names = [bytes(f"class{i}", "ascii") for i in range(10)]
    (cifar / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    for i in range(60):
        folder = root / "images" / "train" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (300, 280, 3), dtype="uint8")
        Image.fromarray(picture).save(folder / f"{i}.png")
    web = ArrayExamples(rng.integers(0, 256, (20, 64, 64, 3), dtype="uint8"))
    shards.write(Source(web, web, None, None), str(root / "web64"), images_per_shard=8)
    return root


def bindings_for(path, data):
    """Points a run file to the data at hand."""
    with open(path) as file:
        text = file.read()
    if "digits" in path:
        return []
    paths = [f"load_palette.path = '{data}/palette.npy'"]
    if "cifar10" in path:
        return [*paths, f"cifar10.directory = '{data}/cifar-10-batches-py'"]
    assert "imagenet" in text or "image_folder" in text or "web_mixture" in text
    if "web_mixture" in text:
        paths.append(f"tfrecords.directory = '{data}/web64'")
    return [*paths, f"image_folder.directory = '{data}/images'"]


@pytest.mark.parametrize("path", RUNS)
def test_every_shipped_run_file_parses_and_builds(path, data, capsys):
    config.parse([path], bindings_for(path, data))
    train(workdir=None, dry_run=True)
    assert "weights" in capsys.readouterr().out
    gin.clear_config()


def test_the_paper_models_have_the_papers_sizes(data, capsys):
    for name, count in (("s", "76,571,648"), ("m", "455,157,760"), ("l", "1,362,250,752")):
        path = f"gin/runs/imagenet32_{name}_ar.gin"
        config.parse([path], bindings_for(path, data))
        train(workdir=None, dry_run=True)
        assert count in capsys.readouterr().out
        gin.clear_config()


@pytest.mark.parametrize("path", RUNS)
def test_a_run_file_is_includes_and_a_dozen_bindings_under_a_header(path):
    with open(path) as file:
        lines = file.read().splitlines()
    assert lines[0].startswith("# ") and "python -m igpt_tf.main" in lines[1]
    assert sum("=" in line for line in lines if not line.startswith("#")) <= 12
