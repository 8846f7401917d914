"""Outputs of Hugging Face's ImageGPT, computed in a process of its own.

CUDA builds of torch include triton, and importing triton after TensorFlow crashes the process.

Usage: python transformers_reference.py TASK FOLDER INPUTS.npz OUTPUTS.npz
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def run(task: str, folder, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Runs one of the tasks below on a folder in a new process and returns its outputs."""
    with tempfile.TemporaryDirectory() as temporary:
        files = [str(Path(temporary) / name) for name in ("inputs.npz", "outputs.npz")]
        np.savez(files[0], **inputs)
        command = [sys.executable, __file__, task, str(folder), *files]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        with np.load(files[1], allow_pickle=False) as outputs:
            return dict(outputs)


def forward(folder: str, tokens: np.ndarray) -> dict:
    """Logits, post-norm features, nats and a greedy completion of tokens int[B,T]."""
    import torch
    from transformers import ImageGPTForCausalImageModeling

    model = ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    sos = np.full((len(tokens), 1), model.config.vocab_size - 1)
    shifted = torch.tensor(np.concatenate([sos, tokens[:, :-1]], axis=1))
    length = model.config.n_positions
    given = num_given(length)
    with torch.no_grad():
        logits = model(shifted).logits
        body = model.transformer
        states = body(shifted, output_hidden_states=True).hidden_states
        # Hidden states are before the norm, except for the last, which is after the final norm.
        normed = [block.ln_1(h) for block, h in zip(body.h, states[:-1], strict=True)]
        features = torch.stack([h.mean(dim=1) for h in [*normed, states[-1]]], dim=1)
        labels = torch.tensor(tokens).long()
        nats = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
        # No pad_token_id: the generator would take tokens of that value for padding.
        completed = model.generate(shifted[:, : given + 1], do_sample=False, max_length=length + 1)[
            :, 1:
        ]
    tensors = {"logits": logits, "features": features, "nats": nats, "completed": completed}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def num_given(length: int) -> int:
    """Number of tokens that the completion of `forward` keeps."""
    return max(length // 2, length - 24)


def loading_report(folder: str) -> dict:
    """JSON of the keys that were missing, mismatched or unexpected for two classes."""
    import transformers

    reports = []
    for name in ("ImageGPTForCausalImageModeling", "ImageGPTModel"):
        load = getattr(transformers, name).from_pretrained
        _, report = load(folder, output_loading_info=True)
        kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
        reports.append({kind: [str(key) for key in report[kind]] for kind in kinds})
    return {"reports": json.dumps(reports)}


def save_random(folder: str) -> dict:
    """Saves a randomly initialised model into the folder."""
    import torch
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    config = ImageGPTConfig(vocab_size=12, n_positions=25, n_embd=30, n_layer=3, n_head=5)
    model = ImageGPTForCausalImageModeling(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(".bias"):
                parameter.normal_(1.0 if ".ln_" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    return {}


def process(folder: str, images: np.ndarray) -> dict:
    """Tokens of images uint8[N,H,W,3] by the image processor, which is then saved again."""
    from transformers import ImageGPTImageProcessor

    processor = ImageGPTImageProcessor.from_pretrained(folder)
    tokens = np.array(processor(list(images), return_tensors="np")["input_ids"])
    processor.save_pretrained(folder)
    return {"tokens": tokens}


if __name__ == "__main__":
    task, folder, inputs, outputs = sys.argv[1:]
    tasks = {one.__name__: one for one in (forward, loading_report, save_random, process)}
    with np.load(inputs, allow_pickle=False) as arrays:
        np.savez(outputs, **tasks[task](folder, **arrays))
