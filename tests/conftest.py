"""What every test runs under: quiet TensorFlow, few threads, an empty gin configuration."""

import os
import sys

import pytest

# TensorFlow reads these when it is first imported; programs that tests start inherit them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Test processes run side by side; by default the first would take a GPU's whole memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


@pytest.fixture(autouse=True)
def _empty_gin():
    """Bindings of one test never reach the next."""
    import gin

    yield
    gin.clear_config()


@pytest.fixture(autouse=True, scope="module")
def _release_graphs():
    """TensorFlow keeps the gradient of every traced custom gradient, and with it a whole graph.

    Without this, a process of the tests needs 10 GB in the end.
    """
    yield
    if ops := sys.modules.get("tensorflow.python.framework.ops"):
        gradients = ops.gradient_registry._registry
        for name in [name for name in gradients if name.startswith("CustomGradient-")]:
            del gradients[name]
