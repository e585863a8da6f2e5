"""A custom data set, for any method and evaluation: drawings of circles and squares.

    gsg-jax simsiam_gsg --plugin=examples/own_dataset.py --config.data.name=shapes

Evaluations of the run need the same --plugin.
"""

import numpy as np

import gsg_jax
from gsg_jax.data.source import ArraySource

SIZE = 28


def draw(rng, label):
    """One image, uint8 [H, W, C]: a circle (label 0) or a square of random place and colour."""
    y, x = np.abs(np.mgrid[:SIZE, :SIZE] - rng.integers(8, SIZE - 8, (2, 1, 1)))
    inside = np.hypot(x, y) < 7 if label == 0 else np.maximum(x, y) < 6
    colours = rng.integers(0, 256, (2, 3))
    return np.where(inside[..., None], *colours).astype(np.uint8)


def open_shapes(data, split):
    """Opens the images of config.data: 2,000 to train on or 400 to test."""
    del data  # a set on disk would read its data.dir here
    rng = np.random.default_rng(split == "test")
    labels = np.arange(2000 if split == "train" else 400) % 2
    images = np.stack([draw(rng, label) for label in labels])
    return ArraySource("shapes", images, labels.astype(np.int32), ("circle", "square"))


gsg_jax.register_dataset("shapes", open_shapes)
