"""Collapse figures: do the representations of a batch still differ from one another?"""

import jax
import jax.numpy as jnp

from gsg_jax.methods.similarity import normalize

MAX_ROWS = 256


def projection_std(z: jax.Array) -> jax.Array:
    """Standard deviation of normalised projections over the batch, times sqrt(D).

    Args:
      z: projections of one or more views, [V, B, D].

    Returns:
      Mean over channels and views, a scalar: 1 for an isotropic distribution on the sphere, 0
      when all projections are one vector. A last BatchNorm keeps it near 1 while the rank is
      lost, so watch `effective_rank` too.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), section 4.1.
    """
    return jnp.mean(jnp.std(normalize(z), axis=1)) * jnp.sqrt(z.shape[-1])


def effective_rank(x: jax.Array) -> jax.Array:
    """The exponential of the entropy of the centred rows' normalised singular values.

    Args:
      x: representations, [B, F]; of more than 256 rows the first 256 are looked at.

    Returns:
      A scalar in [1, min(B - 1, F)]; 1 where all rows lie on one line, 0 where they are equal.

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    x = x[:MAX_ROWS].astype(jnp.float32)
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    centred = centred / jnp.maximum(jnp.max(jnp.abs(centred)), 1e-30)
    rows, columns = centred.shape
    smaller = centred if rows <= columns else centred.T
    gram = jnp.matmul(smaller, smaller.T, precision=jax.lax.Precision.HIGHEST)
    singular = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram), 0))
    total = jnp.sum(singular)
    shares = singular / jnp.maximum(total, 1e-30)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)
