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


@pytest.mark.parametrize(("num_global", "num_local", "share"), [(3, 0, None), (2, 2, 0.3)])
def test_a_view_follows_the_other_global_views_and_patches_both_images(
    num_global, num_local, share
):
    rng = np.random.default_rng(2)
    p, z = rng.normal(size=(num_global + num_local, 7, 5)), rng.normal(size=(num_global, 7, 5))
    partner = rng.permutation(7)
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    losses = []
    for v in range(len(p)):
        for n in range(7):
            for image, weight in ((n, 1 - (share or 0)), (partner[n], share or 0)):
                followed = [z[w, image] for w in range(num_global) if w != v]
                losses.append(-weight * np.mean([cosine(p[v, n], t) for t in followed]))
    others = {"mix": None if share is None else CutMix(partner, share)}
    loss, _, (memory, metrics) = loss_and_gradient(asymmetric_loss, p, z, others=others)
    np.testing.assert_allclose(loss, np.sum(losses) / len(p) / 7, rtol=1e-10)
    np.testing.assert_allclose(metrics["attraction"], loss, rtol=1e-5)
    assert memory == {} and set(metrics) == {"attraction"}
