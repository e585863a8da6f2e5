"""SimSiam and BYOL: predictions of one view follow the target projections of the other."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.positives import positives
from gsg_jax.methods.similarity import attraction, cosine_to_unit, normalize


def asymmetric_loss(
    outputs: Outputs, memory: Memory, key: jax.Array, *, stop_gradient: bool = True
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean negative cosine between each view's prediction and every other view's target.

    Args:
      outputs: online predictions p [V, B, D] and target projections z_target [G, B, D] of the
        global views, G at least 2; local views follow all these targets.
      memory: unused, returned as is.
      key: unused; nothing is random.
      stop_gradient: False lets the gradient into an online target; the method then collapses.

    Returns:
      (loss, memory, metrics): loss is a scalar in [-1, 1], lower is better; with two views it is
      1/2 D(p_1, z_2) + 1/2 D(p_2, z_1), D = -cosine. Nothing else is logged.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), eq. 2-4; Grill et al., NeurIPS 2020
    (arXiv 2006.07733), eq. 2 (whose squared distance of unit vectors is 2 + 2 D).
    """
    del key
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    p = outputs.p
    chex.assert_equal_shape([p[0], z[0]])
    chex.assert_axis_dimension_gteq(z, 0, 2)

    targets = positives(normalize(z), p.shape[0], outputs.mix, outputs.picks)  # [V, B, D]
    loss = -jnp.mean(cosine_to_unit(p, targets))
    return loss, memory, {"attraction": -jnp.mean(attraction(p, targets))}
