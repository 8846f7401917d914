"""Tests of the benchmark: its arithmetic, its rounds, the other implementations."""

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.benchmark import benchmark, openai_graph, rounds, workloads
from igpt_tf.benchmark.worker import Job, timed
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from tests import programs

TITLE = "training step, smallest"


def model_of(shape, causal):
    return ImageGPT(**shape.architecture, causal=causal)


def operations(graph):
    """Every operation of a graph and of the functions that it calls."""
    functions = graph.as_graph_def().library.function
    assert not any("MatMul" in node.op for function in functions for node in function.node_def)
    return graph.get_operations()


def counted_flops(model, shape):
    """Twice the multiplications of every matrix product in the graph of a forward pass."""
    tokens = tf.TensorSpec([shape.batch_size, shape.sequence_length], tf.int32)
    graph = tf.function(model.__call__).get_concrete_function(tokens).graph
    total = 0
    for operation in operations(graph):
        if operation.type in ("MatMul", "BatchMatMulV2"):
            flipped = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
            inner = operation.inputs[0].shape[-2 if flipped else -1]
            total += 2 * operation.outputs[0].shape.num_elements() * inner
    return total


def test_the_formula_of_a_forward_pass_counts_its_matrix_products():
    shape = workloads.SMALLEST
    # A masked model computes all pairs of positions, where the formula counts a causal one's.
    unseen_pairs = (
        shape.sequence_length**2 - shape.sequence_length * (shape.sequence_length + 1) // 2
    )
    beyond = 4 * shape.batch_size * shape.num_layers * shape.hidden_dim * unseen_pairs
    counted = counted_flops(model_of(shape, causal=False), shape)
    assert counted == shape.forward_flops() + beyond


def test_a_single_token_costs_two_flops_per_weight_and_attends_to_itself():
    shape = workloads.Shape(num_layers=3, hidden_dim=8, num_heads=2, side=1, batch_size=1)
    matrices = 3 * 12 * 8 * 8 + 512 * 8
    assert shape.forward_flops() == 2 * matrices + 3 * 2 * (2 * 8)
    assert shape.train_flops() == 3 * shape.forward_flops()


def test_causal_attention_in_blocks_computes_less_than_the_whole_square():
    shape = dataclasses.replace(workloads.SMALLEST, side=16)
    causal, whole = (counted_flops(model_of(shape, causal), shape) for causal in (True, False))
    assert shape.forward_flops() < causal < whole


def test_the_torch_gpt_has_exactly_as_many_weights():
    pytest.importorskip("torch")
    from igpt_tf.benchmark import torch_gpt

    job = Job("torch_gpt", "train", workloads.SMALLEST, 1, "float32", 1)
    theirs = sum(weight.numel() for weight in torch_gpt.build(job).parameters())
    assert theirs == model_of(workloads.SMALLEST, causal=True).count_params()


def test_the_published_graph_computes_the_same_network():
    keras.utils.set_random_seed(0)
    model = model_of(workloads.SMALLEST, causal=True)
    model.output_embedding.assign(np.random.default_rng(1).normal(size=(512, 16)))
    tokens = workloads.random_tokens(workloads.SMALLEST)
    wanted = model(tokens).numpy()
    theirs = openai_graph.logits(model, tokens).numpy()
    assert np.abs(theirs - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_time_of_part_of_the_work_is_scaled_to_the_whole():
    def part():
        sum(range(100_000))

    part.scale = 1_000_000
    assert timed(part)["seconds"] > 10


def test_ratios_compare_runs_of_the_same_round():
    numbers = {
        "igpt_tf": {"seconds": rounds.spread([1.0, 2.0, 4.0])},
        "other": {"seconds": rounds.spread([2.0, 4.0, 16.0])},
        "absent": {"missing": "no module"},
    }
    ((name, ratio),) = rounds.ratios(numbers)
    assert (name, ratio["median"], ratio["min"], ratio["max"]) == ("other", 2.0, 2.0, 4.0)


def test_several_processes_share_the_repeats_of_an_implementation(monkeypatch):
    class Process:
        started = 0

        def __init__(self, job):
            Process.started += 1
            self.job, self.missing, self.number = job, None, Process.started
            self.setup = {"seconds": 1.0, "bytes": 2}

        def run(self):
            return {"seconds": float(self.number), "cpu_seconds": 0.0}

        def end(self):
            return {"peak_bytes": 10 * self.number, "device_bytes": None}

        def close(self):
            pass

    monkeypatch.setattr(rounds, "Worker", Process)
    part = workloads.PARTS["train_smallest"]
    part = dataclasses.replace(part, implementations=("igpt_tf",), num_process_sets=3)
    settings = {"precision": "float32", "threads": 1, "backend": "tensorflow"}
    numbers = rounds.measure(part, repeats=4, **settings)["igpt_tf"]
    assert numbers["seconds"]["all"] == [1.0, 2.0, 3.0, 3.0]
    assert (numbers["peak_bytes"], numbers["first_seconds"]) == (30, 1.0)
    assert numbers["bytes_per_image"] == (30 - 2) / 2  # beyond the setup, by the batch size


def test_one_command_writes_a_table_that_names_what_is_not_installed(tmp_path):
    command = [sys.executable, "-m", "tools.benchmark", f"--workdir={tmp_path}", "--repeats=1"]
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [*command, "--parts=peak,train_smallest"], capture_output=True, text=True, env=limited
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmark.json").read_text())
    numbers = result["parts"]["train_smallest"]["implementations"]
    seconds = numbers["igpt_tf"]["seconds"]
    assert seconds["all"] == [seconds["median"]] and seconds["median"] > 0
    assert numbers["igpt_tf"]["peak_bytes"] > 2e8
    assert 0 < result["parts"]["train_smallest"]["fraction_of_peak"]["igpt_tf"] < 1
    assert result["machine"]["instruction_set_overrides"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert "environment: ONEDNN_MAX_CPU_ISA=AVX2;" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"{TITLE} ")]
    for name, one in numbers.items():
        [row] = [line for line in rows if line.split()[3] == name]
        assert ("missing" in one) == ("not installed" in row)


def test_the_instruction_sets_of_the_processor_are_printed():
    machine = {**benchmark.machine(), "instruction_sets": ["avx", "avx2"], "cpu": "Z80"}
    line = benchmark._machine_line({**machine, "instruction_set_overrides": {}})
    assert "Z80" in line and "AVX2; environment: no overrides" in line and "AVX-512" not in line


def test_scaling_measures_growing_images_of_one_network():
    shapes = [part.shape for part in workloads.select_parts(["scaling"], "tensorflow").values()]
    assert [shape.side for shape in shapes] == [16, 32, 48, 64]
    assert len({(shape.num_layers, shape.hidden_dim) for shape in shapes}) == 1


def test_names_of_sizes_differ_from_those_of_model_files():
    models = set(os.listdir("gin/models"))
    papers = {"train_s", "train_m", "train_l"}  # the same sizes as in gin/models
    names = {name.rpartition("_")[2] for name in set(workloads.PARTS) - papers}
    assert not {f"{name}.gin" for name in names} & models


def test_parts_that_need_tensorflow_are_rejected_on_jax():
    with pytest.raises(InputError, match="sampling, startup can be measured with"):
        workloads.select_parts(["train_s", "sampling", "startup"], "jax")
    assert list(workloads.select_parts(["train_s"], "jax")) == ["train_s"]


def test_an_unknown_part_is_rejected_in_one_line():
    line = programs.refused_at_once("tools.benchmark", "--parts=nothing")
    assert line.startswith("error: the parts of the benchmark are ")
