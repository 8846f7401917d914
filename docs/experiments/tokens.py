"""Images to token arrays for train_on_gpu.py, and its weights to a SavedModel.

    python docs/experiments/tokens.py --image_folder=data/cifar10 --image_size=16 --images \
        --out=data/c16.npz
    python docs/experiments/tokens.py --image_folder=data/mnist --image_size=28 --palette=grey \
        --out=data/mnist.npz
    python docs/experiments/tokens.py --image_folder=data/cifar10 --image_size=16 \
        --weights=out/autoregressive.weights.h5 --results=out/results.json --name=autoregressive \
        --out=runs/cifar10_16/export
"""

import argparse
import json

import numpy as np

from igpt_tf.data import image_folder
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import write_pretrained

NANO = {"num_layers": 8, "hidden_dim": 128, "num_heads": 4}


def write_tokens(path: str, source, palette: Palette, with_images: bool) -> None:
    """Writes {split, split_labels} of a source as one .npz file, with images for Wide ResNets."""
    arrays = {}
    for split in ("train", "valid", "test"):
        images, labels = getattr(source, split).arrays()
        shape = images.shape[:3]
        arrays[split] = palette.encode(images).reshape(shape).astype("uint16")
        arrays[f"{split}_labels"] = labels.astype("uint8")
        if with_images:
            arrays[f"{split}_images"] = images
    np.savez_compressed(path, **arrays)


def write_model(path: str, source, palette: Palette, weights: str, results: dict) -> None:
    """Writes weights of train_on_gpu.py as a SavedModel with its losses in the metadata."""
    sizes = {**NANO, "vocabulary_size": len(palette)}
    causal = results["objective"] == "autoregressive"
    model = ImageGPT(image_size=source.image_size, causal=causal, **sizes)
    model.load_weights(weights)
    write_pretrained(
        model,
        palette,
        f"{path}/{results['steps']}",
        objective={"name": results["objective"]},
        data=source.description,
        class_names=source.class_names,
        step=results["steps"],
        nats_per_token=results["valid_nats"],
    )


def main():
    """Writes token arrays, or with --weights a SavedModel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--image_folder", help="Folder with train/CLASS/* and test/CLASS/*.")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--palette", default="data/openai_palette_512.npy", help="Or grey.")
    parser.add_argument("--images", action="store_true", help="Also the images themselves.")
    parser.add_argument("--weights", help="Weights file of train_on_gpu.py.")
    parser.add_argument("--results", help="results.json of train_on_gpu.py.")
    parser.add_argument("--name", help="Key of the model in results.json.")
    parser.add_argument("--out", required=True)
    flags = parser.parse_args()
    size = (flags.image_size, flags.image_size)
    source = image_folder(directory=flags.image_folder, image_size=size, heldout=0.1)
    grey = flags.palette == "grey"
    palette = Palette.grey(256) if grey else Palette(np.load(flags.palette))
    if flags.weights:
        with open(flags.results) as f:
            results = json.load(f)[flags.name]
        write_model(flags.out, source, palette, flags.weights, results)
    else:
        write_tokens(flags.out, source, palette, with_images=flags.images)


if __name__ == "__main__":
    main()
