"""Guided stop-gradient: of two images' views the closest are sources, their siblings targets."""

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.base import Memory, Metrics, Outputs
from gsg_jax.similarity import cosine_similarity, distance

PAIRS = ("11", "12", "21", "22")
VIEWS_OF_PAIRING = {"permutation": 4, "roll": 2, "halves": 2, "nearest": 2}


def guided_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    pairing: str = "permutation",
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean guided stop-gradient loss over the image pairs of a batch.

    For an image i and its reference image r, with two views each:
      d_ab = ||z_ia - z_rb||_2 on projections that are not normalised, a, b in {1, 2};
      (a*, b*) = argmin d_ab, ties to the first of 11, 12, 21, 22;
      l = 1/2 D(p_ia*, sg z_i,other(a*)) + 1/2 D(p_rb*, sg z_r,other(b*)), D = -cosine.

    Args:
      outputs: online predictions p and target projections z_target, each [V, B, D]. With
        V = 4, views 0, 1 are an image's and views 2, 3 its reference's; with V = 2 the
        reference image shows the same two views that it shows as an image.
      memory: unused, returned as it came.
      key: draws the reference images of pairing "permutation".
      pairing: who is whose reference. "permutation": a random permutation of the batch, fixed
        points included (V = 4, the paper's); "roll": the next image; "halves": the first half
        with the second, each pair once (B even); "nearest": the nearest other image. With "roll"
        and "nearest" an image stands in several pairs and may be a source by both its views.
      stop_gradient: False lets the gradient into an online target as well.

    Returns:
      (loss, memory, metrics): loss is a scalar in [-1, 1], lower is better; metrics has
      closest_11, closest_12, closest_21 and closest_22, the share of pairs in [0, 1] whose
      closest views those were.

    Raises:
      ValueError: at trace time, where `pairing` does not fit V or B.
      AssertionError: at trace time, where the shapes differ.

    Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058), algorithm 1.
    """
    z_stopped = jax.lax.stop_gradient(outputs.z_target)
    z = z_stopped if stop_gradient else outputs.z_target
    p = outputs.p
    chex.assert_equal_shape([p, z])
    check_pairing(pairing, num_views=p.shape[0], batch_size=p.shape[1])

    image, reference = draw_pairs(z_stopped, key, pairing)  # [P], [P]
    z_i, z_r = z[:2, image], z[-2:, reference]  # [2, P, D]
    p_i, p_r = p[:2, image], p[-2:, reference]  # [2, P, D]

    distances = distance(z_stopped[:2, image][:, None], z_stopped[-2:, reference][None])
    closest = jnp.argmin(distances.reshape(4, -1), axis=0)  # [P], an index into PAIRS
    a, b = closest // 2, closest % 2  # [P], the view of the image, of the reference

    similarity_i = cosine_similarity(_view(p_i, a), _view(z_i, 1 - a))  # [P]
    similarity_r = cosine_similarity(_view(p_r, b), _view(z_r, 1 - b))  # [P]
    loss = -jnp.mean(0.5 * similarity_i + 0.5 * similarity_r)
    metrics = {f"closest_{pair}": jnp.mean(closest == n) for n, pair in enumerate(PAIRS)}
    return loss, memory, metrics


def check_pairing(pairing: str, *, num_views: int, batch_size: int) -> None:
    """Checks that a pairing fits the number of views and the batch.

    Args:
      pairing: one of VIEWS_OF_PAIRING.
      num_views: views an image, V.
      batch_size: images a batch, B.

    Raises:
      ValueError: where it does not; the message names the mend.
    """
    if pairing not in VIEWS_OF_PAIRING:
        raise ValueError(
            f"method.pairing is {pairing!r}: take one of {', '.join(VIEWS_OF_PAIRING)}"
        )
    if num_views != VIEWS_OF_PAIRING[pairing]:
        raise ValueError(
            f"method.pairing={pairing} takes {VIEWS_OF_PAIRING[pairing]} views an image, "
            f"method.num_views is {num_views}: set "
            f"--config.method.num_views={VIEWS_OF_PAIRING[pairing]}"
        )
    if pairing == "halves" and batch_size % 2:
        raise ValueError(
            f"method.pairing=halves needs an even batch, data.batch_size is {batch_size}: "
            f"set --config.data.batch_size={batch_size + 1}"
        )
    if batch_size < 2:
        raise ValueError(
            f"guided stop-gradient needs at least 2 images, data.batch_size is {batch_size}: "
            "set --config.data.batch_size=2 or more"
        )


def draw_pairs(z: jax.Array, key: jax.Array, pairing: str) -> tuple[jax.Array, jax.Array]:
    """Says which image of the batch is whose reference.

    Args:
      z: target projections, [V, B, D], read by pairing "nearest" alone.
      key: PRNG key, read by pairing "permutation" alone.
      pairing: one of VIEWS_OF_PAIRING.

    Returns:
      (image, reference): indices into the batch, each [P]; P is B, or B / 2 for "halves".
    """
    batch_size = z.shape[1]
    everyone = jnp.arange(batch_size)
    if pairing == "permutation":
        return everyone, jax.random.permutation(key, batch_size)
    if pairing == "roll":
        return everyone, jnp.roll(everyone, -1)
    if pairing == "halves":
        return everyone[: batch_size // 2], everyone[batch_size // 2 :]
    return everyone, _nearest_image(z)


def _view(x: jax.Array, which: jax.Array) -> jax.Array:
    """Takes view `which` ([P], 0 or 1) of each row of x ([2, P, D])."""
    return jnp.where(which[:, None] == 0, x[0], x[1])


def _nearest_image(z: jax.Array) -> jax.Array:
    """The other image with the smallest distance between any of its views and one's own, [B]."""
    num_views, batch_size, width = z.shape
    rows = z.reshape(num_views * batch_size, width)
    # The mean drops out of every difference; without it the expanded form keeps its digits.
    rows = rows - jnp.mean(rows, axis=0, keepdims=True)
    squares = jnp.sum(jnp.square(rows), axis=-1)
    inner = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squared = squares[:, None] + squares[None, :] - 2 * inner  # [V B, V B]
    squared = squared.reshape(num_views, batch_size, num_views, batch_size).min(axis=(0, 2))
    return jnp.argmin(jnp.where(jnp.eye(batch_size, dtype=bool), jnp.inf, squared), axis=1)
