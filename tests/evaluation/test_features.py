"""Embeddings are standardised by the training set alone."""

import numpy as np

from gsg_jax.evaluation.features import standardize


def test_channels_of_any_scale_have_mean_zero_and_deviation_one():
    rng = np.random.default_rng(0)
    scale, shift = np.geomspace(1e-9, 1e9, 13), np.linspace(-20, 20, 13)
    train, test = (scale * (rng.normal(size=(n, 13)) + shift) for n in (201, 57))
    rows, others = standardize(train.astype(np.float32), test.astype(np.float32))
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-4)
    expected = (test - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(others, expected, atol=1e-4)
    assert rows.dtype == others.dtype == np.float32


def test_a_channel_that_is_constant_but_for_rounding_is_only_moved():
    rng = np.random.default_rng(1)
    rounding = np.float32(1e-7) * rng.choice([-1, 0, 1], size=(99, 1)).astype(np.float32)
    train = np.concatenate([np.zeros((99, 1)), np.full((99, 1), 300), 7 * (1 + rounding)], axis=1)
    rows, others = standardize(train.astype(np.float32), np.array([[2, 301, 7]], np.float32))
    np.testing.assert_allclose(rows, 0, atol=1e-5)
    np.testing.assert_allclose(others, [[2, 1, 0]], atol=1e-5)
