"""Claims about the benchmark: its arithmetic, its turns, its rivals."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.benchmark import openai_graph, ours, parts, shapes, turns
from igpt_tf.benchmark.worker import Order, timed
from igpt_tf.model import ImageGPT, count_parameters

TITLE = "train step, tiny"


def model_of(shape, causal):
    return ImageGPT(
        image_size=(shape.side, shape.side),
        vocabulary_size=shapes.VOCABULARY_SIZE,
        num_layers=shape.num_layers,
        hidden_dim=shape.hidden_dim,
        num_heads=shape.num_heads,
        causal=causal,
    )


def operations(graph):
    """Every operation of a graph and of the functions that it calls."""
    functions = graph.as_graph_def().library.function
    assert not any("MatMul" in node.op for function in functions for node in function.node_def)
    return graph.get_operations()


def counted_flops(model, shape):
    """Twice the multiplications of every matrix product in the graph of a forward pass."""
    tokens = tf.TensorSpec([shape.batch_size, shape.length], tf.int32)
    graph = tf.function(model.__call__).get_concrete_function(tokens).graph
    total = 0
    for operation in operations(graph):
        if operation.type in ("MatMul", "BatchMatMulV2"):
            flipped = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
            inner = operation.inputs[0].shape[-2 if flipped else -1]
            total += 2 * operation.outputs[0].shape.num_elements() * inner
    return total


def test_the_formula_of_a_forward_pass_counts_its_matrix_products():
    shape = shapes.TINY
    # A masked model computes all pairs of positions, where the formula counts a causal one's.
    unseen_pairs = shape.length**2 - shape.length * (shape.length + 1) // 2
    beyond = 4 * shape.batch_size * shape.num_layers * shape.hidden_dim * unseen_pairs
    counted = counted_flops(model_of(shape, causal=False), shape)
    assert counted == shape.forward_flops() + beyond


def test_a_single_token_costs_two_flops_a_weight_and_attends_to_itself():
    shape = shapes.Shape(num_layers=3, hidden_dim=8, num_heads=2, side=1, batch_size=1)
    matrices = 3 * 12 * 8 * 8 + 512 * 8
    assert shape.forward_flops() == 2 * matrices + 3 * 2 * (2 * 8)
    assert shape.train_flops() == 3 * shape.forward_flops()


def test_causal_attention_in_blocks_computes_less_than_the_whole_square():
    shape = dataclasses.replace(shapes.TINY, side=16)
    causal, whole = (counted_flops(model_of(shape, causal), shape) for causal in (True, False))
    assert shape.forward_flops() < causal < whole


def test_the_plain_gpt_has_exactly_our_number_of_weights():
    pytest.importorskip("torch")
    from igpt_tf.benchmark import plain_gpt

    order = Order("gpt", "train", shapes.TINY, 1, "float32", 1)
    theirs = sum(weight.numel() for weight in plain_gpt.build(order).parameters())
    assert theirs == count_parameters(lambda: model_of(shapes.TINY, causal=True))


def test_the_published_graph_and_ours_are_one_network():
    keras.utils.set_random_seed(0)
    model = model_of(shapes.TINY, causal=True)
    model.output_embedding.assign(np.random.default_rng(1).normal(size=(512, 16)))
    tokens = ours.tokens_of(Order("ours", "train", shapes.TINY, 1, "float32", 1))
    wanted = model(tokens).numpy()
    theirs = openai_graph.logits(model, tokens).numpy()
    assert np.abs(theirs - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_turn_that_does_a_part_counts_as_the_whole():
    def part():
        sum(range(100_000))

    part.times = 1_000_000
    assert timed(part)["seconds"] > 10


def test_ratios_compare_turns_of_the_same_round():
    numbers = {
        "ours": {"seconds": turns.spread([1.0, 2.0, 4.0])},
        "other": {"seconds": turns.spread([2.0, 4.0, 16.0])},
        "absent": {"missing": "no module"},
    }
    ((name, ratio),) = turns.ratios(numbers)
    assert (name, ratio["median"], ratio["min"], ratio["max"]) == ("other", 2.0, 2.0, 4.0)


def test_rivals_share_their_turns_among_several_processes(monkeypatch):
    class Process:
        started = 0

        def __init__(self, order):
            Process.started += 1
            self.order, self.missing, self.number = order, None, Process.started
            self.setup = {"seconds": 1.0, "bytes": 2}

        def turn(self):
            return {"seconds": float(self.number), "cpu_seconds": 0.0}

        def end(self):
            return {"peak_bytes": 10 * self.number, "device_bytes": None}

        def close(self):
            pass

    monkeypatch.setattr(turns, "Rival", Process)
    part = dataclasses.replace(parts.PARTS["train_tiny"], rivals=("ours",), sittings=3)
    ours = turns.measure(part, repeats=4, precision="float32", threads=1)["ours"]
    assert ours["seconds"]["all"] == [1.0, 2.0, 3.0, 3.0]
    assert (ours["peak_bytes"], ours["device_bytes"], ours["first_seconds"]) == (30, None, 1.0)


def test_one_command_writes_medians_with_spread_and_says_who_is_missing(tmp_path):
    command = [sys.executable, "-m", "tools.benchmark", f"--workdir={tmp_path}", "--repeats=3"]
    done = subprocess.run(
        [*command, "--parts=peak,train_tiny"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmark.json").read_text())
    rivals = result["parts"]["train_tiny"]["rivals"]
    seconds = rivals["ours"]["seconds"]
    assert sorted(seconds["all"]) == [seconds["min"], seconds["median"], seconds["max"]]
    assert rivals["ours"]["peak_bytes"] > 2e8
    assert 0 < result["parts"]["train_tiny"]["share_of_peak"]["ours"] < 1
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"{TITLE} ")]
    for name, numbers in rivals.items():
        (row,) = [line for line in rows if line.split()[3:4] == [name]]
        assert ("missing" in numbers) == ("not installed" in row)


def test_an_unknown_part_is_refused_in_one_line():
    command = [sys.executable, "-m", "tools.benchmark", "--parts=nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: parts of the benchmark are ")
    assert done.stderr.count("\n") == 1
