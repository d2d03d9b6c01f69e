"""Sparse object detectors: train, prune, evaluate and compare AP versus sparsity."""

__version__ = "0.1.0"
