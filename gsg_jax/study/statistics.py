"""Means with intervals by Student's t, differences of paired runs, and a verdict by rule."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
NO_WIDTH = 1e-9  # rounding alone
HOLDS, DOES_NOT, CANNOT_TELL = "holds here", "does not", "cannot tell"


class Interval(NamedTuple):
    """A mean and how well it is known.

    Attributes:
      mean: of the values; NaN if there are none.
      half: half the width of the interval that has the expectation with a chance of LEVEL; NaN with
        fewer than two values, which say nothing about their spread.
      num: how many values.
    """

    mean: float
    half: float
    num: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its interval by Student's t."""
    num = len(values)
    mean = float(np.mean(values)) if num else math.nan
    if num < 2:
        return Interval(mean, math.nan, num)
    error = np.std(values, ddof=1) / math.sqrt(num)
    return Interval(mean, float(stats.t.ppf((1 + LEVEL) / 2, num - 1) * error), num)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """The mean difference, ours less theirs, over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] - theirs[seed] for seed in seeds])


def verdict(difference: Interval) -> str:
    """What an interval of a difference says of the claim that it is above 0.

    Scores are shares of some thousands of images, so two differences can be equal by chance: an
    interval without width says nothing.
    """
    if difference.half < NO_WIDTH:
        return CANNOT_TELL
    if difference.mean - difference.half > 0:  # NaN is neither
        return HOLDS
    return DOES_NOT if difference.mean + difference.half < 0 else CANNOT_TELL
