"""Intervals and verdicts come at the rates that Student's t promises."""

import math

import numpy as np
import pytest
from scipy import stats

from gsg_jax.study.statistics import (
    CANNOT_TELL,
    DOES_NOT,
    HOLDS,
    Interval,
    interval,
    paired,
    verdict,
)

NUM_SEEDS, NOISE, NUM_STUDIES = 5, 0.5, 2000


def planted(gain: float, rng: np.random.Generator) -> list[str]:
    """Verdicts of studies of two cells whose runs have noise, one better by a gain."""
    verdicts = []
    for _ in range(NUM_STUDIES):
        plain, better = rng.normal(60, NOISE, (2, NUM_SEEDS))
        difference = paired(dict(enumerate(better + gain)), dict(enumerate(plain)))
        verdicts.append(verdict(difference))
    return verdicts


@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0, -0.8])
def test_planted_gains_are_found_at_the_rates_of_students_t(gain):
    found = planted(gain, np.random.default_rng(3))
    shift = gain / (NOISE * math.sqrt(2)) * math.sqrt(NUM_SEEDS)
    limit = stats.t.ppf(0.975, NUM_SEEDS - 1)
    holds = stats.nct.sf(limit, NUM_SEEDS - 1, shift)
    does_not = stats.nct.cdf(-limit, NUM_SEEDS - 1, shift)
    wanted = {HOLDS: holds, DOES_NOT: does_not, CANNOT_TELL: 1 - holds - does_not}
    for word, rate in wanted.items():
        error = math.sqrt(max(rate * (1 - rate), 1e-4) / NUM_STUDIES)
        assert abs(found.count(word) / NUM_STUDIES - rate) < 4.5 * error, (word, rate)
    if gain == 0:
        assert wanted[CANNOT_TELL] == pytest.approx(0.95)
    if gain == 2:
        assert wanted[HOLDS] > 0.95


def test_an_interval_equals_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = interval(list(values))
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(
        [found.mean - found.half, found.mean + found.half], [low, high], rtol=1e-12
    )
    assert found.num == 7


def test_only_seeds_that_both_have_are_paired():
    found = paired({0: 5.0, 2: 9.0, 4: 1.0}, {4: 0.5, 0: 3.0, 1: 100.0})
    assert found[::2] == (1.25, 2)
    one = paired({0: 5.0}, {0: 3.0})
    assert one.mean == 2 and math.isnan(one.half) and verdict(one) == CANNOT_TELL
    none = paired({0: 5.0}, {1: 3.0})
    assert math.isnan(none.mean) and none.num == 0 and verdict(none) == CANNOT_TELL


@pytest.mark.parametrize(
    ("mean", "half", "word"),
    [
        (1, 0.9, HOLDS),
        (1, 1, CANNOT_TELL),
        (-1, 1, CANNOT_TELL),
        (-1, 0.9, DOES_NOT),
        (1, 0, CANNOT_TELL),
    ],
)
def test_the_verdict_is_by_the_end_of_the_interval(mean, half, word):
    assert verdict(Interval(mean, half, 3)) == word
