"""SimDINO: views follow an EMA target, and a coding rate keeps the rows of a batch apart."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.positives import positives
from gsg_jax.methods.similarity import attraction, cosine_to_unit, normalize


def simdino_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    coding_epsilon: float,
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """-compression - expansion, on unit rows u of the predictions and t of the targets.

      compression = mean of u_v . t_g over the pairs of an online view v and a target view g != v,
      expansion   = gamma mean_v 1/2 log det (I + D / (B epsilon) F_v' F_v), of the global views,
        with F_v = (u_v + t_v) / 2 and gamma = 1 / D + 1 / B.

    Args:
      outputs: online predictions p [V, B, D] and target projections z_target [G, B, D].
      memory: unused, returned as is.
      key: unused; nothing is random.
      coding_epsilon: epsilon, above 0: the square of the error that the coding rate allows.
      stop_gradient: False lets the gradient into an online target.

    Returns:
      (loss, memory, metrics): loss is a scalar; metrics has both terms, to be maximised.

    Source: Wu et al., ICML 2025 (arXiv 2502.10385).
    """
    z = jax.lax.stop_gradient(outputs.z_target) if stop_gradient else outputs.z_target
    p, (num_global, batch_size, width) = outputs.p, z.shape
    chex.assert_equal_shape([p[0], z[0]])
    chex.assert_axis_dimension_gteq(z, 0, 2)
    u, t = normalize(p[:num_global]), normalize(z)
    targets = positives(t, p.shape[0], outputs.mix, outputs.picks)  # [V, B, D]
    num_targets = num_global - (jnp.arange(len(p)) < num_global)  # of each view, [V]: not its own

    f = (u + t) / 2
    f = f.swapaxes(1, 2) if batch_size < width else f  # the smaller matrix, of equal determinant
    gram = jnp.einsum("vni,vnj->vij", f, f, precision=jax.lax.Precision.HIGHEST)
    scaled = jnp.eye(f.shape[2])[None] + width / (batch_size * coding_epsilon) * gram
    roots = jnp.diagonal(jnp.linalg.cholesky(scaled), axis1=1, axis2=2)  # [G, min(B, D)]
    expansion = (1 / width + 1 / batch_size) * jnp.mean(jnp.sum(jnp.log(roots), axis=-1))
    cosines = jnp.stack([cosine_to_unit(p, targets), attraction(p, targets)])  # [2, V, B]
    compression, pull = jnp.average(jnp.mean(cosines, axis=2), axis=1, weights=num_targets)
    metrics = {"attraction": -pull, "compression": compression, "expansion": expansion}
    return -compression - expansion, memory, metrics
