"""LeJEPA: views agree, and their projections are spread as a standard Gaussian (SIGReg)."""

import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.sketch import distance_to_centre, project

NUM_KNOTS, LARGEST_T = 17, 3  # the authors' minimal version; their paper has knots on [-5, 5]


def lejepa_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    regularizer_weight: float,
    num_directions: int,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """(1 - lambda) invariance + lambda SIGReg, lambda the regularizer_weight, on raw projections.

    Invariance is `distance_to_centre`, SIGReg the mean of `sigreg` over all views.

    Args:
      outputs: online predictions p [V, B, D] and target projections z_target [G, B, D].
      memory: unused, returned as is.
      key: draws the directions, new ones at each step.
      regularizer_weight: lambda, in [0, 1].
      num_directions: M, on which the projections are compared with a Gaussian.
      stop_gradient: True keeps the gradient out of the image's mean view.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0; metrics has both terms, unweighted.

    Source: Balestriero & LeCun (arXiv 2511.08544).
    """
    invariance = distance_to_centre(outputs, stop_gradient)
    gaussianity = jnp.mean(sigreg(project(outputs.p, key, num_directions)))
    loss = (1 - regularizer_weight) * invariance + regularizer_weight * gaussianity
    attraction = (1 - regularizer_weight) * invariance
    terms = {"invariance": invariance, "sigreg": gaussianity}
    return loss, memory, {"attraction": attraction, **terms}


def sigreg(s: jax.Array) -> jax.Array:
    """Epps-Pulley distance of each direction's rows from a standard Gaussian, [V, M].

    B integral_{-3}^3 phi ((mean cos(t s) - phi)^2 + (mean sin(t s))^2) dt, phi = exp(-t^2 / 2), the
    means over the batch of s [V, B, M], by the trapezoidal rule on [0, 3], doubled.
    """
    t = jnp.linspace(0, LARGEST_T, NUM_KNOTS, dtype=s.dtype)
    phi = jnp.exp(-jnp.square(t) / 2)
    angles = jnp.multiply.outer(s, t)  # [V, B, M, T]
    cosines, sines = jnp.mean(jnp.cos(angles), axis=1), jnp.mean(jnp.sin(angles), axis=1)
    squares = jnp.square(cosines - phi[None, None]) + jnp.square(sines)  # [V, M, T]
    integral = jax.scipy.integrate.trapezoid(phi[None, None] * squares, dx=t[1])  # [V, M]
    return s.shape[1] * 2 * integral
