"""Compiles training steps for TPUs and GPUs on a host that has neither."""
