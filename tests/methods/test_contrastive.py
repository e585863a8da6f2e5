"""SimCLR's and MoCo's loss equal a loop over the anchors; the queue is first in, first out."""

import jax
import numpy as np
import pytest

from gsg_jax.methods.contrastive import init_queue, moco_loss, nt_xent_loss
from tests.methods.loops import fresh, loss_and_gradient, unit


def cross_entropy(positive, others):
    """-log of the positive's share among itself and the others."""
    return -positive + np.log(np.exp(positive) + np.sum(np.exp(others)))


@pytest.mark.parametrize("shared", [True, False])
def test_nt_xent_equals_a_loop_over_anchors(shared):
    p, z = fresh(0)
    value, _, _ = loss_and_gradient(nt_xent_loss, p, None if shared else z, temperature=0.3)
    u, t = unit(p), unit(p if shared else z)
    terms = []
    for view in range(2):
        for n in range(7):
            positive = u[view, n] @ t[1 - view, n] / 0.3
            others = [
                u[view, n] @ t[w, m] / 0.3
                for w in range(2)
                for m in range(7)
                if (w, m) not in ((view, n), (1 - view, n))
            ]
            terms.append(cross_entropy(positive, others))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-12)


def test_negatives_of_another_branch_by_a_loop():
    (p, z), (others, _) = fresh(5), fresh(6)
    negatives = {"z_negative": others}
    u, t, negative = unit(p), unit(z), unit(others)
    queue = np.eye(5)[np.arange(14) % 5]
    in_batch, in_queue = [], []
    for view in range(2):
        for n in range(7):
            positive = u[view, n] @ t[1 - view, n] / 0.3
            images = [(w, m) for w in range(2) for m in range(7) if m != n]
            in_batch.append(
                cross_entropy(positive, [u[view, n] @ negative[w, m] / 0.3 for w, m in images])
            )
            in_queue.append(cross_entropy(positive, queue @ u[view, n] / 0.3))
    value, _, _ = loss_and_gradient(nt_xent_loss, p, z, others=negatives, temperature=0.3)
    np.testing.assert_allclose(value, np.mean(in_batch), rtol=1e-5)
    memory = {"queue": queue, "oldest": np.int32(0)}
    value, _, (after, _) = loss_and_gradient(
        moco_loss, p, z, memory, others=negatives, temperature=0.3, queue_size=14
    )
    np.testing.assert_allclose(value, np.mean(in_queue), rtol=1e-5)
    np.testing.assert_allclose(after["queue"], negative.reshape(-1, 5), rtol=1e-5, atol=1e-6)


def test_moco_equals_a_loop_over_the_queue():
    p, z = fresh(2)
    queue = unit(np.random.default_rng(3).normal(size=(20, 5)))
    memory = {"queue": queue, "oldest": np.int32(3)}
    value, _, (after, _) = loss_and_gradient(
        moco_loss, p, z, memory, temperature=0.2, queue_size=20
    )
    u, t = unit(p), unit(z)
    terms = [
        cross_entropy(u[v, n] @ t[1 - v, n] / 0.2, [u[v, n] @ row / 0.2 for row in queue])
        for v in range(2)
        for n in range(7)
    ]
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-12)
    expected = queue.copy()
    for place, row in enumerate(t.reshape(-1, 5), 3):
        expected[place % 20] = row
    np.testing.assert_allclose(after["queue"], expected, rtol=1e-12)
    assert after["oldest"] == (3 + 14) % 20


def test_the_queue_forgets_the_oldest_first():
    memory = init_queue(jax.random.key(0), width=3, queue_size=10, temperature=0.2)
    np.testing.assert_allclose(np.linalg.norm(memory["queue"], axis=1), 1, rtol=1e-6)
    history = []
    for step in range(4):  # 6 rows a step, 10 places
        z = np.random.default_rng(step).normal(size=(2, 3, 3))
        _, _, (memory, _) = loss_and_gradient(
            moco_loss, z, z, memory, dtype=np.float32, temperature=0.2, queue_size=10
        )
        history += list(unit(z).reshape(-1, 3))
    by_first = [sorted(map(tuple, rows)) for rows in (memory["queue"], history[-10:])]
    np.testing.assert_allclose(*by_first, rtol=1e-5)
