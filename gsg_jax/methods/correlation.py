"""The running correlation matrix of target projections: memory of DirectPred and UniGrad."""

import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory


def init_correlation(key: jax.Array, *, width: int, **options) -> Memory:
    """Makes the memory before the first step.

    It has correlation, zeros [D, D], and is_set, a bool scalar, False until the first update.
    """
    del key, options
    return {"correlation": jnp.zeros((width, width)), "is_set": jnp.zeros((), bool)}


def update_correlation(memory: Memory, targets: jax.Array, decay: float) -> Memory:
    """Moves F to rho F + (1 - rho) mean_v v v', mean over all V B rows; the first batch sets F.

    Args:
      memory: correlation F [D, D], is_set.
      targets: unit rows of the target branch, [V, B, D].
      decay: rho, in [0, 1].

    Source: Tao et al., CVPR 2022 (arXiv 2112.05141), section 3.4.
    """
    rows = jax.lax.stop_gradient(targets).reshape(-1, targets.shape[-1])
    batch = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST) / rows.shape[0]
    old = memory["correlation"]
    moved = decay * old + (1 - decay) * batch.astype(old.dtype)
    correlation = jnp.where(memory["is_set"], moved, batch.astype(old.dtype))
    return {"correlation": correlation, "is_set": jnp.ones((), bool)}
