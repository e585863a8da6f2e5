"""The figures equal plain loops, and the bootstrap interval covers what it says."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from gsg_jax.evaluation.scores import (
    average_precision_11_point,
    bootstrap_interval,
    hits,
    mean_average_precision,
    mean_per_class,
    top_k_accuracy,
)


def coarse_scores(rng, *shape):
    """Scores of few values, so that many are equal."""
    return rng.integers(0, 6, size=shape).astype(np.float32)


def loop_hits(scores, labels, k):
    return np.array(
        [
            label in sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
            for row, label in zip(scores.tolist(), labels, strict=True)
        ]
    )


def loop_average_precision(scores, labels):
    counted = [(s, y) for s, y in zip(scores.tolist(), labels, strict=True) if y != -1]
    num_positives = sum(y for _, y in counted)
    curve = []
    for threshold, _ in counted:
        retrieved = [y for s, y in counted if s >= threshold]
        curve.append((Fraction(sum(retrieved), num_positives), sum(retrieved) / len(retrieved)))
    return np.mean([max(p for r, p in curve if r >= Fraction(i, 10)) for i in range(11)])


@pytest.mark.parametrize("k", [1, 5, 12])
def test_top_k_equals_a_plain_loop_with_equal_scores_and_a_k_above_the_classes(k):
    rng = np.random.default_rng(k)
    scores, labels = coarse_scores(rng, 83, 7), rng.integers(0, 7, size=83)
    np.testing.assert_array_equal(hits(scores, labels, k), loop_hits(scores, labels, k))
    assert top_k_accuracy(scores, labels, k) == loop_hits(scores, labels, k).mean()


def test_a_row_of_nan_hits_nothing():
    scores = np.array([[np.nan] * 3, [0, 1, 2], [np.nan, 1, 2]])
    for k in [1, 2]:
        np.testing.assert_array_equal(hits(scores, np.array([0, 2, 2]), k), [False, True, k == 2])
    for k in [3, 8]:
        np.testing.assert_array_equal(hits(scores, np.array([0, 2, 2]), k), [False, True, True])


def test_mean_per_class_equals_a_plain_loop_over_the_classes_that_occur():
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 2, 3, 6], p=[0.6, 0.3, 0.05, 0.05], size=157)
    scores = coarse_scores(rng, 157, 8)
    recalls = [loop_hits(scores, labels, 1)[labels == c].mean() for c in [0, 2, 3, 6]]
    assert mean_per_class(scores, labels) == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    for scores in [rng.normal(size=71), coarse_scores(rng, 71)]:
        labels = rng.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=71)
        figure = average_precision_11_point(scores, labels)
        assert figure == pytest.approx(loop_average_precision(scores, labels), abs=1e-12)


def test_average_precision_of_nan_is_the_share_of_positives():
    labels = np.array([1, 1, 0, 0, 0, -1])
    assert average_precision_11_point(np.full(6, np.nan), labels) == pytest.approx(0.4)


def test_mean_average_precision_leaves_out_classes_without_a_positive():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(67, 5))
    labels = rng.choice([-1, 0, 1], size=(67, 5))
    labels[:, 1] = np.minimum(labels[:, 1], 0)
    expected = [loop_average_precision(scores[:, c], labels[:, c]) for c in [0, 2, 3, 4]]
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="labels is 1"):
        mean_average_precision(scores, np.minimum(labels, 0))
    with pytest.raises(ValueError, match="labels is 1"):
        average_precision_11_point(scores[:, 1], labels[:, 1])


def test_the_interval_equals_a_plain_loop_of_the_same_seed():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(59, 4)), rng.choice([-1, 0, 1], size=(59, 4))
    draws, figures = np.random.default_rng(8), []
    for _ in range(41):
        rows = draws.integers(59, size=59)
        figures.append(mean_average_precision(scores[rows], labels[rows]))
    figures = sorted(figures)
    low, high = bootstrap_interval(
        mean_average_precision, scores, labels, confidence=0.9, num_resamples=41, seed=8
    )
    assert (low, high) == pytest.approx((figures[2], figures[38]))


def test_the_interval_of_an_accuracy_is_near_the_exact_binomial_one(confidence=0.8):
    is_hit = np.random.default_rng(5).permutation(np.arange(2000) < 1400)
    exact = stats.binomtest(1400, 2000).proportion_ci(confidence)
    interval = bootstrap_interval(np.mean, is_hit, confidence=confidence)
    np.testing.assert_allclose(interval, (exact.low, exact.high), atol=0.003)
