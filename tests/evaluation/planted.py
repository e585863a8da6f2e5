"""Labelled points on which a linear classifier is good, but not perfect."""

import numpy as np
from sklearn.datasets import load_digits

from gsg_jax.evaluation.features import standardize


def gaussians(*sizes, num_classes, num_channels, seed):
    """Sets of images [N, F] around a centre for each class, and their labels [N]."""
    rng = np.random.default_rng(seed)
    centres = 0.6 * rng.normal(size=(num_classes, num_channels))
    sets = []
    for size in sizes:
        labels = rng.integers(0, num_classes, size=size)
        sets.append((centres[labels] + rng.normal(size=(size, num_channels)), labels))
    return sets


def digits():
    """scikit-learn's digits, standardised: ((images, labels) to train on, (images, labels))."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    train, test = standardize(images[:1297], images[1297:])
    return (train, labels[:1297]), (test, labels[1297:])
