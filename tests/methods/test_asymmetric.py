"""SimSiam's and BYOL's loss equals the reference's figures and a plain loop."""

import pathlib

import numpy as np
import pytest

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.method import CutMix
from tests.methods.loops import loss_and_gradient

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


@pytest.mark.parametrize("name", ["gsg_random", "gsg_near_collapse", "gsg_ties", "gsg_zeros"])
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_two_views_equal_the_reference_vectors(name, precision):
    vectors = np.load(REFERENCE / f"{name}.npz")
    dtype, tolerance = (np.float32, 1e-5) if precision == "f32" else (np.float64, 1e-10)
    p = np.stack([vectors["p11"], vectors["p12"]])
    z = np.stack([vectors["z11"], vectors["z12"]])
    loss, grads, _ = loss_and_gradient(asymmetric_loss, p, z, dtype=dtype)
    # A mean of cosines of either sign: near zero it is their size, 1, that rounding goes by.
    expected = vectors[f"{precision}_simsiam_loss"]
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=0.01 * tolerance)
    for ours, column in zip(grads, ["p1", "p2"], strict=True):
        theirs = vectors[f"{precision}_simsiam_grad_{column}"]
        atol = tolerance * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=atol)


def test_more_views_are_the_mean_over_all_ordered_pairs():
    rng = np.random.default_rng(0)
    p, z = rng.normal(size=(2, 3, 7, 5))
    loss, _, (memory, metrics) = loss_and_gradient(asymmetric_loss, p, z)
    cosines = [
        p[i, n] @ z[j, n] / np.linalg.norm(p[i, n]) / np.linalg.norm(z[j, n])
        for i in range(3)
        for j in range(3)
        if i != j
        for n in range(7)
    ]
    np.testing.assert_allclose(loss, -np.mean(cosines), rtol=1e-12)
    assert memory == {} and set(metrics) == {"attraction"}


def test_local_views_follow_both_targets_and_patches_both_images():
    rng = np.random.default_rng(2)
    p, z = rng.normal(size=(4, 7, 5)), rng.normal(size=(2, 7, 5))
    partner, share = rng.permutation(7), 0.3
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    cosines = []
    for v in range(4):
        for n in range(7):
            for image, weight in ((n, 1 - share), (partner[n], share)):
                followed = [z[1 - v, image]] if v < 2 else [z[0, image], z[1, image]]
                cosines.append(weight * np.mean([cosine(p[v, n], t) for t in followed]))
    mix = CutMix(partner, share)
    loss, _, (_, metrics) = loss_and_gradient(asymmetric_loss, p, z, others={"mix": mix})
    np.testing.assert_allclose(loss, -np.sum(cosines) / 28, rtol=1e-10)
    np.testing.assert_allclose(metrics["attraction"], loss, rtol=1e-5)
