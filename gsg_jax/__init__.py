"""Siamese self-supervised learning in JAX: one pure train step, one table of methods."""

__version__ = "0.1.0"
