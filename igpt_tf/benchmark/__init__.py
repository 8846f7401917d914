"""Speed and memory of this package beside other implementations of the same network."""
