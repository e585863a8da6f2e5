"""Figures of a classifier and how much they would vary with other test images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gsg_jax.config.load import is_number

Metric = Callable[[np.ndarray, np.ndarray], float]

RECALL_LEVELS = 11
# Endings of figures that are not shares of images.
NOT_SHARES = ("_learning_rate", "_weight_decay", "_l2", "_num_labels")


def hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Which images have their class among the k highest scores.

    Args:
      scores: [N, C]. Among equal scores the lowest class comes first, as in argmax. A NaN ranks
        above every number, so diverged scores hit nothing.
      labels: int [N], from 0 to C - 1.
      k: at least 1; at most C is used.

    Returns:
      bool [N].
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # [N, 1]
    is_before = np.arange(scores.shape[1])[None, :] < labels[:, None]
    # Negated, since a NaN is neither above nor at most a number.
    is_ahead = ~(scores <= own) | ((scores == own) & is_before)
    return is_ahead.sum(axis=1) < min(k, scores.shape[1])


def recall_per_class(hits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their images that are hits.

    Args:
      hits: bool [N].
      labels: int [N], at least 0.
    """
    num_images = np.bincount(labels)
    num_hits = np.bincount(labels, weights=hits)
    occurs = num_images > 0
    return float(np.mean(num_hits[occurs] / num_images[occurs]))


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share in [0, 1] of images that are `hits` of their scores [N, C] and labels [N]."""
    return float(np.mean(hits(scores, labels, k)))


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy averaged over the classes that occur, of scores [N, C] and labels [N]."""
    return recall_per_class(hits(scores, labels, 1), labels)


def average_precision_11_point(scores: np.ndarray, labels: np.ndarray) -> float:
    """Interpolated average precision of one class, as in PASCAL VOC 2007.

    The mean over the recalls 0, 0.1, ..., 1 of the highest precision at that recall or above.

    Args:
      scores: [N]; higher is surer. A NaN is below every number.
      labels: int [N]: 1 has the class, 0 has not, -1 is left out.

    Returns:
      A share in [0, 1].

    Raises:
      ValueError: if no label is 1.

    Source: Everingham et al., IJCV 2010, section 4.2.
    Differs from the reference: images of equal scores are retrieved together, so that the order
    of the images does not matter.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    if not (num_positives := np.sum(labels == 1)):
        raise ValueError(f"none of the {len(labels)} labels is 1: recall needs a positive")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores)
    ranked = scores[order]
    is_last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    num_retrieved = 1 + np.flatnonzero(is_last_of_equals)
    num_found = np.cumsum(labels[order] == 1)[is_last_of_equals]
    precision_from = np.maximum.accumulate((num_found / num_retrieved)[::-1])[::-1]
    # In integers: 0.1 + 0.2 is not 0.3.
    levels = np.arange(RECALL_LEVELS) * num_positives
    first = np.searchsorted(num_found * (RECALL_LEVELS - 1), levels)
    return float(np.mean(precision_from[first]))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of average_precision_11_point over the classes that have an image.

    Args:
      scores: [N, C].
      labels: int [N, C].

    Raises:
      ValueError: if no label at all is 1.
    """
    classes = np.flatnonzero((labels == 1).any(axis=0))
    if not len(classes):
        raise ValueError(f"none of the {labels.size} labels is 1: recall needs a positive")
    return float(np.mean([average_precision_11_point(scores[:, c], labels[:, c]) for c in classes]))


def bootstrap_interval(
    metric: Callable[..., float],
    *examples: np.ndarray,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over the test images.

    Every resample computes the metric, so give it as little as it needs: top-k accuracy is
    `bootstrap_interval(np.mean, hits(scores, labels, k))`.

    Args:
      metric: maps the examples, or as many drawn from them with replacement, to a figure.
      *examples: its arguments, each [N, ...]; row n of each belongs to image n.
      confidence: share of the resamples within the interval, in (0, 1).
      num_resamples: at least 1.
      seed: of the draws.

    Returns:
      (low, high).

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    rng, num_images, figures = np.random.default_rng(seed), len(examples[0]), []
    for _ in range(num_resamples):
        drawn = rng.integers(num_images, size=num_images)
        figures.append(metric(*(array[drawn] for array in examples)))
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def classification_figures(
    prefix: str, scores: np.ndarray, labels: np.ndarray
) -> dict[str, float | list[float]]:
    """The figures of a classifier, each with its 95 % interval over the test images.

    Args:
      prefix: of their names.
      scores: [N, C].
      labels: int [N], from 0 to C - 1.

    Returns:
      PREFIX_top1, PREFIX_top5 and PREFIX_mean_per_class, shares in [0, 1], and NAME_interval,
      [low, high], of each.
    """
    first, fifth = hits(scores, labels, 1), hits(scores, labels, 5)
    metrics = {
        "top1": (np.mean, first),
        "top5": (np.mean, fifth),
        "mean_per_class": (recall_per_class, first, labels),
    }
    figures = {}
    for name, (metric, *examples) in metrics.items():
        figures[f"{prefix}_{name}"] = float(metric(*examples))
        figures[f"{prefix}_{name}_interval"] = list(bootstrap_interval(metric, *examples))
    return figures


def shares_with_intervals(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that are shares, in percent: (name, share, 95 % interval or "")."""
    rows = []
    for name, value in figures.items():
        if isinstance(value, float) and not name.endswith(NOT_SHARES):
            ends = figures.get(f"{name}_interval")
            is_known = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
            interval = f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" if is_known else ""
            rows.append((name, f"{100 * value:.2f}", interval))
    return rows
