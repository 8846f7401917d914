"""One local web page to paint with a model, score and classify."""
