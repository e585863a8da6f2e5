"""k-NN equals the reference's votes, a plain loop and scikit-learn, whatever the blocks."""

import pathlib

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from gsg_jax.evaluation import shortlist
from gsg_jax.evaluation.knn import (
    VOTE_BLOCK,
    blocked_neighbours,
    knn_scores,
    knn_top1,
    knn_top1_by_k,
    neighbours,
)

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
# bank_block, tile, query_block, group: one block of all; blocks, tiles and groups that divide
# nothing; fewer rows than k in a tile and in a block; one row at a time.
SIZES = [
    (101, 101, 101, 1),
    (101, 30, 43, 4),
    (101, 7, 43, 2),
    (40, 17, 9, 8),
    (33, 33, 10, 16),
    (3, 2, 20, 2),
    (1, 1, 43, 1),
]


def plain_neighbours(bank, query, k, leave_one_out=False):
    """By sorting all cosines in float64, one query at a time."""
    bank, query = np.asarray(bank, np.float64), np.asarray(query, np.float64)
    similarity, index = [], []
    for n, vector in enumerate(query):
        cosines = bank @ vector / np.linalg.norm(bank, axis=1) / np.linalg.norm(vector)
        if leave_one_out:
            cosines[n] = -np.inf
        index.append(np.argsort(-cosines, kind="stable")[:k])
        similarity.append(cosines[index[-1]])
    return np.array(similarity), np.array(index)


def assert_neighbours(found, expected):
    similarity, index = found
    assert (similarity.dtype, index.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(similarity, expected[0], atol=2e-6)
    np.testing.assert_array_equal(index, expected[1])


@pytest.fixture(params=["device", "host", "shortlist"])
def way(request, monkeypatch):
    """Every way of choosing the best; the lists are never too long, so that they do it alone."""
    monkeypatch.setattr(shortlist, "SHARE_CROWDED", 1)
    return request.param


@pytest.mark.parametrize("k", [1, 20, 50, 200])
def test_scores_ranking_and_top1_equal_the_reference_vectors(k):
    vectors = np.load(REFERENCE / "knn.npz")
    options = {"k": k, "temperature": 0.2}
    scores = knn_scores(
        vectors["bank"], vectors["bank_labels"], vectors["query"], num_classes=10, **options
    )
    np.testing.assert_allclose(scores, vectors[f"scores64_k{k}"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.argmax(axis=1), vectors[f"pred_k{k}"][:, 0])
    top1 = knn_top1(
        vectors["bank"],
        vectors["bank_labels"],
        vectors["query"],
        vectors["query_labels"],
        **options,
    )
    assert 100 * top1 == pytest.approx(float(vectors[f"top1_k{k}"]))


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_query_that_fills_no_whole_block_equals_a_plain_loop(leave_one_out):
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(301, 7)) * rng.uniform(0.1, 9, size=(301, 1))
    labels = rng.integers(0, 4, size=301)
    query = bank if leave_one_out else rng.normal(size=(301, 7))
    scores = knn_scores(
        bank, labels, query, k=5, temperature=0.07, num_classes=4, leave_one_out=leave_one_out
    )
    for n in range(301):
        cosines = bank @ query[n] / np.linalg.norm(bank, axis=1) / np.linalg.norm(query[n])
        if leave_one_out:
            cosines[n] = -np.inf
        votes = np.zeros(4)
        for neighbour in np.argsort(-cosines)[:5]:
            votes[labels[neighbour]] += np.exp(cosines[neighbour] / 0.07)
        np.testing.assert_allclose(scores[n], votes, rtol=2e-4)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("bank_block", "tile", "query_block", "group"), SIZES)
def test_blocks_and_groups_of_any_size_find_the_neighbours_of_a_plain_loop(
    bank_block, tile, query_block, group, leave_one_out, way
):
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(101, 4)) * rng.uniform(0.1, 9, size=(101, 1))
    query = bank if leave_one_out else rng.normal(size=(43, 4))
    found = blocked_neighbours(
        bank,
        query,
        9,
        itself=np.arange(101) if leave_one_out else None,
        bank_block=bank_block,
        tile=tile,
        query_block=query_block,
        group=group,
        way=way,
    )
    assert_neighbours(found, plain_neighbours(bank, query, 9, leave_one_out))


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("bank_block", "tile", "query_block", "group"), SIZES)
def test_of_equal_similarities_the_lowest_row_comes_first(
    bank_block, tile, query_block, group, leave_one_out, way
):
    rng = np.random.default_rng(2)
    bank = rng.choice([-1.0, 1.0], size=(101, 4))  # cosines are -1, -1/2, 0, 1/2 or 1, exactly
    query = bank if leave_one_out else rng.choice([-1.0, 1.0], size=(43, 4))
    similarity, index = blocked_neighbours(
        bank,
        query,
        9,
        itself=np.arange(101) if leave_one_out else None,
        bank_block=bank_block,
        tile=tile,
        query_block=query_block,
        group=group,
        way=way,
    )
    expected = plain_neighbours(bank, query, 9, leave_one_out)
    np.testing.assert_array_equal(similarity, expected[0])
    np.testing.assert_array_equal(index, expected[1])


@pytest.mark.parametrize("group", [1, 2, 8])
def test_padding_is_no_neighbour_where_all_cosines_are_negative(group, way):
    sizes = {"bank_block": 9, "tile": 4, "query_block": 25, "group": group, "way": way}
    rng = np.random.default_rng(3)
    bank, query = rng.uniform(0.1, 1, size=(72, 5)), -rng.uniform(0.1, 1, size=(60, 5))
    for k in (1, 72):  # tiles of 4 make blocks of 9 to 24, and the last is hardly filled
        found = blocked_neighbours(bank, query, k, itself=None, **sizes)
        assert_neighbours(found, plain_neighbours(bank, query, k))


@pytest.mark.parametrize("k", [1, 3])
def test_neither_padding_nor_the_image_itself_takes_the_place_of_a_group(k, way):
    sizes = {"bank_block": 41, "tile": 14, "query_block": 41, "group": 4, "way": way}
    noise = np.random.default_rng(10).normal(size=(41, 41))
    bank = np.eye(41) - 1 / 41 + 1e-3 * noise  # a simplex: each looks away from all others
    found = blocked_neighbours(bank, bank, k, itself=np.arange(41), **sizes)
    expected = plain_neighbours(bank, bank, k, leave_one_out=True)
    assert expected[0].max() < 0
    assert_neighbours(found, expected)


def test_all_but_the_image_itself_can_be_neighbours():
    bank = np.random.default_rng(4).normal(size=(23, 5))
    found = neighbours(bank, bank, 22, leave_one_out=True)
    assert_neighbours(found, plain_neighbours(bank, bank, 22, leave_one_out=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_memory_map_of_any_float_type_is_as_good_as_an_array(tmp_path, dtype):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(90, 8)).astype(dtype)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype, mode="r", shape=(90, 8))
    bank, query = mapped[:60], mapped[60:]
    sizes = {"bank_block": 25, "tile": 9, "query_block": 8, "group": 4, "way": "host"}
    found = blocked_neighbours(bank, query, 7, itself=None, **sizes)
    assert_neighbours(found, plain_neighbours(rows[:60], rows[60:], 7))
    assert_neighbours(neighbours(bank, query, 7), plain_neighbours(rows[:60], rows[60:], 7))


@pytest.mark.parametrize("k", [1, 10, 60])
def test_predictions_equal_those_of_scikit_learn(k):
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 5, size=300)
    centres = rng.normal(size=(5, 12))
    bank = centres[labels] + 2 * rng.normal(size=(300, 12))
    query = centres[rng.integers(0, 5, size=120)] + 2 * rng.normal(size=(120, 12))
    reference = KNeighborsClassifier(
        k, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank, labels)
    scores = knn_scores(bank, labels, query, k=k, temperature=0.1, num_classes=5)
    np.testing.assert_array_equal(scores.argmax(axis=1), reference.predict(query))
    shares = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, reference.predict_proba(query), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_top1_of_several_k_is_that_of_each_by_itself(leave_one_out):
    rng = np.random.default_rng(7)
    labels, query_labels = rng.integers(0, 4, size=80), rng.integers(0, 4, size=50)
    centres = rng.normal(size=(4, 6))
    bank = centres[labels] + rng.normal(size=(80, 6))
    query = centres[query_labels] + rng.normal(size=(50, 6))
    if leave_one_out:
        query, query_labels = bank, labels
    ks, options = (20, 1, 79), {"temperature": 0.2, "leave_one_out": leave_one_out}
    by_k = knn_top1_by_k(bank, labels, query, query_labels, ks=ks, **options)
    assert by_k == [knn_top1(bank, labels, query, query_labels, k=k, **options) for k in ks]
    _, index = plain_neighbours(bank, query, 1, leave_one_out)
    assert by_k[1] == pytest.approx(np.mean(labels[index[:, 0]] == query_labels))


def test_many_classes_and_more_queries_than_a_block_of_votes_equal_a_plain_loop():
    rng = np.random.default_rng(8)
    bank, labels = rng.normal(size=(500, 4)), rng.permutation(1000)[:500]
    query = rng.normal(size=(VOTE_BLOCK + 3, 4))
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
    sizes = {"itself": None, "bank_block": 8, "tile": 5, "query_block": 7, "group": 2}
    sizes["way"] = "host"
    with pytest.raises(ValueError, match="3 of the 30 rows of the bank"):
        blocked_neighbours(broken, rows, 4, **sizes)
    with pytest.raises(ValueError, match="3 of the 30 rows of the query"):
        blocked_neighbours(rows, broken, 4, **sizes)


def test_a_k_above_the_bank_says_how_many_there_are():
    rows, labels = np.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=5, temperature=0.2, num_classes=4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=4, temperature=0.2, num_classes=4, leave_one_out=True)
