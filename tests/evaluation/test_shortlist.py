"""The rows that bfloat16 products list hold the neighbours, however close the others come."""

from concurrent.futures import ThreadPoolExecutor

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
        return round_block(bank, 0, num_rows or len(bank), num_tiles, pool)


def none_yet(num_queries, k):
    return np.full((num_queries, k), -np.inf, np.float32), np.zeros((num_queries, k), np.int32)


def merged(bank, query, k, *, group=4, num_tiles=1, num_rows=None, is_out=None, own_row=None):
    """The best rows of one block, as the lists find them; none of them may be too long."""
    is_out = np.zeros(len(query), bool) if is_out is None else is_out
    found, crowded = merge_by_shortlist(
        none_yet(len(query), k),
        is_out,
        query,
        rounded(bank, num_tiles, num_rows),
        own_row,
        group=group,
    )
    np.testing.assert_array_equal(crowded, is_out)
    return found


@pytest.fixture
def ways(monkeypatch):
    """The way of every search."""
    taken = []
    searched = knn._searched

    def noted(bank, query, k, itself, way, **sizes):
        taken.append((way, len(query)))
        return searched(bank, query, k, itself, way, **sizes)

    monkeypatch.setattr(knn, "_searched", noted)
    return taken


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("bank_block", "tile", "group"), [(1999, 1999, 1), (700, 130, 8)])
def test_blocks_find_the_neighbours_of_a_plain_loop(ways, bank_block, tile, group, leave_one_out):
    rng = np.random.default_rng(0)
    bank = (rng.normal(size=(1999, 37)) + 0.5) * rng.uniform(0.1, 9, size=(1999, 1))
    query = bank if leave_one_out else rng.normal(size=(83, 37)) + 0.5
    sizes = SIZES | {"bank_block": bank_block, "tile": tile, "group": group}
    itself = np.arange(len(bank)) if leave_one_out else None
    similarity, index = blocked_neighbours(bank, query, 7, itself=itself, **sizes)
    expected = plain_neighbours(bank, query, 7, leave_one_out)
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    np.testing.assert_array_equal(index, expected[1])
    assert (similarity.dtype, index.dtype) == (np.float32, np.int32)
    assert ways == [("shortlist", len(query))]


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


def test_rows_whose_rounding_is_as_bad_as_can_be_are_told_apart():
    small = 2.0**-12
    best = np.full(64, 1 + 2.0**-8 - small)  # rounded down to 1
    others = np.tile([1 + 2.0**-7 + 2.0**-8 + small, 1 - 2.0**-7 + 2.0**-9 + small], 32)  # up
    rows = np.zeros((400, 64))
    rows[37], rows[100::100] = best, others
    rows = rows.astype(np.float32)
    tile, error, length = shortlist._round_around(
        np.zeros(64, np.float32), rows, np.ones(400, bool)
    )
    half = np.asarray(tile, np.float32).sum(axis=0)
    assert half[37] < half[100] - 1.4 * 8 * float(error)  # further off than one slack
    block = shortlist.RoundedBlock(
        0, rows, 400, (tile,), np.zeros(64, np.float32), float(error), float(length)
    )
    query = np.ones((1, 64))
    (_, index), _ = merge_by_shortlist(
        none_yet(1, 1), np.zeros(1, bool), query, block, None, group=1
    )
    assert index == 37


@pytest.mark.parametrize("width", [1, 2, 48])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_no_product_is_further_off_than_the_slack(offset, width):
    rng = np.random.default_rng(2)
    bank = (rng.normal(size=(600, width)) + offset).astype(np.float32)
    query = (rng.normal(size=(90, width)) + offset).astype(np.float32)
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
    assert off.max() >= slack.max() / 20  # a bound, and none that lists the whole bank


@pytest.mark.parametrize("num_rows", [2000, 1996])
def test_the_mean_taken_off_makes_the_list_of_similar_rows_short(num_rows):
    rng = np.random.default_rng(3)
    bank = (1 + 0.02 * rng.normal(size=(2000, 32))).astype(np.float32)
    assert (unit(bank) @ unit(bank).T).min() > 0.99
    bank[num_rows:] = 0  # padding looks another way
    query = rng.normal(size=(20, 32)).astype(np.float32)
    _, index = merged(bank, query, 5, num_rows=num_rows)
    np.testing.assert_array_equal(index, plain_neighbours(bank[:num_rows], query, 5)[1])


@pytest.mark.parametrize("crowded_row", [None, 11])
def test_of_equal_rows_the_lowest_comes_first_also_across_blocks(ways, crowded_row):
    rng = np.random.default_rng(4)
    bank = np.concatenate([rng.normal(size=(1000, 16))] * 3).astype(np.float32)
    query = bank[:60] + 0.1 * rng.normal(size=(60, 16)).astype(np.float32)
    if crowded_row is not None:
        bank = np.concatenate([bank, np.tile(query[crowded_row], (500, 1))])
    sizes = SIZES | {"bank_block": 1100, "tile": 300}
    similarity, index = blocked_neighbours(bank, query, 5, itself=None, **sizes)
    _, first = plain_neighbours(bank[:1000], query, 2)
    expected = np.stack(
        [first[:, 0], first[:, 0] + 1000, first[:, 0] + 2000, first[:, 1], first[:, 1] + 1000], 1
    )
    if crowded_row is not None:
        expected[crowded_row] = 3000 + np.arange(5)
    np.testing.assert_array_equal(index, expected)
    assert np.all(similarity[:, :1] == similarity[:, :3])
    assert ways == [("shortlist", 60)] + [("host", 1)] * (crowded_row is not None)


@pytest.mark.parametrize(("num_rows", "group"), [(1600, 4), (1601, 8), (1597, 1)])
def test_padding_is_no_neighbour_where_all_cosines_are_negative(num_rows, group):
    rng = np.random.default_rng(5)
    bank, query = rng.uniform(0.1, 1, size=(1648, 7)), -rng.uniform(0.1, 1, size=(21, 7))
    bank[num_rows:], query[18:] = 0, 0
    is_out = np.arange(21) >= 18
    similarity, index = merged(
        bank, query, 3, num_rows=num_rows, is_out=is_out, num_tiles=2, group=group
    )
    assert similarity[:18].max() < 0
    np.testing.assert_array_equal(index[:18], plain_neighbours(bank[:num_rows], query[:18], 3)[1])
    assert np.all(similarity[18:] == -np.inf)


@pytest.mark.parametrize("k", [1, 4])
def test_an_image_and_its_group_do_not_hide_its_neighbours(k):
    rng = np.random.default_rng(10)
    bank = rng.normal(size=(1600, 9))
    _, index = merged(bank, bank[800:840], k, group=8, own_row=800 + np.arange(40))
    expected = plain_neighbours(bank, bank, k, leave_one_out=True)
    np.testing.assert_array_equal(index, expected[1][800:840])


def test_an_image_that_looks_away_from_all_finds_them_behind_itself_and_the_padding():
    bank = 1 + 0.3 * np.random.default_rng(11).normal(size=(1600, 9))
    bank[0], bank[1598:] = -1, 0
    _, index = merged(bank, bank[:1], 1, num_rows=1598, own_row=np.array([0]))
    np.testing.assert_array_equal(
        index, plain_neighbours(bank[:1598], bank[:1598], 1, leave_one_out=True)[1][:1]
    )


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("group", [1, 4, 64])
def test_rows_that_are_all_alike_are_searched_on_the_host(ways, group, leave_one_out):
    rng = np.random.default_rng(6)
    bank = np.ones((1600, 8)) * rng.choice([1.0, 2.0, 4.0], size=(1600, 1))  # collapsed
    itself = np.arange(3, 53) if leave_one_out else None
    sizes = SIZES | {"group": group}
    similarity, index = blocked_neighbours(bank, np.ones((50, 8)), 6, itself=itself, **sizes)
    expected = np.tile(np.arange(6), (50, 1))
    if leave_one_out:
        expected[:3] = [[0, 1, 2, 4, 5, 6], [0, 1, 2, 3, 5, 6], [0, 1, 2, 3, 4, 6]]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    assert ways == [("shortlist", 50), ("host", 50)]


def test_only_the_queries_of_a_crowd_are_searched_on_the_host(ways):
    rng = np.random.default_rng(7)
    bank, query = rng.normal(size=(1600, 24)), rng.normal(size=(30, 24))
    bank[500:700] = query[11]  # an eighth of the bank
    similarity, index = blocked_neighbours(bank, query, 3, itself=None, **SIZES)
    expected = plain_neighbours(bank, query, 3)
    np.testing.assert_array_equal(index[11], [500, 501, 502])
    others = np.arange(30) != 11
    np.testing.assert_array_equal(index[others], expected[1][others])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    assert ways == [("shortlist", 30), ("host", 1)]


@pytest.mark.parametrize("has_units", [False, True])
def test_a_cpu_with_bfloat16_units_lists_and_the_result_is_the_same(monkeypatch, ways, has_units):
    monkeypatch.setattr(knn, "multiplies_bfloat16_fast", lambda: has_units)
    rng = np.random.default_rng(8)
    bank, query = rng.normal(size=(3000, 20)), rng.normal(size=(knn.MANY_QUERIES, 20))
    similarity, index = neighbours(bank, query, 10)
    expected = plain_neighbours(bank, query, 10)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    neighbours(bank, query, 47)  # too many of them: no list
    neighbours(bank, query[1:], 10)  # too few queries
    number = len(query)
    assert ways == [
        ("shortlist" if has_units else "host", number),
        ("host", number),
        ("host", number - 1),
    ]
    assert is_worth_listing(46, 3000) and not is_worth_listing(47, 3000)


def test_a_query_that_is_zero_has_the_first_rows_as_neighbours():
    rng = np.random.default_rng(9)
    bank, query = rng.normal(size=(1600, 6)), rng.normal(size=(9, 6))
    query[4] = 0
    similarity, index = blocked_neighbours(bank, query, 3, itself=None, **SIZES)
    np.testing.assert_array_equal(index[4], [0, 1, 2])
    np.testing.assert_array_equal(similarity[4], 0)
    others = np.arange(9) != 4
    np.testing.assert_array_equal(index[others], plain_neighbours(bank, query[others], 3)[1])
