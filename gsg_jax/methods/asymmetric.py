"""SimSiam and BYOL: predictions of one view follow the target projections of the other."""

import itertools

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.base import Memory, Metrics, Outputs
from gsg_jax.similarity import cosine_similarity


def asymmetric_loss(
    outputs: Outputs, memory: Memory, key: jax.Array, *, stop_gradient: bool = True
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean negative cosine between each view's prediction and every other view's target.

    Args:
      outputs: online predictions p and target projections z_target, each [V, B, D], V at least 2.
      memory: unused, returned as it came.
      key: unused; the loss draws nothing.
      stop_gradient: False lets the gradient into an online target; the method then collapses.

    Returns:
      (loss, memory, metrics): loss is a scalar in [-1, 1], lower is better; with two views it is
      1/2 D(p_1, z_2) + 1/2 D(p_2, z_1), D = -cosine. No metrics.

    Raises:
      AssertionError: at trace time, where the shapes differ or V is less than 2.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), eq. 2-4; Grill et al., NeurIPS 2020
    (arXiv 2006.07733), eq. 2 (whose squared distance of unit vectors is 2 + 2 D).
    """
    del key
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    p = outputs.p
    chex.assert_equal_shape([p, z])
    chex.assert_axis_dimension_gteq(p, 0, 2)

    similarities = [
        cosine_similarity(p[source], z[target])  # [B]
        for source, target in itertools.permutations(range(p.shape[0]), 2)
    ]
    return -jnp.mean(jnp.stack(similarities)), memory, {}
