"""RankMe and LiDAR equal their definitions, and know directions that do not tell images apart."""

import numpy as np
import pytest

from gsg_jax.evaluation.ranks import lidar, rankme


def entropy(values):
    shares = [value / sum(values) for value in values]
    return np.exp(-sum(share * np.log(share) for share in shares))


def test_rankme_is_the_entropy_of_the_singular_values():
    rows = np.random.default_rng(0).normal(size=(40, 7)) * np.arange(1, 8) + 3
    singular = np.linalg.svd(rows, compute_uv=False)
    assert rankme(rows) == pytest.approx(entropy(singular), rel=1e-9)
    assert rankme(rows[:, :1] * np.ones((1, 7))) == pytest.approx(1, abs=1e-6)
    assert rankme(np.zeros((5, 3))) == 0


def test_lidar_is_the_entropy_of_the_whitened_spread_of_images():
    rng = np.random.default_rng(1)
    views = 2 * rng.normal(size=(30, 1, 5)) + rng.normal(size=(30, 6, 5)) * np.arange(1, 6)
    means = [np.mean(of, axis=0) for of in views]
    within = 1e-4 * np.eye(5)
    between = np.zeros((5, 5))
    for mean, of in zip(means, views, strict=True):
        between += np.outer(mean - np.mean(means, axis=0), mean - np.mean(means, axis=0)) / 30
        for view in of:
            within += np.outer(view - mean, view - mean) / 180
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    assert lidar(views) == pytest.approx(entropy(np.linalg.eigvalsh(root @ between @ root)))


def test_lidar_ignores_directions_in_which_only_the_views_differ():
    rng = np.random.default_rng(2)
    images, noise = rng.normal(size=(500, 1, 3)), rng.normal(size=(500, 8, 9))
    views = np.concatenate([np.repeat(images, 8, axis=1), noise], axis=-1)
    assert lidar(views) == pytest.approx(3, abs=0.1)
    assert rankme(views.reshape(4000, 12)) > 11
