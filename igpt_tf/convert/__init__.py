"""Weights of other programs: OpenAI's checkpoints in, Hugging Face folders in and out.

A file is opened, its sizes inferred and every name and shape checked before any weight is read;
weights then go over one variable at a time, so the largest model needs little more than itself.
"""
