"""The monitor scores images whose label is known, whatever else the sets hold."""

import numpy as np
import pytest

import gsg_jax
from gsg_jax.console import UserError
from gsg_jax.data.source import ArraySource
from gsg_jax.evaluation.monitor import Monitor
from gsg_jax.evaluation.ranks import lidar, rankme


def source(labels, seed):
    """Gray images of 3 x 5 pixels, with a bright column a class."""
    images = np.random.default_rng(seed).integers(0, 90, (len(labels), 3, 5, 1))
    images[np.arange(len(labels)), :, labels] += 100
    names = ("a", "b", "c")
    return ArraySource("made", images.astype(np.uint8), np.array(labels, np.int32), names)


def pixels(images):
    return np.reshape(images, (len(images), -1)).astype(np.float32) + 1


def figures(train, test, **changes):
    changes = {f"eval.{key}": value for key, value in changes.items()}
    changes |= {"eval.knn_k": 7, "eval.batch_size": 8, "data.crop": "device"}
    config = gsg_jax.get_config("simsiam", changes)
    monitor = Monitor(config, train, test)
    return monitor.k, monitor.figures(pixels, is_whole=True)


def known(of):
    return cut(of, np.flatnonzero(of.labels >= 0))


def cut(of, rows):
    return ArraySource("made", of.images[rows], of.labels[rows], of.class_names)


def test_images_without_a_label_neither_vote_nor_count():
    rng = np.random.default_rng(0)
    train, test = source(rng.integers(-1, 3, 61), 1), source(rng.integers(-1, 3, 23), 2)
    got = figures(train, test)
    assert got == figures(known(train), known(test)) and got[0] == 7
    assert got[1]["knn_top1"] > 0.5 and "few_label_1" in got[1]


def test_a_test_set_without_labels_is_as_none():
    train, test = source([0, 1, 2, 1] * 5, 1), source([-1] * 9, 2)
    assert figures(train, test) == figures(train, None)


def test_a_set_with_one_label_or_none_cannot_be_scored():
    for labels in ([-1] * 9, [-1] * 8 + [2]):
        with pytest.raises(UserError, match="which k-NN needs: set --config.eval.knn_every"):
            figures(source(labels, 1), None)


def test_a_bank_of_limited_size_has_the_evenly_spaced_images():
    rng = np.random.default_rng(3)
    train, test = source(rng.integers(0, 3, 61), 4), source(rng.integers(0, 3, 23), 5)
    got = figures(train, test, max_bank=8)
    rows = [0, 9, 17, 26, 34, 43, 51, 60]  # 60 / 7 = 8.57 apart
    assert got == figures(cut(train, rows), test) != figures(train, test)
    assert figures(train, test, max_bank=61) == figures(train, test)


def test_without_labels_the_ranks_are_the_only_figures():
    images = np.random.default_rng(0).integers(0, 256, (13, 3, 5, 1)).astype(np.uint8)
    config = gsg_jax.get_config("simsiam", {"eval.batch_size": 4, "eval.lidar_views": 2})
    monitor = Monitor(config, ArraySource("made", images), None)
    views = lambda batch: np.stack([pixels(batch), 2 * pixels(batch)], 1)  # noqa: E731
    got = monitor.figures(pixels, is_whole=True, view_embed=views)
    both = np.stack([pixels(images), 2 * pixels(images)], 1)
    assert not monitor.has_labels and got.keys() == {"rankme", "lidar"}
    np.testing.assert_allclose(got["rankme"], rankme(pixels(images)))
    np.testing.assert_allclose(got["lidar"], lidar(both))
    config.eval.max_bank = 5
    some = Monitor(config, ArraySource("made", images), None).figures(pixels, view_embed=views)
    np.testing.assert_allclose(some["rankme"], rankme(pixels(images[[0, 3, 6, 9, 12]])))
