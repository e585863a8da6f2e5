"""Diagnostics of a step: is it collapsing, and what pulls and pushes its projections?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gsg_jax.methods.method import LossFn, Memory, Metrics, Outputs
from gsg_jax.methods.similarity import NORM_FLOOR, norm, normalize

MAX_ROWS = 256
GRADIENT_FIGURES = (
    "positive_gradient",
    "negative_gradient",
    "gradient_balance",
    "gradient_cosine",
    "positive_similarity",
    "negative_similarity",
    "channel_correlation",
)


def projection_std(z: jax.Array) -> jax.Array:
    """Standard deviation of normalised projections over the batch, times sqrt(D).

    Args:
      z: projections of one or more views, [V, B, D].

    Returns:
      Mean over channels and views, a scalar: 1 for an isotropic distribution on the sphere, 0 if
      all projections are the same vector. A final BatchNorm keeps it near 1 even if the rank
      falls, so watch `effective_rank` too.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), section 4.1.
    """
    return jnp.mean(jnp.std(normalize(z), axis=1)) * jnp.sqrt(z.shape[-1])


def effective_rank(x: jax.Array) -> jax.Array:
    """The exponential of the entropy of the centred rows' normalised singular values.

    Args:
      x: representations, [B, F]; only the first 256 rows are used.

    Returns:
      A scalar in [1, min(B - 1, 255, F)]; 1 if all rows lie on one line, 0 if they are equal.

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    x = x[:MAX_ROWS].astype(jnp.float32)
    mean, eps = jnp.mean(x, axis=0, keepdims=True), jnp.finfo(x.dtype).eps
    centred = x - mean
    largest = jnp.max(jnp.abs(centred))
    is_rounding = largest <= 16 * eps * jnp.max(jnp.abs(mean))  # the rows are equal
    centred = jnp.where(is_rounding, 0.0, centred / jnp.maximum(largest, 1e-30))
    rows, columns = centred.shape
    smaller = centred if rows <= columns else centred.T
    gram = jnp.matmul(smaller, smaller.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.linalg.eigvalsh(gram)
    # Below this an eigenvalue is rounding, and its root would count as a direction.
    floor = len(gram) * eps * jnp.max(squares)
    singular = jnp.sqrt(jnp.where(squares > floor, squares, 0))
    total = jnp.sum(singular)
    shares = singular / jnp.maximum(total, 1e-30)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def gradient_figures(
    loss: LossFn,
    outputs_of: Callable[[jax.Array], Outputs],
    z: jax.Array,
    memory: Memory,
    key: jax.Array,
) -> Metrics:
    """Splits a method's gradient into its positive and negative parts, on the unit sphere.

    With u = z / |z| a row's gradient is V B |z| (I - u u') dl/dz: on the sphere, so that methods
    with and without normalisation are comparable, and times V B, as if the loss were this row's
    only. The positive part is the gradient of the loss's attraction, the negative part the rest.

    Args:
      loss: the method's loss.
      outputs_of: the outputs as a function of the online projections [V, B, D].
      z: online projections, [V, B, D].
      memory: the method's memory before the step.
      key: the loss's key of the step.

    Returns:
      Scalars: positive_gradient and negative_gradient, mean norms over the rows; gradient_balance,
      their ratio, negative to positive; gradient_cosine, the mean cosine between a row's two
      parts, -1 if they cancel; positive_similarity, the mean cosine between sibling views across
      the branches, and negative_similarity, between views of different images; channel_correlation,
      root mean square of the correlations between two channels of z over a view's batch, 0 if
      features are decorrelated, 1 if all channels are the same.

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
    """|z| (I - u u') g of each row: the part that turns the row, whatever its length."""
    u = normalize(z)
    radial = jnp.sum(gradient * u, axis=-1, keepdims=True)
    return norm(z)[..., None] * (gradient - radial * u)


def _similarities(outputs: Outputs) -> Metrics:
    """Mean cosines of the first view's rows with their siblings, and with other images' rows."""
    num_images = outputs.z.shape[1]
    if outputs.sources is None:
        sibling = outputs.z_target[1]
    else:  # of views 0 and 1, or 2 and 3
        sibling = outputs.z_target[outputs.sources[0] ^ 1, jnp.arange(num_images)]
    u, t = normalize(outputs.z[0]), normalize(sibling)  # [B, D] each
    siblings = jnp.sum(u * t, axis=-1)
    among_all = jnp.sum(jnp.sum(u, axis=0) * jnp.sum(t, axis=0))
    others = (among_all - jnp.sum(siblings)) / max(num_images * (num_images - 1), 1)
    return {"positive_similarity": jnp.mean(siblings), "negative_similarity": others}
