"""Groups of similar images and distances to neighbours equal plain loops, whatever the blocks."""

import numpy as np
import pytest

from gsg_jax.search import similar


def plain_cosines(h):
    unit = np.asarray(h, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def plain_groups(cosines, threshold):
    """By walking from image to image; the highest cosine of each that reaches the threshold."""
    left, groups = set(range(len(cosines))), []
    while left:
        walk, group = [left.pop()], set()
        while walk:
            i = walk.pop()
            group.add(i)
            near = {j for j in left if cosines[i, j] >= threshold}
            left -= near
            walk += near
        if len(group) > 1:
            groups.append(sorted(group))
    closest = [
        max((c for j, c in enumerate(row) if j != i and c >= threshold), default=-1)
        for i, row in enumerate(cosines)
    ]
    return sorted(groups, key=lambda group: (-len(group), group[0])), closest


def planted(seed, num=121, width=6):
    """Clusters of several tightness, of random lengths, and a threshold that no cosine is near."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num // 4, width))
    h = centres[rng.integers(len(centres), size=num)]
    h = h + rng.normal(size=h.shape) * rng.choice([0.0, 0.05, 0.2, 1.0], size=(num, 1))
    h = (h * rng.uniform(0.1, 9, size=(num, 1))).astype(np.float32)
    cosines = np.sort(plain_cosines(h)[np.triu_indices(num, 1)])
    low, high = np.searchsorted(cosines, (0.9, 0.995))
    gap = low + np.argmax(np.diff(cosines[low:high]))
    assert cosines[gap + 1] - cosines[gap] > 1e-4
    return h, float(cosines[gap : gap + 2].mean())


@pytest.mark.parametrize(("seed", "block"), [(0, 2048), (2, 70)])
def test_groups_equal_a_walk_over_all_pairs(monkeypatch, seed, block):
    monkeypatch.setattr(similar, "BLOCK", block)
    h, threshold = planted(seed)
    groups, closest = plain_groups(plain_cosines(h), threshold)
    found = similar.similar_groups(h, threshold)
    cosines = plain_cosines(h)
    assert sum((cosines[np.ix_(rows, rows)] < threshold).any() for rows in groups) > 2  # chains
    assert [rows.tolist() for rows in found.rows] == groups
    np.testing.assert_allclose(found.closest, closest, atol=2e-6)


def test_embeddings_of_one_direction_reach_a_threshold_of_one_and_no_others_do():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(300, 33)).astype(np.float32)
    h[150:] = h[:150] * rng.uniform(0.1, 9, size=(150, 1))  # many a cosine is rounded below 1
    found = similar.similar_groups(h, 1.0)
    assert [rows.tolist() for rows in found.rows] == [[n, 150 + n] for n in range(150)]


def test_a_zero_embedding_is_like_no_other():
    h = np.eye(4, dtype=np.float32)
    h[2:] = 0
    assert similar.similar_groups(h, similar.ROUNDING * 2).rows == []
