"""DirectPred: the predictor in closed form, from the correlation of the targets."""

import jax
import jax.numpy as jnp

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.correlation import init_correlation, update_correlation
from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.similarity import normalize


def directpred_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    correlation_decay: float,
    eigenvalue_floor: float,
    predictor_every_steps: int,
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """The asymmetric loss of predictions W z, with W computed from the running correlation F.

    F = U diag(s) U' gives W = U diag(sqrt(s) + epsilon max sqrt(s)) U'. No gradient enters W.

    Args:
      outputs: online predictions p (projections, unless another predictor is configured) [V, B, D],
        and target projections z_target (positives) and negatives (for F), [G, B, D].
      memory: from init_predictor; F comes from unit rows of whole global views.
      key: unused; nothing is random.
      correlation_decay: rho of F, in [0, 1].
      eigenvalue_floor: epsilon, at least 0.
      predictor_every_steps: how often W is updated; the eigenvectors dominate the cost.
      stop_gradient: False lets the gradient into an online target.

    Returns:
      (loss, memory, metrics): loss is a scalar in [-1, 1], lower is better. Nothing else
      is logged.

    Source: Tian et al., ICML 2021 (arXiv 2102.06810), section 4; the correlation on unit rows is
    UniGrad's (arXiv 2112.05141).
    """
    rows = normalize(outputs.negatives)
    running = update_correlation(memory["running"], rows, correlation_decay)
    predictor = jax.lax.cond(
        memory["steps"] % predictor_every_steps == 0,
        lambda: closed_form_predictor(running["correlation"], eigenvalue_floor),
        lambda: memory["predictor"],
    )
    p = jnp.matmul(outputs.p, predictor, precision=jax.lax.Precision.HIGHEST)
    loss, _, metrics = asymmetric_loss(outputs._replace(p=p), {}, key, stop_gradient=stop_gradient)
    memory = {"running": running, "predictor": predictor, "steps": memory["steps"] + 1}
    return loss, memory, metrics


def closed_form_predictor(correlation: jax.Array, eigenvalue_floor: float) -> jax.Array:
    """W = U diag(sqrt(s) + epsilon max sqrt(s)) U', [D, D], of a correlation matrix.

    Args:
      correlation: F = U diag(s) U', symmetric and positive semidefinite.
      eigenvalue_floor: epsilon, the share of the largest root added to each root.
    """
    values, vectors = jnp.linalg.eigh(correlation)
    roots = jnp.sqrt(jnp.maximum(values, 0))
    roots = roots + eigenvalue_floor * jnp.max(roots)
    return jnp.matmul(vectors * roots[None], vectors.T, precision=jax.lax.Precision.HIGHEST)


def init_predictor(key: jax.Array, *, width: int, **options) -> Memory:
    """Makes the memory before the first step: F, W = identity, and steps done, an int32 scalar."""
    return {
        "running": init_correlation(key, width=width, **options),
        "predictor": jnp.eye(width),
        "steps": jnp.zeros((), jnp.int32),
    }
