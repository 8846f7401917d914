"""Sampling, completion and in-painting with an `ImageGPT`."""
