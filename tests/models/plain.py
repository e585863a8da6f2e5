"""Norms in float64 NumPy, and drawn parameters."""

import jax
import numpy as np

NUM_VIEWS = 2


def drawn(tree, rng, scale=1.0):
    """Normal float32 arrays of the shapes of a tree: of scales and biases too."""
    return jax.tree.map(lambda x: scale * rng.normal(size=x.shape).astype(np.float32), tree)


def batch_norm(x, params=None):
    """Each of NUM_VIEWS views by itself, rows images first."""
    y, axes = np.empty_like(x), tuple(range(x.ndim - 1))
    for view in range(NUM_VIEWS):
        rows = x[view::NUM_VIEWS]
        y[view::NUM_VIEWS] = (rows - rows.mean(axes)) / np.sqrt(rows.var(axes) + 1e-5)
    return y * params["scale"] + params["bias"] if params else y


def group_norm(x, params=None, num_groups=2, epsilon=1e-5):
    """Each image and each group of adjacent channels by itself."""
    groups, axes = x.reshape(len(x), -1, num_groups, x.shape[-1] // num_groups), (1, 3)
    centred = groups - groups.mean(axes, keepdims=True)
    y = (centred / np.sqrt(groups.var(axes, keepdims=True) + epsilon)).reshape(x.shape)
    return y * params["scale"] + params["bias"] if params else y


def layer_norm(x, params=None, epsilon=1e-5):
    """Each row by itself."""
    return group_norm(x.reshape(-1, x.shape[-1]), params, 1, epsilon).reshape(x.shape)
