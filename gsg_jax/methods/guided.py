"""Guided stop-gradient: the closest views of two images are sources, their siblings targets.

With local views (multi-crop) an image's closest global view is still the source, and its local
views follow the same target: each D of the loss is the mean of D(p, sg z_other) over the source and
the image's local views. With CutMix a source's target is mixed, by the patch's share, with the
partner image's target of the same view number; the distances are those of whole views.

The pairs only decide how often each view is a source, its picks. The loss then is a sum over the
views of each image by itself: only the projections that are compared move between devices.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gsg_jax.methods.method import Memory, Metrics, Outputs
from gsg_jax.methods.positives import guided_positives
from gsg_jax.methods.similarity import attraction, cosine_to_unit, distance, normalize

PAIRS = ("11", "12", "21", "22")
VIEWS_OF_PAIRING = {"permutation": 4, "roll": 2, "halves": 2, "nearest": 2}
# Views per image that a pairing makes sources, if every image has the same number of them.
SOURCES_OF_PAIRING = {"permutation": 2, "halves": 1}
# Which of the four view pairs are sources, and between which projections distances are taken; the
# first of each is the method, the others are ablations.
GUIDES = ("closest", "farthest", "random")
DISTANCES = ("raw", "normalised")
GUIDE_STREAM = 2**32 - 1  # into the key; a permutation takes its first folds


class Pairs(NamedTuple):
    """Which images were compared, and which views were closest.

    Attributes:
      image, reference: slices of the batch, or indices into it, of P images each; P is B, or B / 2
        for "halves". A slice leaves the images on their devices; indices gather from all devices.
      a, b: the closest view of the image and of the reference, 0 or 1, [P] each; in an ablation
        the farthest, or random ones.
    """

    image: slice
    reference: slice | jax.Array
    a: jax.Array
    b: jax.Array


def guided_loss(
    outputs: Outputs,
    memory: Memory,
    key: jax.Array,
    *,
    pairing: str = "permutation",
    guide: str = "closest",
    distances: str = "raw",
    stop_gradient: bool = True,
) -> tuple[jax.Array, Memory, Metrics]:
    """Mean guided stop-gradient loss over the image pairs of a batch.

    For an image i and its reference image r, with two views each:
      d_ab = ||z_ia - z_rb||_2 on projections that are not normalised, a, b in {1, 2};
      (a*, b*) = argmin d_ab, ties to the first of 11, 12, 21, 22;
      l = 1/2 D(p_ia*, sg z_i,other(a*)) + 1/2 D(p_rb*, sg z_r,other(b*)), D = -cosine.

    Args:
      outputs: online predictions p [V, B, D], or of the selected sources only, and target
        projections z_target [G, B, D]. With G = 4, views 0, 1 are those of an image and views 2, 3
        those of a reference; with G = 2 the same views serve as both. Local views come last.
      memory: unused, returned as is.
      key: draws the reference images of pairing "permutation", and the pairs of guide "random".
      pairing: which image is whose reference. "permutation": a random permutation of the batch,
        fixed points included (G = 4, the paper's); "roll": the next image; "halves": the first half
        with the second, each pair once (B even); "nearest": the nearest other image. With "roll"
        and "nearest" an image is in several pairs and both its views may be sources.
      guide: which view pair the sources are, one of GUIDES; "random": all with the same chance.
      distances: of "raw" projections, as above, or of "normalised" ones, one of DISTANCES.
      stop_gradient: False lets the gradient into an online target as well.

    Returns:
      (loss, memory, metrics): loss is a scalar in [-1, 1], lower is better; metrics has closest_11,
      closest_12, closest_21 and closest_22, the share in [0, 1] of pairs with these sources.

    Raises:
      ValueError: at trace time, if `pairing` does not fit G or B.

    Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058), algorithm 1; local views, CutMix: ours.
    """
    z_stopped = jax.lax.stop_gradient(outputs.z_target)
    z = z_stopped if stop_gradient else outputs.z_target
    p, num_global = outputs.p, z.shape[0]
    chex.assert_equal_shape([p[0], z[0]])
    check_pairing(pairing, num_views=num_global, batch_size=z.shape[1])

    pairs = closest_pairs(z_stopped, key, pairing, guide, distances)
    num_sources = num_global if outputs.sources is None else len(outputs.sources)
    num_views = num_global + p.shape[0] - num_sources  # with the local views
    # [V, B, D]; rows of zeros for views that are no source
    targets = guided_positives(normalize(z), num_views, outputs.mix, picks_of(pairs, z))
    if outputs.sources is not None:
        of_sources = jnp.take_along_axis(targets, outputs.sources[..., None], axis=0)
        targets = jnp.concatenate([of_sources, targets[num_global:]])

    def similarity(alike):
        return jnp.sum(alike(p, targets)) / (num_views * p.shape[1])

    loss = -similarity(cosine_to_unit)
    return loss, memory, {"attraction": -similarity(attraction), **shares_of(pairs)}


def closest_pairs(
    z: jax.Array, key: jax.Array, pairing: str, guide: str = "closest", distances: str = "raw"
) -> Pairs:
    """Draws the reference images and finds the closest of each pair's four view pairs.

    Args:
      z: target projections without gradient, [G, B, D].
      key: draws the reference images of pairing "permutation", and the view pairs of guide
        "random".
      pairing: one of VIEWS_OF_PAIRING.
      guide: one of GUIDES.
      distances: one of DISTANCES.

    Returns:
      The pairs; ties go to the first of 11, 12, 21, 22.

    Source: Lee & Lee, NeurIPS 2023 (arXiv 2503.09058), algorithm 1.
    """
    image, reference = draw_pairs(z, key, pairing)
    if distances == "normalised":
        z = normalize(z)
    z_image, z_reference = z[:2, image], z[-2:, reference]  # [2, P, D]
    d = distance(z_image[:, None], z_reference[None]).reshape(4, -1)  # [4, P], as in PAIRS
    if guide == "random":
        taken = jax.random.randint(jax.random.fold_in(key, GUIDE_STREAM), d.shape[1:], 0, 4)
    else:
        taken = jnp.argmax(d, axis=0) if guide == "farthest" else jnp.argmin(d, axis=0)
    return Pairs(image, reference, *jnp.unravel_index(taken, (2, 2)))


def source_views(
    z: jax.Array, key: jax.Array, *, pairing: str, guide: str = "closest", distances: str = "raw"
) -> jax.Array:
    """Selects the views of every image that are sources: all that the online branch has to see.

    Args:
      z: target projections without gradient, [G, B, D].
      key: the loss's key.
      pairing: one of SOURCES_OF_PAIRING.
      guide: the loss's.
      distances: the loss's.

    Returns:
      Indices into the G views, [S, B], in ascending order: two of the four views for "permutation"
      (one as an image, one as a reference), one of the two views for "halves".
    """
    num_views, batch_size = z.shape[:2]
    image, reference, a, b = closest_pairs(z, key, pairing, guide, distances)
    views = jnp.zeros((SOURCES_OF_PAIRING[pairing], batch_size), jnp.int32)
    return views.at[0, image].set(a).at[-1, reference].set(num_views - 2 + b)


def picks_of(pairs: Pairs, z: jax.Array) -> jax.Array:
    """How often each view of z [G, B, D] is one of the closest of a pair, [G, B].

    Counts twice if an image is in one pair only ("halves"), so that their sum is always 2 B.
    """
    num_views, batch_size = z.shape[:2]
    everyone, count = jnp.arange(batch_size), batch_size / len(pairs.a)
    picks = jnp.zeros((num_views, batch_size), z.dtype)
    picks = picks.at[pairs.a, everyone[pairs.image]].add(count)
    return picks.at[num_views - 2 + pairs.b, everyone[pairs.reference]].add(count)


def shares_of(pairs: Pairs) -> Metrics:
    """The share of the pairs whose sources are 11, 12, 21 and 22, in [0, 1] each."""
    taken = 2 * pairs.a + pairs.b
    return {f"closest_{pair}": jnp.mean(taken == n) for n, pair in enumerate(PAIRS)}


def check_pairing(
    pairing: str, *, num_views: int, batch_size: int, sources: str = "all", **choices
) -> None:
    """Checks that a pairing fits the number of views, the batch and the choice of sources.

    Args:
      pairing: one of VIEWS_OF_PAIRING.
      num_views: global views per image, G.
      batch_size: images per batch, B.
      sources: "all" or "selected".
      choices: the method's other choices, which fit any pairing.

    Raises:
      ValueError: if it does not; the message says how to fix it.
    """
    del choices
    if pairing not in VIEWS_OF_PAIRING:
        raise ValueError(
            f"method.pairing is {pairing!r}: take one of {', '.join(VIEWS_OF_PAIRING)}"
        )
    if num_views != VIEWS_OF_PAIRING[pairing]:
        raise ValueError(
            f"method.pairing={pairing} takes {VIEWS_OF_PAIRING[pairing]} views per image, "
            f"method.num_views is {num_views}: set "
            f"--config.method.num_views={VIEWS_OF_PAIRING[pairing]}"
        )
    if sources == "selected" and pairing not in SOURCES_OF_PAIRING:
        raise ValueError(
            f"method.sources=selected: with method.pairing={pairing} both views of an image may be "
            'sources; set --config.method.pairing="halves" (2 views per image) or '
            '"permutation" (4), or --config.method.sources=all'
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


def draw_pairs(z: jax.Array, key: jax.Array, pairing: str) -> tuple[slice, slice | jax.Array]:
    """Draws which image of the batch is whose reference.

    Args:
      z: target projections, [V, B, D], read by pairing "nearest" only.
      key: PRNG key, read by pairing "permutation" only.
      pairing: one of VIEWS_OF_PAIRING.

    Returns:
      (image, reference): slices of the batch, or indices [P] into it; P is B, or B / 2 for
      "halves".
    """
    batch_size, everyone = z.shape[1], slice(None)
    if pairing == "permutation":
        return everyone, jax.random.permutation(key, batch_size)
    if pairing == "roll":
        return everyone, jnp.roll(jnp.arange(batch_size), -1)
    if pairing == "halves":
        return slice(batch_size // 2), slice(batch_size // 2, None)
    return everyone, _nearest_image(z)


def _nearest_image(z: jax.Array) -> jax.Array:
    """Index of the other image with the smallest distance between any two views, [B]."""
    num_views, batch_size, width = z.shape
    rows = z.reshape(num_views * batch_size, width)
    # Centred first: differences stay the same, and the expanded form keeps its digits.
    rows = rows - jnp.mean(rows, axis=0, keepdims=True)
    squares = jnp.sum(jnp.square(rows), axis=-1)
    inner = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squared = squares[:, None] + squares[None, :] - 2 * inner  # [V B, V B]
    squared = squared.reshape(num_views, batch_size, num_views, batch_size).min(axis=(0, 2))
    return jnp.argmin(jnp.where(jnp.eye(batch_size, dtype=bool), jnp.inf, squared), axis=1)
