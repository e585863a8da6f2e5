"""The gradient inspector: what pulls a projection, what pushes it, and how the two compare."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gsg_jax.methods.method import LossFn, Memory, Metrics, Outputs
from gsg_jax.methods.similarity import NORM_FLOOR, norm, normalize

GRADIENT_FIGURES = (
    "positive_gradient",
    "negative_gradient",
    "gradient_balance",
    "gradient_cosine",
    "positive_similarity",
    "negative_similarity",
    "channel_correlation",
)


def gradient_figures(
    loss: LossFn,
    outputs_of: Callable[[jax.Array], Outputs],
    z: jax.Array,
    memory: Memory,
    key: jax.Array,
) -> Metrics:
    """Splits a method's gradient into its positive and its negative part, on the unit sphere.

    With u = z / |z| a row's gradient is |z| (I - u u') dl/dz, so that methods with and without
    normalisation compare, and times V B, as if the loss were that row's alone. The positive part is
    the gradient of the loss's attraction, the negative one the rest.

    Args:
      loss: the method's.
      outputs_of: the outputs as a function of the online projections [V, B, D].
      z: online projections, [V, B, D].
      memory: the method's, before the step.
      key: the loss's key of the step.

    Returns:
      Scalars: positive_gradient and negative_gradient, mean norms over the rows; gradient_balance,
      the second by the first; gradient_cosine, the mean cosine between a row's two parts, -1 where
      they cancel; positive_similarity, the mean cosine between sibling views across the branches,
      and negative_similarity, between views of different images; channel_correlation, root mean
      square of the correlations between two channels of z over a view's batch, 0 where features
      are decorrelated, 1 where all channels say the same.

    Source: Tao et al., CVPR 2022 (arXiv 2112.05141), section 3 and figure 2.
    """

    def attraction(z):
        return loss(outputs_of(z), memory, key)[2]["attraction"]

    def whole(z):
        return loss(outputs_of(z), memory, key)[0]

    gradient = jax.grad(whole)(z)
    positive = jax.grad(attraction)(z)
    negative = _on_the_sphere(z, gradient - positive)
    positive = _on_the_sphere(z, positive)
    lengths = jnp.mean(norm(positive)), jnp.mean(norm(negative))
    num_rows = z.shape[0] * z.shape[1]
    cosines = jnp.sum(normalize(num_rows * positive) * normalize(num_rows * negative), axis=-1)
    return {
        "positive_gradient": num_rows * lengths[0],
        "negative_gradient": num_rows * lengths[1],
        "gradient_balance": lengths[1] / jnp.maximum(lengths[0], NORM_FLOOR / num_rows),
        "gradient_cosine": jnp.mean(cosines),
        **_similarities(outputs_of(z)),
        "channel_correlation": channel_correlation(z[0]),
    }


def channel_correlation(z: jax.Array) -> jax.Array:
    """Root mean square of the correlations between two different channels of [B, D], in [0, 1]."""
    centred = z - jnp.mean(z, axis=0, keepdims=True)
    columns = normalize(centred.T)  # [D, B]
    squares = jnp.square(jnp.matmul(columns, columns.T, precision=jax.lax.Precision.HIGHEST))
    num_channels = z.shape[1]
    off_diagonal = jnp.sum(squares) - jnp.sum(jnp.diagonal(squares))
    num_pairs = max(num_channels * (num_channels - 1), 1)
    return jnp.sqrt(jnp.maximum(off_diagonal, 0) / num_pairs)


def _on_the_sphere(z: jax.Array, gradient: jax.Array) -> jax.Array:
    """|z| (I - u u') g of each row: what turns the row, whatever its length."""
    u = normalize(z)
    radial = jnp.sum(gradient * u, axis=-1, keepdims=True)
    return norm(z)[..., None] * (gradient - radial * u)


def _similarities(outputs: Outputs) -> Metrics:
    """Mean cosines of the first view's rows with their siblings, and with other images' rows."""
    u, t = normalize(outputs.z[0]), normalize(outputs.z_target[1])  # [B, D] each
    siblings = jnp.sum(u * t, axis=-1)
    num_images = u.shape[0]
    among_all = jnp.sum(jnp.sum(u, axis=0) * jnp.sum(t, axis=0))
    others = (among_all - jnp.sum(siblings)) / max(num_images * (num_images - 1), 1)
    return {"positive_similarity": jnp.mean(siblings), "negative_similarity": others}
