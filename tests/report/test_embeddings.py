"""Maps, spectrum, neighbours and confusion of embeddings, against plain references."""

import sys

import numpy as np
import pytest

from gsg_jax.console import UserError
from gsg_jax.data.source import ArraySource
from gsg_jax.evaluation.knn import knn_top1
from gsg_jax.methods.diagnostics import effective_rank
from gsg_jax.report import embeddings
from gsg_jax.report.embeddings import EmbeddedImages


def images(num: int, width: int, num_classes: int, rng: np.random.Generator) -> EmbeddedImages:
    """Embeddings with planted classes."""
    label = rng.integers(0, num_classes, num).astype(np.int32)
    centres = 3 * np.random.default_rng(5).normal(size=(num_classes, width))
    h = (centres[label] + rng.normal(size=(num, width))).astype(np.float32)
    pixels = rng.integers(0, 255, (num, 5, 7, 3)).astype(np.uint8)
    return EmbeddedImages(ArraySource("random", pixels, label), h, label, "images")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize("shape", [(41, 7), (6, 23)])
def test_the_effective_rank_of_a_set_is_that_of_a_batch_of_all_its_images(shape):
    h = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = embeddings.effective_rank(embeddings.spectrum(h))
    # In float32 a singular value of 0 counts a little.
    assert found == pytest.approx(float(effective_rank(h)), rel=5e-3)


@pytest.mark.parametrize("shape", [(40, 7), (6, 23)])
def test_the_spectrum_is_that_of_the_singular_values(shape):
    h = np.random.default_rng(0).normal(2, 1, shape).astype(np.float32)
    squares = np.linalg.svd(h.astype(np.float64) - h.mean(0, dtype=np.float64)[None])[1] ** 2
    found = embeddings.spectrum(h)
    assert len(found) == min(shape[0] - 1, shape[1])
    np.testing.assert_allclose(found, (squares / squares.sum())[: len(found)], atol=1e-9)
    assert not embeddings.spectrum(np.ones((5, 3), np.float32)).any()


def test_the_gallery_has_the_nearest_of_a_bank():
    rng = np.random.default_rng(0)
    bank, query = images(60, 6, 3, rng), images(17, 6, 3, rng)
    rows = embeddings.gallery(bank, query, num_queries=5, k=4)
    similarity = cosines(query.h, bank.h)
    assert len({row.query for row in rows}) == 5
    # Every class is asked about before a second image of any.
    assert sorted(query.label[[row.query for row in rows[:3]]]) == [0, 1, 2]
    for row in rows:
        expected = np.argsort(-similarity[row.query], kind="stable")[:4]
        np.testing.assert_array_equal(row.rows, expected)
        np.testing.assert_allclose(row.similarity, similarity[row.query][expected], atol=1e-5)


def test_no_image_is_its_own_neighbour_even_beside_its_double():
    rng = np.random.default_rng(0)
    one = images(12, 6, 2, rng)
    one = one._replace(h=np.concatenate([one.h[:6], one.h[:6]]))  # each twice
    for row in embeddings.gallery(one, one, num_queries=12, k=3):
        assert row.query not in row.rows
        assert row.rows[0] == (row.query + 6) % 12
        assert len(row.rows) == 3


def test_the_confusion_is_that_of_a_plain_vote_and_its_top1_the_monitors():
    rng = np.random.default_rng(0)
    bank, query = images(50, 3, 4, rng), images(31, 3, 4, rng)
    found = embeddings.confusion(bank, query, k=5, temperature=0.2, num_classes=6)
    counts = np.zeros((6, 6), int)
    for row, similarity in enumerate(cosines(query.h, bank.h)):
        votes = np.zeros(6)
        for n in np.argsort(-similarity)[:5]:
            votes[bank.label[n]] += np.exp(similarity[n] / 0.2)
        counts[query.label[row], votes.argmax()] += 1
    np.testing.assert_array_equal(found.counts, counts)
    (top1,) = knn_top1(bank.h, bank.label, query.h, query.label, ks=(5,), temperature=0.2)
    assert found.top1 == pytest.approx(top1)
    assert np.isnan(found.recall[5])
    assert found.num_voters == 50


def test_images_of_unknown_class_neither_vote_nor_are_classified():
    rng = np.random.default_rng(0)
    one = images(40, 3, 2, rng)
    known = one._replace(h=one.h[:30], label=one.label[:30])
    label = one.label.copy()
    label[30:] = -1
    one = one._replace(label=label)
    found = embeddings.confusion(one, one, k=99, temperature=0.2, num_classes=2)
    expected = embeddings.confusion(known, known, k=29, temperature=0.2, num_classes=2)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.counts.sum() == 30 and found.k == 29


def test_the_most_confused_come_first():
    rng = np.random.default_rng(0)
    counts = np.array([[9, 4, 0], [1, 9, 7], [0, 2, 9]])
    pairs = rng.permutation(np.repeat(np.indices((3, 3)).reshape(2, 9), counts.ravel(), axis=1).T)
    found = embeddings.Confusion(*pairs.T, 3, 1, 9)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.most_confused(3) == [(1, 2, 7), (0, 1, 4), (2, 1, 2)]
    assert len(found.most_confused(20)) == 4
    assert found.top1 == pytest.approx(27 / 41)
    np.testing.assert_allclose(found.recall, [9 / 13, 9 / 17, 9 / 11])


def test_clusters_are_the_planted_ones_and_the_largest_is_the_first():
    rng = np.random.default_rng(0)
    sizes = [50, 30, 12, 8]
    planted = np.repeat(np.arange(4), sizes)
    h = (20 * np.eye(4, 9)[planted] + rng.normal(0, 0.1, (100, 9))).astype(np.float32)
    found = embeddings.clusters(h, seed=0)
    for cluster in np.unique(found):  # more clusters than were planted, but none of two kinds
        assert len(np.unique(planted[found == cluster])) == 1
    by_size = np.bincount(found)
    assert (np.diff(by_size) <= 0).all()


def test_on_the_maps_images_of_a_class_lie_near_one_another():
    one = images(60, 12, 3, np.random.default_rng(0))
    maps = embeddings.embedding_maps(one.h, seed=0, umap=False)
    assert list(maps) == ["t-SNE", "PCA"]
    for name, place in maps.items():
        assert place.shape == (60, 2) and np.isfinite(place).all()
        distance = np.linalg.norm(place[:, None] - place[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        assert (one.label[distance.argmin(axis=1)] == one.label).mean() > 0.9, name


def test_principal_components_are_the_singular_vectors():
    h = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    centred = h.astype(np.float64) - h.mean(0, dtype=np.float64)[None]
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[None, :2]
    found = embeddings.principal_components(h, 2)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs[None], expected, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 1e-7])
def test_embeddings_of_one_direction_are_a_collapse_whatever_their_lengths(share):
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(1, 8))
    h = rng.uniform(0.5, 2, (50, 1)) * direction + share * rng.normal(size=(50, 8))
    assert embeddings.is_collapsed(h.astype(np.float32))
    assert not embeddings.is_collapsed((h + 1e-3 * rng.normal(size=h.shape)).astype(np.float32))
    for place in embeddings.embedding_maps(h.astype(np.float32), seed=0, umap=False).values():
        assert not place.any()
    smallest = embeddings.embedding_maps(np.eye(4, 1, dtype=np.float32), seed=0, umap=False)
    for place in smallest.values():
        assert place.shape == (4, 2) and np.isfinite(place).all()


def test_umap_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'gsg_jax\[report\]'"):
        embeddings.check_umap()
