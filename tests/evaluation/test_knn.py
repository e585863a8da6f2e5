"""k-NN equals the reference's votes, a float64 loop and scikit-learn, whatever the blocks."""

import pathlib

import numpy as np
import pytest

from gsg_jax.evaluation.knn import (
    CPU_QUERIES,
    CPU_ROWS,
    DEVICE_QUERIES,
    VOTE_QUERIES,
    blocked_neighbours,
    knn_scores,
    knn_top1,
    neighbours,
    search_on_cpu,
    search_on_device,
)

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


def plain_neighbours(bank, query, k, leave_one_out=False):
    """By sorting all cosines in float64, one query at a time."""
    bank, query = np.asarray(bank, np.float64), np.asarray(query, np.float64)
    similarity, index = [], []
    for n, vector in enumerate(query):
        cosines = bank @ vector / np.linalg.norm(bank, axis=1) / np.linalg.norm(vector)
        if leave_one_out:
            cosines[n] = -np.inf
        index.append(np.argsort(-cosines)[:k])
        similarity.append(cosines[index[-1]])
    return np.array(similarity), np.array(index)


def assert_neighbours(found, expected):
    similarity, index = found
    assert (similarity.dtype, index.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(similarity, expected[0], atol=2e-6)
    np.testing.assert_array_equal(index, expected[1])


@pytest.mark.parametrize("k", [1, 20, 200])
def test_scores_ranking_and_top1_equal_the_reference_vectors(k):
    vectors = np.load(REFERENCE / "knn.npz")
    bank, labels, query = vectors["bank"], vectors["bank_labels"], vectors["query"]
    scores = knn_scores(bank, labels, query, num_classes=10, k=k, temperature=0.2)
    np.testing.assert_allclose(scores, vectors[f"scores64_k{k}"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.argmax(axis=1), vectors[f"pred_k{k}"][:, 0])
    (top1,) = knn_top1(bank, labels, query, vectors["query_labels"], ks=(k,), temperature=0.2)
    assert 100 * top1 == pytest.approx(float(vectors[f"top1_k{k}"]))


@pytest.mark.parametrize("search", [search_on_cpu, search_on_device])
@pytest.mark.parametrize("block", [101, 43, 7])  # one of all; of which the last is short; below k
def test_both_searches_find_the_neighbours_of_a_plain_loop_by_blocks_of_any_size(search, block):
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(101, 5)) * rng.uniform(0.1, 9, size=(101, 1))
    query = rng.normal(size=(23, 5))
    for signs in (query, -np.abs(query)):  # the second has negative cosines alone
        rows = bank if signs is query else np.abs(bank)
        found = blocked_neighbours(rows, signs, 9, search=search, block=block)
        assert_neighbours(found, plain_neighbours(rows, signs, 9))


@pytest.mark.parametrize("search", [search_on_cpu, search_on_device])
def test_a_search_takes_more_rows_than_it_compares_at_once(search):
    rng = np.random.default_rng(2)
    bank, query = rng.normal(size=(CPU_ROWS + 5, 16)), rng.normal(size=(DEVICE_QUERIES + 3, 16))
    assert CPU_QUERIES <= DEVICE_QUERIES
    similarity, index = blocked_neighbours(bank, query, 4, search=search, block=9000)
    some = np.r_[rng.choice(len(query), 40), len(query) - 1]
    expected = plain_neighbours(bank, query[some], 4)
    np.testing.assert_allclose(similarity[some], expected[0], atol=2e-6)
    assert np.mean(index[some] == expected[1]) > 0.98  # of nearly equal ones either may come first


@pytest.mark.parametrize("k", [1, 5, 22])  # all others at most
def test_no_image_is_its_own_neighbour(k):
    bank = np.random.default_rng(3).normal(size=(23, 5))
    found = neighbours(bank, bank, k, leave_one_out=True)
    assert_neighbours(found, plain_neighbours(bank, bank, k, leave_one_out=True))


def test_an_image_with_many_copies_has_some_of_them_as_neighbours_and_never_itself():
    rows = np.repeat(np.random.default_rng(4).normal(size=(3, 6)), 7, axis=0)
    similarity, index = neighbours(rows, rows, 4, leave_one_out=True)
    np.testing.assert_allclose(similarity, 1, atol=2e-6)
    np.testing.assert_array_equal(index // 7, np.repeat([0, 1, 2], 7)[:, None].repeat(4, axis=1))
    assert not (index == np.arange(21)[:, None]).any()
    assert all(len(set(row)) == 4 for row in index.tolist())


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_memory_map_of_any_float_type_is_as_good_as_an_array(tmp_path, dtype):
    rows = np.random.default_rng(5).normal(size=(90, 8)).astype(dtype)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype, mode="r", shape=(90, 8))
    found = neighbours(mapped[:60], mapped[60:], 7)
    assert_neighbours(found, plain_neighbours(rows[:60], rows[60:], 7))


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_top1_of_several_k_is_that_of_each_by_itself(leave_one_out):
    rng = np.random.default_rng(7)
    labels, query_labels = rng.integers(0, 4, size=80), rng.integers(0, 4, size=50)
    centres = rng.normal(size=(4, 6))
    bank = centres[labels] + rng.normal(size=(80, 6))
    query = centres[query_labels] + rng.normal(size=(50, 6))
    if leave_one_out:
        query, query_labels = bank, labels
    options = {"temperature": 0.2, "leave_one_out": leave_one_out}
    by_k = knn_top1(bank, labels, query, query_labels, ks=(20, 1, 79), **options)
    for k, top1 in zip((20, 1, 79), by_k, strict=True):
        scores = knn_scores(bank, labels, query, k=k, num_classes=4, **options)
        assert top1 == np.mean(scores.argmax(axis=1) == query_labels)
    _, index = plain_neighbours(bank, query, 1, leave_one_out)
    assert by_k[1] == pytest.approx(np.mean(labels[index[:, 0]] == query_labels))


def test_many_classes_and_more_queries_than_a_block_of_votes_equal_a_plain_loop():
    rng = np.random.default_rng(8)
    bank, labels = rng.normal(size=(500, 4)), rng.permutation(1000)[:500]
    query = rng.normal(size=(VOTE_QUERIES + 3, 4))
    scores = knn_scores(bank, labels, query, k=8, temperature=0.5, num_classes=1000)
    expected = np.zeros((len(query), 1000))
    for n, found in enumerate(zip(*plain_neighbours(bank, query, 8), strict=True)):
        for cosine, neighbour in zip(*found, strict=True):
            expected[n, labels[neighbour]] += np.exp(cosine / 0.5)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_are_not_finite_are_counted_and_no_neighbours(bad):
    rows = np.random.default_rng(9).normal(size=(30, 5)).astype(np.float32)
    broken = rows.copy()
    broken[[2, 17, 29], [0, 4, 1]] = bad
    with pytest.raises(ValueError, match="3 of the 30 rows of the bank"):
        blocked_neighbours(broken, rows, 4, search=search_on_cpu, block=8)
    with pytest.raises(ValueError, match="3 of the 30 rows of the query"):
        blocked_neighbours(rows, broken, 4, search=search_on_cpu, block=7)


def test_a_k_above_the_bank_says_how_many_there_are():
    rows, labels = np.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=5, temperature=0.2, num_classes=4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=4, temperature=0.2, num_classes=4, leave_one_out=True)
