"""VISReg: views agree, and scale, shape and centre of their projections are a Gaussian's."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.similarity import norm
from gsg_jax.methods.sketch import distance_to_centre, project


def visreg_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    regularizer_weight: float,
    num_directions: int,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """(1 - lambda) invariance + lambda (scale + shape + centre), on raw projections.

    With mean mu and standard deviation sigma of each channel of a view over the batch:
      centre = mean mu^2, scale = mean (1 - sigma)^2,
      shape  = mean over directions and ranks of (sort(z' a)_i - Phi^-1(i / (B + 1)))^2, the sliced
        Wasserstein distance of z' = (z - mu) / (sg sigma + 1e-4) from a Gaussian's quantiles.

    Args:
      outputs: online predictions p [V, B, D] and target projections z_target [G, B, D].
      memory: unused, returned as is.
      key: draws the directions a, new ones at each step.
      regularizer_weight: lambda, in [0, 1].
      num_directions: M.
      stop_gradient: True keeps the gradient out of the image's mean view.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0; metrics has the terms, unweighted.

    Source: Wu, Balestriero & Levine (arXiv 2606.02572).
    """
    invariance = distance_to_centre(outputs, stop_gradient)
    p, batch_size = outputs.p, outputs.p.shape[1]
    centred = p - (mean := jnp.mean(p, axis=1, keepdims=True))
    sigma = norm(centred.swapaxes(1, 2)) / batch_size**0.5  # [V, D]
    scaled = centred / (jax.lax.stop_gradient(sigma)[:, None] + 1e-4)
    ranked = jnp.sort(project(scaled, key, num_directions), axis=1)
    quantiles = ndtri(jnp.arange(1, batch_size + 1, dtype=p.dtype) / (batch_size + 1))
    terms = {
        "scale": jnp.mean(jnp.square(1 - sigma)),
        "shape": jnp.mean(jnp.square(ranked - quantiles[None, :, None])),
        "centre": jnp.mean(jnp.square(mean)),
    }
    loss = (1 - regularizer_weight) * invariance + regularizer_weight * sum(terms.values())
    attraction = (1 - regularizer_weight) * invariance
    return loss, memory, {"attraction": attraction, "invariance": invariance, **terms}
