"""The SavedModel format: its signatures and metadata, how it is written, loaded and checked.

Importing the package does not import TensorFlow; `metadata` and `spec` work without it.
"""
