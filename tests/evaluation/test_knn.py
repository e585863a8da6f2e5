"""k-NN equals the reference's votes and a plain loop."""

import pathlib

import numpy as np
import pytest

from gsg_jax.evaluation.knn import knn_scores, knn_top1

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


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


def test_a_k_above_the_bank_says_how_many_there_are():
    rows, labels = np.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=5, temperature=0.2, num_classes=4)
    with pytest.raises(ValueError, match="the bank has 4 images"):
        knn_scores(rows, labels, rows, k=4, temperature=0.2, num_classes=4, leave_one_out=True)
