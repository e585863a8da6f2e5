"""Views: random augmentations of one image, on the device, inside `jit`, from derived keys.

Every operation takes one image [H, W, C] of float32 in [0, 1]; `make_views` maps them over a
batch. Nothing here keeps state: the same key gives the same view.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp

GRAY_WEIGHTS = (0.299, 0.587, 0.114)
CROP_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class ViewRecipe:
    """How a view is drawn. Tuples "per view" are cycled through by the view's number.

    Attributes:
      size: height and width of a view, pixels.
      crop_area: smallest and largest share of the image's area that a crop covers.
      crop_aspect: smallest and largest width / height of a crop, drawn log-uniformly.
      flip_probability: of a horizontal flip.
      jitter: strengths of brightness, contrast, saturation, and the hue's in turns (0 to 0.5).
      jitter_probability: of the colour jitter.
      grayscale_probability: of dropping the colours.
      blur_probability: of the Gaussian blur, per view.
      blur_sigma: smallest and largest standard deviation of the blur, pixels.
      solarize_probability: of inverting what is at least 1/2, per view.
      mean: subtracted from each channel of [0, 1].
      std: divides each channel afterwards.
      num_local: local views an image besides the global ones, L (multi-crop).
      local_size: height and width of a local view, pixels.
      local_crop_area: the same of a local view as crop_area is of a global one.
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
      images: uint8 [B, H, W, C], cropped here; or crops that the host has cut, uint8
        [B, V, size, size, C], which get the colours, the blur and the flip.
      key: PRNG key of the step. An image's views depend on its place in the global batch, not on
        the device it lies on.
      recipe: how a view is drawn.
      num_views: V.
      first_number: number of the first of these views, where the recipe cycles by it.

    Returns:
      Normalised views, float32 [B x V, size, size, C], images first, views second.
    """
    host_cropped = images.ndim == 5
    numbers = range(first_number, first_number + num_views)
    blur = jnp.array(_per_view(recipe.blur_probability, numbers), jnp.float32)
    solarize = jnp.array(_per_view(recipe.solarize_probability, numbers), jnp.float32)

    def view(image, key, blur_probability, solarize_probability):
        image = image.astype(jnp.float32) / 255
        crop_key, flip_key, colour_key, blur_key = jax.random.split(key, 4)
        if not host_cropped:
            image = random_resized_crop(crop_key, image, recipe)  # [size, size, C]
        image = random_flip(flip_key, image, recipe.flip_probability)
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
      key: PRNG key, another than that of the global views.
      recipe: how a view is drawn; its num_local is L, at least 1.
      first_number: number of global views, V: the recipe counts on from there.

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

    The partners are the batch in a random order; the box, one for the batch, has a share of the
    view's area that is drawn evenly from [0, 1], and is cut at the view's edge.

    Args:
      views: [B x V, size, size, C], images first.
      key: PRNG key of the step.
      num_views: V.
      probability: of pasting at all; otherwise the share is 0.

    Returns:
      (views, partner, share): the views with patches; [B], whose patch an image carries; the share
      of a view that the patch covers, a scalar in [0, 1].

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


# --- Crop and flip -----------------------------------------------------------------------------


def random_resized_crop(key: jax.Array, image: jax.Array, recipe: ViewRecipe) -> jax.Array:
    """Cuts a random box and resizes it to [size, size, C], bilinear with antialiasing."""
    height, width, _ = image.shape
    top, left, box_height, box_width = draw_crop_box(
        key, height, width, recipe.crop_area, recipe.crop_aspect
    )
    return resized_crop(image, top, left, box_height, box_width, recipe.size)


def draw_crop_box(
    key: jax.Array,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws a crop box: the first of ten attempts that fits, or else the largest centred one.

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
    fallback_height, fallback_width = _largest_box(height, width, aspect)
    box_height = jnp.where(fits.any(), heights[first], fallback_height)
    box_width = jnp.where(fits.any(), widths[first], fallback_width)
    free_rows, free_columns = height - box_height, width - box_width
    top = jnp.floor(jax.random.uniform(top_key) * (free_rows + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (free_columns + 1))
    top = jnp.where(fits.any(), jnp.minimum(top, free_rows), free_rows // 2)
    left = jnp.where(fits.any(), jnp.minimum(left, free_columns), free_columns // 2)
    return top, left, box_height, box_width


def _largest_box(height: int, width: int, aspect: tuple[float, float]) -> tuple[int, int]:
    if width / height < aspect[0]:
        return max(1, round(width / aspect[0])), width
    if width / height > aspect[1]:
        return height, max(1, round(height * aspect[1]))
    return height, width


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
    return _separable(rows, image, columns)


def _separable(rows: jax.Array, image: jax.Array, columns: jax.Array) -> jax.Array:
    # Without the precision a TPU would round the pixels to bfloat16.
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=precision)


def _resize_matrix(length: int, start: jax.Array, extent: jax.Array, size: int) -> jax.Array:
    """Weights [size, length] of antialiased bilinear resizing of [start, start + extent)."""
    scale = extent / size
    centres = start + (jnp.arange(size) + 0.5) * scale  # [size]
    pixels = jnp.arange(length)
    offsets = (pixels[None, :] + 0.5 - centres[:, None]) / jnp.maximum(scale, 1.0)
    inside = (pixels >= start) & (pixels < start + extent)  # [length]
    weights = jnp.where(inside[None, :], jnp.maximum(1 - jnp.abs(offsets), 0), 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def random_flip(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Mirrors the image left to right with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


# --- Colours -----------------------------------------------------------------------------------


def random_colours(key: jax.Array, image: jax.Array, recipe: ViewRecipe) -> jax.Array:
    """Colour jitter, then grayscale, each with its probability."""
    jitter_key, apply_key, gray_key = jax.random.split(key, 3)
    if recipe.jitter_probability and any(recipe.jitter):
        apply = jax.random.bernoulli(apply_key, recipe.jitter_probability)
        image = jnp.where(apply, random_jitter(jitter_key, image, recipe.jitter), image)
    if recipe.grayscale_probability and image.shape[-1] == 3:
        apply = jax.random.bernoulli(gray_key, recipe.grayscale_probability)
        image = jnp.where(apply, to_gray(image), image)
    return image


def random_jitter(
    key: jax.Array, image: jax.Array, strengths: tuple[float, float, float, float]
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random amounts in a random order.

    Three of the four blend the image with something (black, its mean gray, its own gray), so that
    one blend serves each place of the order, and the costly hue is computed once: the blends that
    come before it, the hue, the blends that come after.

    Args:
      key: PRNG key.
      image: [H, W, C] in [0, 1], C = 3, or 1, where saturation and hue change nothing.
      strengths: brightness, contrast and saturation are scaled by U(1 - s, 1 + s), not below 0;
        the hue turns by U(-s, s) of a full circle.

    Returns:
      The image, [H, W, C] in [0, 1].

    Source: ColorJitter of torchvision.
    """
    factor_key, hue_key, order_key, place_key = jax.random.split(key, 4)
    strength = jnp.array(strengths[:3])
    low = jnp.maximum(1 - strength, 0)
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=1 + strength)
    if image.shape[-1] == 1:
        return _blends_in_order(image, _random_order(order_key, 2), factors)

    order = _random_order(order_key, 3)  # of brightness 0, contrast 1, saturation 2
    if not strengths[3]:
        return _blends_in_order(image, order, factors)
    place = jax.random.randint(place_key, (), 0, 4)  # of the hue among the three
    before = jnp.arange(3) < place
    turn = jax.random.uniform(hue_key, minval=-strengths[3], maxval=strengths[3])
    image = _blends_in_order(image, order, factors, before)
    image = adjust_hue(image, turn)
    return _blends_in_order(image, order, factors, ~before)


def _random_order(key: jax.Array, length: int) -> jax.Array:
    """A random permutation of a few numbers, from a table: no sorting inside the step."""
    orders = jnp.array(list(itertools.permutations(range(length))))
    return orders[jax.random.randint(key, (), 0, len(orders))]


def _blends_in_order(image, order, factors, active=None):
    """Applies the blends named by `order`; where `active` is False a place is left out."""
    for place in range(order.shape[0]):
        operation = order[place]
        gray = to_gray(image)  # [H, W, C]
        other = jnp.where(operation == 2, gray, jnp.where(operation == 1, jnp.mean(gray), 0.0))
        blended = _blend(image, other, factors[operation])
        image = blended if active is None else jnp.where(active[place], blended, image)
    return image


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the image by `factor`, at least 0, and clips it to [0, 1]."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the image's mean gray by `factor` and clips to [0, 1]."""
    return _blend(image, jnp.mean(to_gray(image)), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales each pixel's distance from its own gray by `factor` and clips to [0, 1]."""
    return _blend(image, to_gray(image), factor)


def to_gray(image: jax.Array) -> jax.Array:
    """The luma of each pixel (ITU-R 601) in every channel, [H, W, C]; C = 1 stays as it is."""
    if image.shape[-1] == 1:
        return image
    gray = jnp.dot(image, jnp.array(GRAY_WEIGHTS), precision=jax.lax.Precision.HIGHEST)[..., None]
    return jnp.broadcast_to(gray, image.shape)


def adjust_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the hue of an RGB image [H, W, 3] by `turn` of a full circle, in [-0.5, 0.5]."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    divisor = jnp.where(chroma == 0, 1, chroma)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn

    def channel(offset):
        k = (offset + sixths) / 6
        k = 6 * (k - jnp.floor(k))  # modulo 6, without the slow remainder
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


# --- Blur, solarize, normalise -----------------------------------------------------------------


def random_blur(
    key: jax.Array, image: jax.Array, probability: jax.Array, sigma: tuple[float, float]
) -> jax.Array:
    """Blurs with a Gaussian of sigma U(sigma[0], sigma[1]) pixels, with the given probability."""
    apply_key, sigma_key = jax.random.split(key)
    drawn = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
    blurred = gaussian_blur(image, drawn, radius=math.ceil(3 * sigma[1]))
    return jnp.where(jax.random.bernoulli(apply_key, probability), blurred, image)


def gaussian_blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Gaussian blur as two products with a banded matrix; the border's pixels are repeated.

    Args:
      image: [H, W, C].
      sigma: standard deviation, pixels, above 0.
      radius: where the kernel is cut off, pixels.

    Returns:
      The blurred image, [H, W, C].
    """
    rows = _blur_matrix(image.shape[0], sigma, radius)  # [H, H]
    columns = _blur_matrix(image.shape[1], sigma, radius)  # [W, W]
    return _separable(rows, image, columns)


def _blur_matrix(length: int, sigma: jax.Array, radius: int) -> jax.Array:
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * jnp.square(offsets / sigma))
    kernel = kernel / jnp.sum(kernel)  # [2 radius + 1]
    pixels = jnp.arange(length)
    apart = pixels[None, :] - pixels[:, None]  # [length, length]
    banded = jnp.where(jnp.abs(apart) <= radius, kernel[jnp.clip(apart + radius, 0, 2 * radius)], 0)
    # What reaches over the border falls on the border's own pixel.
    reach = pixels[:, None] + offsets[None, :]  # [length, 2 radius + 1]
    before = jnp.sum(jnp.where(reach < 0, kernel[None, :], 0), axis=1)
    behind = jnp.sum(jnp.where(reach >= length, kernel[None, :], 0), axis=1)
    return banded.at[:, 0].add(before).at[:, -1].add(behind)


def random_solarize(key: jax.Array, image: jax.Array, probability: jax.Array) -> jax.Array:
    """Inverts what is at least 1/2, with the given probability."""
    solarized = jnp.where(image < 0.5, image, 1 - image)
    return jnp.where(jax.random.bernoulli(key, probability), solarized, image)


def normalize_channels(
    image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Subtracts the channels' mean and divides by their standard deviation."""
    return (image - jnp.array(mean)[None, None]) / jnp.array(std)[None, None]
