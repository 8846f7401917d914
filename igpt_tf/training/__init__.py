"""Training: the step, the loop, the strategy and the file formats, each in its own file."""
