"""The speed of this house beside others': rivals take turns, each in a process of its own."""
