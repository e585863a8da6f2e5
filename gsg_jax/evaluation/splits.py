"""Subsets of a labelled set that keep every class: held-out images and small training sets."""

from collections.abc import Sequence

import numpy as np

from gsg_jax.console import UserError


def split_held_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images by class into those to fit on and those held out to choose by.

    Args:
      labels: int [N].
      share: of each class that is held out, in (0, 1); rounded, but at least one image is held
        out and at least one is fitted on. A class with one image keeps it for fitting.
      seed: of the choice.

    Returns:
      (fit_indices, held_out_indices), int, each sorted; together 0 to N - 1.
    """
    held_out = [
        rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]
        for rows in _shuffled_classes(labels, seed)
    ]
    is_held_out = np.zeros(len(labels), bool)
    is_held_out[np.concatenate(held_out)] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def class_balanced(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of a subset with equally many images of every class.

    The subsets of one seed are nested: the 1 % are among the 10 %.

    Args:
      labels: int [N], of C different values.
      share: of the set, in (0, 1]. Each class gives round(share N / C) images, at least one, and
        all that it has if it has fewer.
      seed: of the choice.
    """
    num_each = max(round(share * len(labels) / len(np.unique(labels))), 1)
    return drawn_by_class(labels, num_each, seed)


def drawn_by_class(labels: np.ndarray, num_each: int, seed: int) -> np.ndarray:
    """Sorted indices of num_each images of every class, or all of a class that has fewer.

    The draws of one seed are nested. A label below 0 is no class. `labels` are int [N].
    """
    classes = _shuffled_classes(labels, seed)
    return np.sort(np.concatenate([rows[:num_each] for rows in classes if labels[rows[0]] >= 0]))


def check_every_class(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises UserError if one of the C class_names has no image among the labels [N]."""
    num_images = np.bincount(labels, minlength=len(class_names))
    missing = np.flatnonzero(num_images == 0)
    if len(missing):
        raise UserError(
            f"class {class_names[missing[0]]!r} has no image among the {len(labels)} to learn "
            f"from ({len(missing)} of {len(class_names)} classes have none): add one of each, or "
            "leave these classes out of the set"
        )


def _shuffled_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The indices of each class that occurs, in an order that depends only on the seed."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
