"""DINO's and TWIST's loss equal loops over images and classes."""

import jax
import numpy as np
import pytest

from gsg_jax.methods.clustering import dino_loss, init_centre, twist_loss
from tests.methods.loops import fresh, loss_and_gradient

DINO = {"temperature": 0.5, "target_temperature": 0.3, "first_target_temperature": 0.1}
DINO |= {"temperature_warmup_steps": 4, "centre_momentum": 0.9}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(
    ("steps", "sharpness", "num_local"), [(0, 0.1, 0), (3, 0.25, 2), (4, 0.3, 0), (9, 0.3, 2)]
)
def test_dino_equals_a_loop_and_warms_its_target_up(steps, sharpness, num_local):
    p, z = fresh(0)
    p = np.concatenate([p, fresh(4)[0][:num_local]])  # local views follow both targets
    centre = np.random.default_rng(1).normal(size=5)
    memory = {"centre": centre, "steps": np.int32(steps)}
    value, _, (after, metrics) = loss_and_gradient(dino_loss, p, z, memory, **DINO)
    q = np.array([[softmax((row - centre) / sharpness) for row in view] for view in z])
    entropies = [-np.sum(row * np.log(row)) for view in q for row in view]
    terms = []
    for view in range(2 + num_local):
        for n in range(7):
            followed = q[1 - view, n] if view < 2 else (q[0, n] + q[1, n]) / 2
            terms.append(-np.sum(followed * np.log(softmax(p[view, n] / 0.5))))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-10)
    np.testing.assert_allclose(metrics["target_temperature"], sharpness)
    np.testing.assert_allclose(metrics["target_entropy"], np.mean(entropies), rtol=1e-10)
    np.testing.assert_allclose(after["centre"], 0.9 * centre + 0.1 * z.mean((0, 1)), rtol=1e-12)
    assert after["steps"] == steps + 1


def test_dino_starts_without_a_centre():
    memory = init_centre(jax.random.key(0), width=6, **DINO)
    assert memory["centre"].shape == (6,) and not memory["centre"].any() and memory["steps"] == 0


def test_twist_equals_a_loop():
    p, z = fresh(2)
    value, _, (_, terms) = loss_and_gradient(
        twist_loss, p, z, sharpness_weight=0.4, diversity_weight=0.6
    )
    classes, twins = [np.array([[softmax(row) for row in view] for view in x]) for x in (p, z)]
    consistency = []
    for view in range(2):
        for n in range(7):
            a, b = classes[view, n], twins[1 - view, n]
            consistency.append((np.sum(a * np.log(a / b)) + np.sum(b * np.log(b / a))) / 2)
    sharpness = np.mean([-np.sum(a * np.log(a)) for view in classes for a in view])
    means = classes.mean(axis=1)
    diversity = np.mean([-np.sum(a * np.log(a)) for a in means])
    np.testing.assert_allclose(terms["consistency"], np.mean(consistency), rtol=1e-10)
    np.testing.assert_allclose(terms["sharpness"], sharpness, rtol=1e-10)
    np.testing.assert_allclose(terms["diversity"], diversity, rtol=1e-10)
    expected = np.mean(consistency) + 0.4 * sharpness - 0.6 * diversity
    np.testing.assert_allclose(value, expected, rtol=1e-10)
