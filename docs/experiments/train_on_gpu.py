"""Trains this package's networks with Keras on JAX, for machines that have a GPU and no TensorFlow.

The network, the objectives and the Wide ResNet are those of `igpt_tf`; the loop, the augmentation
and the optimizer's schedule are written here for JAX. docs/results.md has the results.

    # Where TensorFlow is: images to tokens, and at the end weights to a SavedModel.
    python docs/experiments/tokens.py --image_folder=data/cifar10 --image_size=16 --images \
        --out=data/c16.npz
    python docs/experiments/tokens.py --weights=out/c16_ar.weights.h5 --data=data/c16.npz --out=DIR
    # Where the GPU is:
    KERAS_BACKEND=jax python docs/experiments/train_on_gpu.py cifar16 --data=data/c16.npz --out=out

Every training has a budget of seconds: its number of steps is what fits into the budget, at most
the steps of the given number of tokens per parameter.
"""

import argparse
import functools
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import keras
import numpy as np
import probe

from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.model.wide_resnet import wide_resnet
from igpt_tf.objectives import Autoregressive, Joint, Masked

START = time.time()
CHUNK = 50  # steps per call of the compiled loop
SCORED = 500  # images per call when scoring
NUM_MASKS = 5


class Run:
    """Results of this run, written after every change."""

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.results = folder, {"device": jax.devices()[0].device_kind}

    def record(self, name: str, **values):
        self.results.setdefault(name, {}).update(values)
        shown = {key: value for key, value in values.items() if not isinstance(value, list)}
        print(f"{time.time() - START:6.0f} s  {name}: {shown}", flush=True)
        with open(os.path.join(self.folder, "results.json"), "w") as f:
            json.dump(self.results, f, indent=1)

    def save_weights(self, name: str, model):
        model.save_weights(os.path.join(self.folder, f"{name}.weights.h5"))


def load_data(path: str) -> dict:
    """The arrays of tokens.py: {split: tokens, split + "_labels": int32[N]} on the device."""
    with np.load(path) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    return {
        name: jnp.asarray(value.astype("int32") if "labels" in name else value)
        for name, value in data.items()
        if value.dtype.kind in "iu"
    }


def augment(key, images, padding: int, flip: bool):
    """Reflect-pads, crops and flips each image at random. uint[B,H,W,...]."""
    batch, height, width = images.shape[:3]
    rows, columns, mirror = jax.random.split(key, 3)
    if padding:
        rest = ((0, 0),) * (images.ndim - 3)
        padded = jnp.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, *rest), mode="reflect")
        top = jax.random.randint(rows, (batch,), 0, 2 * padding + 1)
        left = jax.random.randint(columns, (batch,), 0, 2 * padding + 1)

        def crop(image, top, left):
            start = (top, left, *(0,) * (image.ndim - 2))
            return jax.lax.dynamic_slice(image, start, (height, width, *image.shape[2:]))

        images = jax.vmap(crop)(padded, top, left)
    if flip:
        mirrored = jax.random.bernoulli(mirror, 0.5, (batch,))
        mirrored = mirrored.reshape(-1, *(1,) * (images.ndim - 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def random_mask(key, shape, probability: float = 0.15):
    """As `Masked.random_inputs`: bool[B,T] with at least one hidden position per image."""
    uniform = jax.random.uniform(key, shape)
    return (uniform < probability) | (uniform == uniform.min(axis=1, keepdims=True))


def learning_rates(peak: float, num_steps: int, warmup: int) -> np.ndarray:
    """Linear warm-up, then cosine to zero, float32[num_steps]."""
    steps = np.arange(num_steps)
    cosine = 0.5 * (1 + np.cos(np.pi * (steps - warmup) / max(1, num_steps - warmup)))
    return (peak * np.where(steps < warmup, (steps + 1) / warmup, cosine)).astype("float32")


class Training:
    """A compiled loop over training steps.

    Args:
        model: Keras model.
        optimizer: Keras optimizer; its learning rate is set for every step.
        loss: Function (images, labels, key) -> scalar that calls `model`.
        images: Training images or tokens, uint[N,H,W,...].
        labels: int32[N] or None.
        batch_size: Images per step.
        padding: Pixels of the random shift.
        flip: Whether to mirror at random.
    """

    def __init__(self, model, optimizer, loss, images, labels, *, batch_size, padding=0, flip=True):
        self.model, self.optimizer = model, optimizer
        optimizer.build(model.trainable_variables)
        rate_index = [v is optimizer._learning_rate for v in optimizer.variables].index(True)
        labels = jnp.zeros(len(images), "int32") if labels is None else labels
        trainable, fixed = model.trainable_variables, model.non_trainable_variables

        def loss_of(weights, state, images, labels, key):
            mapping = [*zip(trainable, weights, strict=True), *zip(fixed, state, strict=True)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                value = loss(images, labels, key)
                new_state = [scope.get_current_value(v) for v in fixed]
            new_state = [s if n is None else n for n, s in zip(new_state, state, strict=True)]
            return value, new_state

        def step(carry, inputs, data, pool):
            weights, state, slots = carry
            key, rate = inputs
            rows, shifts, random_inputs = jax.random.split(key, 3)
            rows = pool[jax.random.randint(rows, (batch_size,), 0, len(pool))]
            batch = augment(shifts, data[0][rows], padding, flip)
            (value, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                weights, state, batch, data[1][rows], random_inputs
            )
            slots = [*slots[:rate_index], rate, *slots[rate_index + 1 :]]
            weights, slots = optimizer.stateless_apply(slots, gradients, weights)
            return (weights, state, slots), value

        @functools.partial(jax.jit, donate_argnums=0)
        def chunk(carry, keys, rates, data, pool):
            body = functools.partial(step, data=data, pool=pool)
            return jax.lax.scan(body, carry, (keys, rates))

        self._chunk, self._data = chunk, (images, labels)
        self._initial = [
            [np.array(v.value) for v in group] for group in (trainable, fixed, optimizer.variables)
        ]

    def seconds_per_step(self) -> tuple[float, float]:
        """(seconds of compilation and the first chunk, seconds per step afterwards)."""
        start = time.time()
        self.run(CHUNK, 1e-6, 1)
        first = time.time() - start
        start = time.time()
        self.run(CHUNK, 1e-6, 1)
        return first, (time.time() - start) / CHUNK

    def run(self, num_steps, peak, warmup, *, seed=0, pool=None, evaluate=None, every=0):
        """Trains from the initial weights and leaves the last weights in the model.

        Args:
            num_steps: A multiple of `CHUNK`.
            peak: Peak learning rate.
            warmup: Steps of warm-up.
            seed: Random seed.
            pool: int32[P], the images to draw from; None for all.
            evaluate: Function () -> number; the weights with the highest are kept.
            every: Steps between evaluations.

        Returns:
            (list of the mean loss of every chunk, list of the evaluations).
        """
        pool = np.arange(len(self._data[0])) if pool is None else pool
        # One length for all subsets, so that the loop is compiled once.
        pool = jnp.asarray(np.resize(np.random.default_rng(0).permutation(pool), 50_000))
        carry = jax.tree.map(jnp.asarray, tuple(self._initial))
        rates = learning_rates(peak, num_steps, warmup)
        keys = jax.random.split(jax.random.key(seed), num_steps)
        losses, scores, best = [], [], None
        for start in range(0, num_steps, CHUNK):
            part = slice(start, start + CHUNK)
            carry, values = self._chunk(carry, keys[part], rates[part], self._data, pool)
            losses.append(values)
            done = start + CHUNK
            if evaluate and (done % every == 0 or done == num_steps):
                self._assign(carry)
                scores.append([done, evaluate()])
                if scores[-1][1] >= max(score for _, score in scores):
                    best = [np.array(v.value) for v in self.model.variables]
        self._assign(carry)
        if best:
            for variable, value in zip(self.model.variables, best, strict=True):
                variable.assign(value)
        return [float(values.mean()) for values in losses], scores

    def _assign(self, carry):
        groups = self.model.trainable_variables, self.model.non_trainable_variables
        for variables, values in zip(groups, carry, strict=False):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(jnp.copy(value))


def mapped(model, function):
    """Compiles function(*batches) of the model's current weights; maps it over whole arrays."""

    @jax.jit
    def compiled(weights, *batch):
        with keras.StatelessScope(list(zip(model.variables, weights, strict=True))):
            return function(*batch)

    def call(*arrays):
        weights = [v.value for v in model.variables]
        starts = range(0, len(arrays[0]), SCORED)
        return np.concatenate(
            [np.asarray(compiled(weights, *(a[s : s + SCORED] for a in arrays))) for s in starts]
        )

    return call


def flat(tokens):
    """uint[B,H,W] -> int32[B,T]."""
    return tokens.reshape(len(tokens), -1).astype("int32")


def pretrain(run, name, data, *, objective, sizes, peak, batch_size, ratio, budget, padding, flip):
    """Pretrains a network and records its loss on held-out and test images."""
    height, width = data["train"].shape[1:]
    model = ImageGPT(image_size=(height, width), causal=objective.causal, **sizes)
    random = {} if objective.causal else {"masked": random_mask}

    def loss(images, labels, key):
        tokens = flat(images)
        inputs = {k: make(key, tokens.shape) for k, make in random.items()}
        return objective(model, tokens, **inputs).mean()

    adam = keras.optimizers.Adam(0.001, beta_1=0.9, beta_2=0.95, epsilon=1e-8)
    training = Training(
        model, adam, loss, data["train"], None, batch_size=batch_size, padding=padding, flip=flip
    )
    compilation, seconds = training.seconds_per_step()
    tokens_per_step = batch_size * height * width
    wanted = ratio * model.count_params() / tokens_per_step
    num_steps = max(1, round(min(wanted, budget / seconds) / CHUNK)) * CHUNK
    run.record(
        name,
        objective=objective.name,
        parameters=model.count_params(),
        steps=num_steps,
        batch_size=batch_size,
        peak_learning_rate=peak,
        tokens_per_parameter=num_steps * tokens_per_step / model.count_params(),
        seconds_of_compilation=compilation,
        seconds_per_step=seconds,
    )
    start = time.time()
    losses, _ = training.run(num_steps, peak, min(500, num_steps // 10))
    seconds = time.time() - start

    def nats(tokens, masked):
        inputs = {} if objective.causal else {"masked": masked}
        return objective(model, flat(tokens), **inputs)

    score = mapped(model, nats)
    scores = {
        f"{split}_nats": float(
            score(data[split], random_mask(jax.random.key(1), flat(data[split]).shape)).mean()
        )
        for split in ("valid", "test")
        if split in data
    }
    run.save_weights(name, model)
    run.record(name, seconds=seconds, **scores, losses=losses[:: max(1, len(losses) // 100)])
    return model


def write_features(model, data, path: str, masked: bool):
    """Writes features of all splits, float16[masks,N,L+1,D], for the probes."""

    def of(tokens, mask):
        return model.features(flat(tokens), mask if masked else None).astype("float16")

    compute = mapped(model, of)
    for split in ("train", "valid", "test"):
        views = [
            compute(data[split], random_mask(jax.random.key(10 + i), flat(data[split]).shape))
            for i in range(NUM_MASKS if masked and split != "train" else 1)
        ]
        np.save(f"{path}_{split}.npy", np.stack(views))
    labels = {split: np.asarray(data[f"{split}_labels"]) for split in ("train", "valid", "test")}
    np.savez(f"{path}_labels.npz", **labels)


def start_probes(pool, model, data, path: str, masked: bool = False) -> list:
    """Starts a probe of every layer; returns futures."""
    write_features(model, data, path, masked)
    layers = range(model.num_layers + 1)
    return [pool.submit(probe.probe_layer, path, layer) for layer in layers]


def few_labels(pool, path: str, layer: int) -> list:
    """Probes one layer from 4, 25 and 400 labels per class, five subsets each; futures."""
    cases = [(k, i) for k in (4, 25, 400) for i in range(5)]
    return [pool.submit(probe.probe_few_labels, path, layer, k, i) for k, i in cases]


def finetune(
    run, name, network, data, *, generative, peaks, num_steps, batch_size, padding, seeds=(0,)
):
    """Fine-tunes with L_GEN + L_CLF or L_CLF alone; the best held-out step and rate.

    All rates are tried with the first seed, the best one with the others.
    """
    objective = Joint(Autoregressive(), generative_weight=float(generative))
    model = Classifier(network, 10, generative=generative)

    def loss(images, labels, key):
        return objective(model, flat(images), labels).mean()

    adam = keras.optimizers.Adam(0.001, beta_1=0.9, beta_2=0.95, epsilon=1e-8)
    training = Training(
        model,
        adam,
        loss,
        data["train"],
        data["train_labels"],
        batch_size=batch_size,
        padding=padding,
    )
    predict = mapped(model, lambda tokens: jnp.argmax(model(flat(tokens)), -1))

    def accuracy(split):
        return float(np.mean(predict(data[split]) == np.asarray(data[f"{split}_labels"])))

    def train(peak, seed):
        start = time.time()
        _, scores = training.run(
            num_steps,
            peak,
            num_steps // 20,
            seed=seed,
            evaluate=lambda: accuracy("valid"),
            every=250,
        )
        step, valid = max(scores, key=lambda pair: pair[1])
        row = {"peak": peak, "step": step, "valid_accuracy": valid}
        row["test_accuracy"] = accuracy("test")
        rows.append({**row, "seed": seed, "curve": scores, "seconds": time.time() - start})
        run.record(name, rows=rows)
        return row

    rows = []
    best = max((train(peak, seeds[0]) for peak in peaks), key=lambda row: row["valid_accuracy"])
    run.record(name, **best)
    for seed in seeds[1:]:
        train(best["peak"], seed)


def train_wide_resnets(run, data, *, num_steps, few_steps, subsets):
    """WRN-16-4 on all labels and on 4, 25 and 400 per class."""
    images = data["train_images"]
    model = wide_resnet(image_size=images.shape[1:3], num_classes=10)

    def loss(images, labels, key):
        logits = model(images, training=True)
        nats = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return nats.mean() + sum(model.losses)

    sgd = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    padding = images.shape[1] // 8
    training = Training(
        model, sgd, loss, images, data["train_labels"], batch_size=128, padding=padding
    )
    predict = mapped(model, lambda images: jnp.argmax(model(images, training=False), -1))

    def accuracy(split):
        return float(
            np.mean(predict(data[f"{split}_images"]) == np.asarray(data[f"{split}_labels"]))
        )

    labels = np.asarray(data["train_labels"])
    for k in (4, 25, 400, None):
        accuracies = []
        for subset in range(subsets if k else 1):
            rng = np.random.default_rng((k or 0, subset))
            pool = np.concatenate(
                [rng.permutation(np.flatnonzero(labels == c))[:k] for c in range(10)]
            )
            start = time.time()
            steps = few_steps if k else num_steps
            _, scores = training.run(
                steps, 0.1, 1, seed=subset, pool=pool, evaluate=lambda: accuracy("valid"), every=250
            )
            accuracies.append(accuracy("test"))
        run.record(
            f"wide_resnet_{k or 'all'}",
            parameters=model.count_params(),
            steps=steps,
            test_accuracies=accuracies,
            test_accuracy=float(np.mean(accuracies)),
            valid_curve=scores,
            seconds_of_the_last=time.time() - start,
        )


NANO = {"num_layers": 8, "hidden_dim": 128, "num_heads": 4}


def cifar16(run, data, scale: float):
    """16x16: both objectives, probes, few labels, fine-tuning, Wide ResNets."""
    pool = ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn"))
    models, futures = {}, {}
    for name, objective in (("autoregressive", Autoregressive()), ("masked", Masked())):
        models[name] = pretrain(
            run,
            name,
            data,
            objective=objective,
            sizes={**NANO, "vocabulary_size": 512},
            peak=0.003,
            batch_size=128,
            ratio=200,
            budget=90 * scale,
            padding=2,
            flip=True,
        )
        masked = not objective.causal
        futures[name] = start_probes(pool, models[name], data, f"/tmp/{name}", masked)
        if masked:
            futures["masked, nothing hidden"] = start_probes(
                pool, models[name], data, "/tmp/unmasked"
            )
    few = None
    settings = {"batch_size": 128, "padding": 2, "num_steps": max(1, round(40 * scale)) * CHUNK}
    pretrained = [np.array(v.value) for v in models["autoregressive"].variables]
    for name, start, generative, peaks in (
        ("joint", pretrained, True, (1e-3, 3e-4)),
        ("classes_alone", pretrained, False, (1e-3, 3e-4)),
        ("joint_from_scratch", None, True, (3e-3, 1e-3)),
    ):
        network = ImageGPT(image_size=(16, 16), causal=True, **NANO, vocabulary_size=512)
        if start:
            for variable, value in zip(network.variables, start, strict=True):
                variable.assign(value)
        finetune(run, name, network, data, generative=generative, peaks=peaks, **settings)
        if few is None:
            rows = [future.result() for future in futures["autoregressive"]]
            best = max(rows, key=lambda row: row["valid_accuracy"])["layer"]
            few = few_labels(pool, "/tmp/autoregressive", best)
    for name, tasks in futures.items():
        run.record(f"probe of {name}", rows=[task.result() for task in tasks])
    run.record("few labels", rows=[task.result() for task in few])
    num_steps, few_steps = (max(1, round(chunks * scale)) * CHUNK for chunks in (80, 20))
    train_wide_resnets(run, data, num_steps=num_steps, few_steps=few_steps, subsets=3)


def cifar32(run, data, scale: float):
    """32x32: one autoregressive model and its probes."""
    pool = ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn"))
    model = pretrain(
        run,
        "autoregressive",
        data,
        objective=Autoregressive(),
        sizes={**NANO, "vocabulary_size": 512},
        peak=0.003,
        batch_size=64,
        ratio=200,
        budget=150 * scale,
        padding=4,
        flip=True,
    )
    tasks = start_probes(pool, model, data, "/tmp/autoregressive")
    rows = [task.result() for task in tasks]
    run.record("probe of autoregressive", rows=rows)
    best = max(rows, key=lambda row: row["valid_accuracy"])["layer"]
    few = few_labels(pool, "/tmp/autoregressive", best)
    run.record("few labels", rows=[task.result() for task in few])


def mnist(run, data, scale: float):
    """28x28: the small model in 16 greys."""
    pretrain(
        run,
        "greys16",
        {"train": data["train"] // 16, "test": data["test"] // 16},
        objective=Autoregressive(),
        sizes={"num_layers": 8, "hidden_dim": 16, "num_heads": 2, "vocabulary_size": 16},
        peak=0.01,
        batch_size=64,
        ratio=10_000,
        budget=25 * scale,
        padding=0,
        flip=False,
    )


def finetune16(run, data, scale: float, weights: str):
    """Fine-tuning of a 16x16 network with and without L_GEN, three rates and three seeds."""
    settings = {"batch_size": 128, "padding": 2, "num_steps": max(1, round(32 * scale)) * CHUNK}
    settings |= {"peaks": (3e-3, 2e-3, 1e-3), "seeds": (0, 1, 2)}
    for name, generative in (("joint", True), ("classes_alone", False)):
        network = ImageGPT(image_size=(16, 16), causal=True, **NANO, vocabulary_size=512)
        network.load_weights(weights)
        finetune(run, name, network, data, generative=generative, **settings)


EXPERIMENTS = {
    "cifar16": cifar16,
    "cifar32": cifar32,
    "mnist": mnist,
    "finetune16": finetune16,
}


def main():
    """Runs one of the experiments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", required=True, help="Arrays written by tokens.py.")
    parser.add_argument("--out", required=True, help="Folder for results.json and weights.")
    parser.add_argument("--scale", type=float, default=1.0, help="Factor of all budgets.")
    parser.add_argument("--weights", help="Network of cifar16, for finetune16.")
    flags = parser.parse_args()
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    arguments = [Run(flags.out), load_data(flags.data), flags.scale]
    arguments += [flags.weights] if flags.weights else []
    EXPERIMENTS[flags.experiment](*arguments)


if __name__ == "__main__":
    main()
