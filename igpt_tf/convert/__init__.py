"""Conversion of weights: OpenAI checkpoints to SavedModels, Hugging Face folders both ways.

Sizes are inferred and all names and shapes checked before weights are read. Weights are copied one
variable at a time: a conversion needs little more memory than the model.
"""
