"""The client of a model behind TensorFlow Serving, over REST or gRPC."""
