"""Tensors in, tensors out. Every fast path here has a plain twin beside it and a test that holds the two equal."""
