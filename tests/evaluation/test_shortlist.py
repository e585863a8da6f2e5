"""The rows that bfloat16 products list hold the neighbours, however close the others come."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.evaluation import knn, shortlist
from gsg_jax.evaluation.knn import blocked_neighbours, neighbours
from gsg_jax.evaluation.shortlist import is_worth_listing, merge_by_shortlist, round_block

SIZES = {"bank_block": 1500, "tile": 410, "query_block": 40, "group": 4, "way": "shortlist"}


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_neighbours(bank, query, k, leave_one_out=False):
    """By sorting all cosines in float64."""
    cosines = unit(query) @ unit(bank).T
    if leave_one_out:
        np.fill_diagonal(cosines, -np.inf)
    index = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, index, axis=1), index


def rounded(bank, num_tiles=1, num_rows=None):
    with ThreadPoolExecutor(2) as pool:
        return round_block(bank, num_rows or len(bank), num_tiles, pool)


def merged(bank, query, k, *, group=4, num_tiles=1, num_rows=None, num_queries=None, itself=None):
    """The best rows of one block, as a list finds them."""
    none_yet = np.full((len(query), k), -np.inf, np.float32), np.zeros((len(query), k), np.int32)
    block = rounded(bank, num_tiles, num_rows)
    return merge_by_shortlist(
        none_yet, query, num_queries or len(query), block, 0, itself, group=group
    )


@pytest.fixture
def listed_blocks(monkeypatch):
    """How many blocks were searched by a list, and how many had to be searched in float32."""
    counts = {True: 0, False: 0}

    def counted(*args, **kwargs):
        ranked = merge_by_shortlist(*args, **kwargs)
        counts[ranked is not None] += 1
        return ranked

    monkeypatch.setattr(knn, "merge_by_shortlist", counted)
    return counts


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("bank_block", "tile", "group"), [(1999, 1999, 1), (700, 130, 8)])
def test_blocks_find_the_neighbours_of_a_plain_loop(
    listed_blocks, bank_block, tile, group, leave_one_out
):
    rng = np.random.default_rng(0)
    bank = (rng.normal(size=(1999, 37)) + 0.5) * rng.uniform(0.1, 9, size=(1999, 1))
    query = bank if leave_one_out else rng.normal(size=(83, 37)) + 0.5
    sizes = SIZES | {"bank_block": bank_block, "tile": tile, "group": group}
    similarity, index = blocked_neighbours(bank, query, 7, leave_one_out=leave_one_out, **sizes)
    expected = plain_neighbours(bank, query, 7, leave_one_out)
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    np.testing.assert_array_equal(index, expected[1])
    assert (similarity.dtype, index.dtype) == (np.float32, np.int32)
    assert listed_blocks[False] == 0 < listed_blocks[True]


def test_neighbours_that_bfloat16_cannot_tell_apart_are_ranked_by_float32():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(50, 64)).astype(np.float32)
    near = np.repeat(query, 12, axis=0)  # twelve rows about each query, at cosines above 0.999
    near = near + 0.02 * rng.normal(size=near.shape)
    bank = rng.permutation(np.concatenate([near, rng.normal(size=(1400, 64))])).astype(np.float32)
    expected = plain_neighbours(bank, query, 5)
    half = np.asarray(unit(bank).astype(jnp.bfloat16), np.float64)
    _, by_bfloat16 = plain_neighbours(half, query.astype(jnp.bfloat16), 5)
    assert np.mean(by_bfloat16 != expected[1]) > 0.02
    similarity, index = merged(bank, query, 5)
    found = np.take_along_axis(unit(query) @ unit(bank).T, index, axis=1)
    np.testing.assert_allclose(found, expected[0], atol=2e-7)  # some differ by less than float32
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_no_product_is_further_off_than_the_slack(offset):
    rng = np.random.default_rng(2)
    bank = (rng.normal(size=(600, 48)) + offset).astype(np.float32)
    query = (rng.normal(size=(90, 48)) + offset).astype(np.float32)
    block = rounded(bank, num_tiles=3)
    of_query, half, error = shortlist._round_queries(query)
    products = np.concatenate(
        [tile.reshape(90, -1) for tile, _ in shortlist._products(half, block.tiles, group=4)],
        axis=1,
    )
    exact = np.asarray(of_query, np.float64) @ (block.rows - block.mean.astype(np.float64)).T
    off = np.abs(products - exact)
    slack = block.error + np.asarray(error)[:, None] * block.length
    assert np.all(off <= slack + 1e-6)
    assert off.max() > slack.max() / 20  # a bound, and none that lists the whole bank


def test_the_mean_taken_off_makes_the_list_of_similar_rows_short():
    rng = np.random.default_rng(3)
    bank = (1 + 0.02 * rng.normal(size=(2000, 32))).astype(np.float32)
    assert (unit(bank) @ unit(bank).T).min() > 0.99
    query = rng.normal(size=(20, 32)).astype(np.float32)
    similarity, index = merged(bank, query, 5)
    np.testing.assert_array_equal(index, plain_neighbours(bank, query, 5)[1])


def test_of_equal_rows_the_lowest_comes_first_also_across_blocks(listed_blocks):
    rng = np.random.default_rng(4)
    bank = np.concatenate([rng.normal(size=(1000, 16))] * 3).astype(np.float32)
    query = bank[:60] + 0.1 * rng.normal(size=(60, 16)).astype(np.float32)
    sizes = SIZES | {"bank_block": 1100, "tile": 300}
    similarity, index = blocked_neighbours(bank, query, 5, leave_one_out=False, **sizes)
    _, first = plain_neighbours(bank[:1000], query, 2)
    expected = np.stack(
        [first[:, 0], first[:, 0] + 1000, first[:, 0] + 2000, first[:, 1], first[:, 1] + 1000], 1
    )
    np.testing.assert_array_equal(index, expected)
    assert np.all(similarity[:, :1] == similarity[:, :3])
    assert listed_blocks[False] == 0


@pytest.mark.parametrize(("num_rows", "group"), [(1600, 4), (1601, 8), (1597, 1)])
def test_padding_is_no_neighbour_where_all_cosines_are_negative(num_rows, group):
    rng = np.random.default_rng(5)
    bank, query = rng.uniform(0.1, 1, size=(1648, 7)), -rng.uniform(0.1, 1, size=(21, 7))
    bank[num_rows:], query[18:] = 0, 0
    similarity, index = merged(
        bank, query, 3, num_rows=num_rows, num_queries=18, num_tiles=2, group=group
    )
    assert similarity[:18].max() < 0
    np.testing.assert_array_equal(index[:18], plain_neighbours(bank[:num_rows], query[:18], 3)[1])
    assert np.all(similarity[18:] == -np.inf)


@pytest.mark.parametrize("k", [1, 4])
def test_an_image_and_its_group_do_not_hide_its_neighbours(k):
    rng = np.random.default_rng(10)
    bank = rng.normal(size=(1600, 9))
    similarity, index = merged(bank, bank[800:840], k, group=8, itself=800)
    expected = plain_neighbours(bank, bank, k, leave_one_out=True)
    np.testing.assert_array_equal(index, expected[1][800:840])


def test_an_image_that_looks_away_from_all_finds_them_behind_itself_and_the_padding():
    bank = 1 + 0.3 * np.random.default_rng(11).normal(size=(1600, 9))
    bank[0], bank[1598:] = -1, 0
    _, index = merged(bank, bank[:1], 1, num_rows=1598, itself=0)
    np.testing.assert_array_equal(
        index, plain_neighbours(bank[:1598], bank[:1598], 1, leave_one_out=True)[1][:1]
    )


@pytest.mark.parametrize("group", [1, 4, 64])
def test_rows_that_are_all_alike_are_searched_in_float32(listed_blocks, group):
    rng = np.random.default_rng(6)
    bank = np.ones((1600, 8)) * rng.choice([1.0, 2.0, 4.0], size=(1600, 1))  # collapsed
    query = np.ones((50, 8))
    sizes = SIZES | {"group": group}
    similarity, index = blocked_neighbours(bank, query, 6, leave_one_out=False, **sizes)
    np.testing.assert_array_equal(index, np.broadcast_to(np.arange(6), (50, 6)))
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    assert listed_blocks[True] == 0 < listed_blocks[False]


def test_one_query_in_a_crowd_sends_its_block_to_float32():
    rng = np.random.default_rng(7)
    bank, query = rng.normal(size=(1600, 24)), rng.normal(size=(30, 24))
    assert merged(bank, query, 3) is not None
    bank[500:700] = query[11]  # an eighth of the bank
    assert merged(bank, query, 3) is None


@pytest.mark.parametrize("has_units", [False, True])
def test_a_cpu_with_bfloat16_units_lists_and_the_result_is_the_same(
    monkeypatch, listed_blocks, has_units
):
    monkeypatch.setattr(knn, "multiplies_bfloat16_fast", lambda: has_units)
    rng = np.random.default_rng(8)
    bank, query = rng.normal(size=(3000, 20)), rng.normal(size=(40, 20))
    similarity, index = neighbours(bank, query, 10)
    expected = plain_neighbours(bank, query, 10)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    assert (listed_blocks[True] > 0) == (has_units and jax.default_backend() == "cpu")
    assert not is_worth_listing(47, 3000) and is_worth_listing(46, 3000)
    neighbours(bank, query, 47)  # too many of them: no list
    assert listed_blocks[True] <= 1 and listed_blocks[False] == 0


def test_a_query_that_is_zero_has_the_first_rows_as_neighbours():
    rng = np.random.default_rng(9)
    bank, query = rng.normal(size=(1600, 6)), rng.normal(size=(9, 6))
    query[4] = 0
    similarity, index = blocked_neighbours(bank, query, 3, leave_one_out=False, **SIZES)
    np.testing.assert_array_equal(index[4], [0, 1, 2])
    np.testing.assert_array_equal(similarity[4], 0)
    others = np.arange(9) != 4
    np.testing.assert_array_equal(index[others], plain_neighbours(bank, query[others], 3)[1])
