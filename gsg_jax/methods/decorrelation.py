"""Barlow Twins and VICReg: views agree, and their channels are decorrelated."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs

STD_EPSILON = 1e-4  # VICReg's, under the root


def barlow_twins_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    off_diagonal_weight: float,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """Distance of the views' cross-correlation matrix from the identity.

    With columns standardised over the batch, C = z_1' z_2 / B:
      l = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2.

    Args:
      outputs: online predictions p, target projections z_target (for the diagonal) and negatives
        (for the rest), each [2, B, D].
      memory: unused, returned as is.
      key: unused; nothing is random.
      off_diagonal_weight: lambda, at least 0.
      stop_gradient: True takes z_2 from the target under stop-gradient, in both orders.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0. Nothing else is logged.

    Source: Zbontar et al., ICML 2021 (arXiv 2103.03230), eq. 1.
    """
    del key

    def one_order(x, y, y_negative):
        x, y, y_negative = standardize(x), standardize(y), standardize(y_negative)
        diagonal = jnp.mean(x * y, axis=0)  # of C, against the positives, [D]
        on_diagonal = jnp.sum(jnp.square(1 - diagonal))
        c = _product(x, y_negative) / x.shape[0]  # [D, D]
        own_squares = jnp.sum(jnp.square(jnp.diagonal(c)))
        off_diagonal = jnp.sum(jnp.square(c)) - own_squares
        # The sum of all squares pushes images apart; the rest attracts.
        attraction = on_diagonal - off_diagonal_weight * own_squares
        return jnp.stack([on_diagonal + off_diagonal_weight * off_diagonal, attraction])

    loss, attraction = _both_orders(one_order, outputs, stop_gradient)
    return loss, memory, {"attraction": attraction}


def vicreg_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    invariance_weight: float,
    variance_weight: float,
    covariance_weight: float,
    stop_gradient: bool = False,
) -> tuple[jax.Array, Memory, Metrics]:
    """Weighted sum of invariance, variance and covariance terms, on raw projections.

      invariance = mean (z_1 - z_2)^2 over images and channels,
      variance   = mean_d max(0, 1 - sqrt(Var(z_d) + 1e-4)), averaged over both views,
      covariance = sum_{i != j} Cov(z)_ij^2 / D, summed over both views.

    Args:
      outputs: online predictions p and target projections z_target, each [2, B, D].
      memory: unused, returned as is.
      key: unused; nothing is random.
      invariance_weight: at least 0.
      variance_weight: at least 0.
      covariance_weight: at least 0.
      stop_gradient: True takes z_2 from the target under stop-gradient, in both orders.

    Returns:
      (loss, memory, metrics): loss is a scalar, at least 0; metrics has the three terms,
      unweighted.

    Source: Bardes et al., ICLR 2022 (arXiv 2105.04906), section 4.2. Differs from its eq. 5 and 6:
    the invariance is a mean over channels, not a sum, and the variance a mean over both views.
    """
    del key

    def invariance_of(x, y, _):
        return jnp.stack([jnp.mean(jnp.square(x - y)), -2 * jnp.mean(x * y)])

    invariance, agreement = _both_orders(invariance_of, outputs, stop_gradient)
    variance, covariance = _spread(outputs.p)
    loss = (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )
    attraction = invariance_weight * agreement
    terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return loss, memory, {"attraction": attraction, **terms}


def standardize(x: jax.Array) -> jax.Array:
    """Columns of [B, D] with mean 0 and standard deviation 1; a constant column becomes 0.

    A column is constant if it varies by no more than the rounding of its mean.
    """
    mean = jnp.mean(x, axis=0, keepdims=True)
    centred = x - mean
    variance = jnp.mean(jnp.square(centred), axis=0, keepdims=True)
    is_constant = variance <= jnp.square(16 * jnp.finfo(x.dtype).eps * mean)
    return jnp.where(is_constant, 0.0, centred / jnp.sqrt(jnp.where(is_constant, 1.0, variance)))


def _spread(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """VICReg's variance term and covariance term of [V, B, D], unweighted."""
    _, batch_size, width = z.shape
    centred = z - jnp.mean(z, axis=1, keepdims=True)
    covariance = jnp.einsum("vbi,vbj->vij", centred, centred, precision=jax.lax.Precision.HIGHEST)
    covariance = covariance / (batch_size - 1)
    diagonal = jnp.diagonal(covariance, axis1=1, axis2=2)  # [V, D]
    variance = jnp.mean(jax.nn.relu(1 - jnp.sqrt(diagonal + STD_EPSILON)))
    squares = jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(diagonal))
    return variance, squares / width


def _both_orders(of_pair, outputs: Outputs, stop_gradient: bool) -> jax.Array:
    """Averages of_pair, whose first argument is the online row, over both orders of the views."""
    chex.assert_equal_shape([outputs.p, outputs.z_target, outputs.negatives])
    chex.assert_axis_dimension(outputs.p, 0, 2)
    p, targets = outputs.p, (outputs.z_target, outputs.negatives)
    z, z_negative = jax.lax.stop_gradient(targets) if stop_gradient else targets
    return (of_pair(p[0], z[1], z_negative[1]) + of_pair(p[1], z[0], z_negative[0])) / 2


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)
