"""Views: random augmentations of an image, drawn on the device, inside `jit`, from derived keys.

Every operation takes one image [H, W, C] of float32 in [0, 1]; `make_views` maps them over a
batch. There is no state: the same key gives the same view.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from gsg_jax.data.colours import (
    normalize_channels,
    random_blur,
    random_jitter,
    random_solarize,
    separable,
    to_gray,
)
from gsg_jax.data.crops import CROP_ATTEMPTS, largest_box


@dataclasses.dataclass(frozen=True)
class ViewRecipe:
    """How a view is drawn. Values "per view" are used in turn: view v takes number v % length.

    Attributes:
      size: height and width of a view, pixels.
      crop_area: smallest and largest share of the image's area that a crop covers.
      crop_aspect: smallest and largest width / height of a crop, drawn log-uniformly.
      flip_probability: of a horizontal flip.
      jitter: strengths of brightness, contrast, saturation, and of the hue in turns (0 to 0.5).
      jitter_probability: of the colour jitter.
      grayscale_probability: of removing the colours.
      blur_probability: of the Gaussian blur, per view.
      blur_sigma: smallest and largest standard deviation of the blur, pixels.
      solarize_probability: of inverting values of at least 1/2, per view.
      mean: subtracted from each channel of [0, 1].
      std: each channel is divided by it afterwards.
      num_local: L, local views per image in addition to the global ones (multi-crop).
      local_size: height and width of a local view, pixels.
      local_crop_area: as crop_area, for local views.
      cutmix_probability: of pasting a patch of another image into the step's global views.
    """

    size: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    flip_probability: float
    jitter: tuple[float, float, float, float]
    jitter_probability: float
    grayscale_probability: float
    blur_probability: tuple[float, ...]
    blur_sigma: tuple[float, float]
    solarize_probability: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_local: int = 0
    local_size: int = 96
    local_crop_area: tuple[float, float] = (0.05, 0.2)
    cutmix_probability: float = 0.0


def make_views(
    images: jax.Array, key: jax.Array, recipe: ViewRecipe, num_views: int, first_number: int = 0
) -> jax.Array:
    """Draws V views of each image.

    Args:
      images: uint8 [B, H, W, C], which are cropped here; or crops that the host has cut, uint8
        [B, V, size, size, C], which get flip, colours and blur.
      key: PRNG key of the step. An image's views depend on its place in the global batch, not on
        the device that holds it.
      recipe: how a view is drawn.
      num_views: V.
      first_number: number of the first of these views, for what the recipe sets per view.

    Returns:
      Normalised views, float32 [B x V, size, size, C], images first, views second.
    """
    host_cropped = images.ndim == 5
    numbers = range(first_number, first_number + num_views)
    blur = jnp.array(_per_view(recipe.blur_probability, numbers), jnp.float32)
    solarize = jnp.array(_per_view(recipe.solarize_probability, numbers), jnp.float32)

    def view(image, key, blur_probability, solarize_probability):
        crop_key, flip_key, colour_key, blur_key = jax.random.split(key, 4)
        is_flipped = jax.random.bernoulli(flip_key, recipe.flip_probability)
        if host_cropped:  # flipped as bytes, a quarter of floats' size
            image = jnp.where(is_flipped, image[:, ::-1], image).astype(jnp.float32) / 255
        else:
            image = image.astype(jnp.float32) / 255
            box = draw_crop_box(crop_key, *image.shape[:2], recipe.crop_area, recipe.crop_aspect)
            image = resized_crop(image, *box, recipe.size)  # [size, size, C]
            image = jnp.where(is_flipped, image[:, ::-1], image)
        image = random_colours(colour_key, image, recipe)
        blur_key, solarize_key = jax.random.split(blur_key)
        if any(recipe.blur_probability):
            image = random_blur(blur_key, image, blur_probability, recipe.blur_sigma)
        if any(recipe.solarize_probability):
            image = random_solarize(solarize_key, image, solarize_probability)
        return normalize_channels(image, recipe.mean, recipe.std)

    def views_of(image, key):
        keys = jax.random.split(key, num_views)
        image_axis = 0 if host_cropped else None
        return jax.vmap(view, in_axes=(image_axis, 0, 0, 0))(image, keys, blur, solarize)

    views = jax.vmap(views_of)(images, jax.random.split(key, images.shape[0]))
    return views.reshape(-1, *views.shape[2:])  # [B x V, size, size, C]


def make_local_views(
    images: jax.Array, key: jax.Array, recipe: ViewRecipe, first_number: int
) -> jax.Array:
    """Draws L local views of each image: smaller crops, resized to a smaller size.

    Args:
      images: uint8 [B, H, W, C], or crops that the host has cut, [B, L, local_size, local_size, C].
      key: PRNG key, not that of the global views.
      recipe: how a view is drawn; its num_local is L, at least 1.
      first_number: V, number of global views: local views are numbered from there.

    Returns:
      Normalised views, float32 [B x L, local_size, local_size, C], images first.

    Source: multi-crop of Caron et al., NeurIPS 2020 (arXiv 2006.09882).
    """
    local = dataclasses.replace(recipe, size=recipe.local_size, crop_area=recipe.local_crop_area)
    return make_views(images, key, local, recipe.num_local, first_number)


def _per_view(values: tuple[float, ...], numbers: range) -> list[float]:
    return [values[v % len(values)] for v in numbers]


def cutmix(
    views: jax.Array, key: jax.Array, num_views: int, probability: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pastes one box of each image's partner over the same place of its own views.

    The partners are the batch in a random order. One box serves the batch: its share of the view's
    area is drawn uniformly from [0, 1], and it is clipped at the view's edge.

    Args:
      views: [B x V, size, size, C], images first.
      key: PRNG key of the step.
      num_views: V.
      probability: of pasting at all; otherwise the share is 0.

    Returns:
      (views, partner, share): the views with patches; the partner of each image, [B]; the share of
      a view that the patch covers, a scalar in [0, 1].

    Source: Yun et al., ICCV 2019 (arXiv 1905.04899), section 3.1.
    """
    partner_key, apply_key, share_key, centre_key = jax.random.split(key, 4)
    size = views.shape[1]
    wanted = jnp.where(
        jax.random.bernoulli(apply_key, probability), jax.random.uniform(share_key), 0.0
    )
    side = jnp.round(size * jnp.sqrt(wanted))
    starts = jnp.floor(jax.random.uniform(centre_key, (2,)) * size) - jnp.floor(side / 2)
    pixels = jnp.arange(size)
    rows, columns = ((pixels >= start) & (pixels < start + side) for start in starts)
    is_patch = rows[:, None] & columns[None, :]  # [size, size]

    by_image = views.reshape(-1, num_views, *views.shape[1:])  # [B, V, size, size, C]
    partner = jax.random.permutation(partner_key, by_image.shape[0])
    pasted = jnp.where(is_patch[None, None, :, :, None], by_image[partner], by_image)
    return pasted.reshape(views.shape), partner, jnp.mean(is_patch.astype(jnp.float32))


def draw_crop_box(
    key: jax.Array,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws a crop box: the first of ten attempts that fits, else the largest centred one.

    Args:
      key: PRNG key.
      height: of the image, pixels.
      width: of the image, pixels.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height.

    Returns:
      (top, left, box_height, box_width), whole pixels as float32 scalars.

    Source: RandomResizedCrop of torchvision; Szegedy et al., CVPR 2015 (arXiv 1409.4842).
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    shape = (CROP_ATTEMPTS,)
    areas = height * width * jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = jnp.exp(jax.random.uniform(aspect_key, shape, minval=low, maxval=high))
    widths = jnp.round(jnp.sqrt(areas * aspects))
    heights = jnp.round(jnp.sqrt(areas / aspects))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    first = jnp.argmax(fits)
    fallback_height, fallback_width = largest_box(height, width, aspect)
    box_height = jnp.where(fits.any(), heights[first], fallback_height)
    box_width = jnp.where(fits.any(), widths[first], fallback_width)
    free_rows, free_columns = height - box_height, width - box_width
    top = jnp.floor(jax.random.uniform(top_key) * (free_rows + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (free_columns + 1))
    top = jnp.where(fits.any(), jnp.minimum(top, free_rows), free_rows // 2)
    left = jnp.where(fits.any(), jnp.minimum(left, free_columns), free_columns // 2)
    return top, left, box_height, box_width


def resized_crop(
    image: jax.Array,
    top: jax.Array,
    left: jax.Array,
    box_height: jax.Array,
    box_width: jax.Array,
    size: int,
) -> jax.Array:
    """Resizes a box of the image to [size, size, C], as two products with a banded matrix."""
    rows = _resize_matrix(image.shape[0], top, box_height, size)  # [size, H]
    columns = _resize_matrix(image.shape[1], left, box_width, size)  # [size, W]
    return separable(rows, image, columns)


def _resize_matrix(length: int, start: jax.Array, extent: jax.Array, size: int) -> jax.Array:
    """Weights [size, length] of antialiased bilinear resizing of [start, start + extent)."""
    scale = extent / size
    centres = start + (jnp.arange(size) + 0.5) * scale  # [size]
    pixels = jnp.arange(length)
    offsets = (pixels[None, :] + 0.5 - centres[:, None]) / jnp.maximum(scale, 1.0)
    inside = (pixels >= start) & (pixels < start + extent)  # [length]
    weights = jnp.where(inside[None, :], jnp.maximum(1 - jnp.abs(offsets), 0), 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def random_colours(key: jax.Array, image: jax.Array, recipe: ViewRecipe) -> jax.Array:
    """Applies colour jitter, then grayscale, each with its probability."""
    jitter_key, apply_key, gray_key = jax.random.split(key, 3)
    if recipe.jitter_probability and any(recipe.jitter):
        apply = jax.random.bernoulli(apply_key, recipe.jitter_probability)
        image = random_jitter(jitter_key, image, recipe.jitter, apply)
    if recipe.grayscale_probability and image.shape[-1] == 3:
        apply = jax.random.bernoulli(gray_key, recipe.grayscale_probability)
        image = jnp.where(apply, to_gray(image), image)
    return image
