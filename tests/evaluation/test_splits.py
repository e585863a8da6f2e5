"""Splits keep every class, depend on their seed alone, and lie within each other."""

import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.evaluation.splits import check_every_class, class_balanced, split_held_out

SIZES = {0: 1, 1: 2, 2: 3, 4: 40, 7: 111}


def uneven_labels():
    """The first class has one image, which cannot be held out."""
    labels = np.repeat(list(SIZES), list(SIZES.values()))
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_a_split_parts_each_class_by_the_share_and_leaves_one_to_fit_on(share):
    labels = uneven_labels()
    fitted, held_out = split_held_out(labels, share, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([fitted, held_out])), np.arange(157))
    for indices in (fitted, held_out):
        np.testing.assert_array_equal(indices, np.sort(indices))
    for c, size in SIZES.items():
        expected = 0 if size == 1 else min(max(round(share * size), 1), size - 1)
        assert np.sum(labels[held_out] == c) == expected


@pytest.mark.parametrize("share", [0.004, 0.1, 0.3, 1])
def test_a_balanced_part_has_as_many_of_every_class_or_all_there_are(share):
    labels = uneven_labels()
    indices = class_balanced(labels, share, seed=5)
    np.testing.assert_array_equal(indices, np.unique(indices))
    each = max(round(share * 157 / 5), 1)
    for c, size in SIZES.items():
        assert np.sum(labels[indices] == c) == min(each, size)


def test_smaller_parts_of_a_seed_lie_in_larger_ones():
    labels = np.random.default_rng(1).integers(0, 13, size=2003)
    parts = [set(class_balanced(labels, share, seed=4)) for share in [0.01, 0.1, 0.25, 1]]
    for smaller, larger in zip(parts, parts[1:], strict=False):
        assert smaller < larger


def test_the_seed_alone_decides():
    labels = np.random.default_rng(2).integers(0, 5, size=300)

    def choices(seed):
        return split_held_out(labels, 0.2, seed)[1], class_balanced(labels, 0.2, seed)

    for once, again, other in zip(choices(7), choices(7), choices(8), strict=True):
        np.testing.assert_array_equal(once, again)
        assert not np.array_equal(once, other)


def test_every_image_is_as_likely_to_be_chosen():
    labels = np.repeat([0, 1], 10)
    held_out, balanced = np.zeros(20), np.zeros(20)
    for seed in range(600):
        held_out[split_held_out(labels, 0.3, seed)[1]] += 1
        balanced[class_balanced(labels, 0.3, seed)] += 1
    # The standard deviation of 600 draws at 0.3 is 11.
    np.testing.assert_allclose(held_out, 180, atol=56)
    np.testing.assert_allclose(balanced, 180, atol=56)


def test_the_first_class_without_an_image_is_named():
    names = ["bag", "boot", "coat", "hat"]
    check_every_class(np.array([3, 0, 1, 2, 2]), names)
    with pytest.raises(UserError, match=r"class 'boot' has no image among the 3 .*\(2 of 4 "):
        check_every_class(np.array([0, 2, 2]), names)
