"""A local web page that completes, scores and classifies images with a model."""
