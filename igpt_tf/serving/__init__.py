"""A SavedModel served: checked as TensorFlow Serving loads it, and asked over the wire."""
