"""Colours, blur and solarize of one view, on the device, inside `jit`.

Every function takes one image [H, W, C] of float32 in [0, 1] and returns one of that shape.
"""

import itertools
import math

import jax
import jax.numpy as jnp

GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def random_jitter(
    key: jax.Array, image: jax.Array, strengths: tuple[float, float, float, float]
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random amounts in a random order.

    Three of the four blend the image with something (black, its mean gray, its own gray), so one
    blend serves each place of the order. The costly hue is computed once, between the blends that
    come before it and those that come after.

    Args:
      key: PRNG key.
      image: [H, W, C] in [0, 1], C = 3, or 1, where saturation and hue change nothing.
      strengths: s of each. Brightness, contrast and saturation are scaled by U(1 - s, 1 + s), but
        at least 0; the hue turns by U(-s, s) of a full circle.

    Returns:
      The image, [H, W, C] in [0, 1].

    Source: ColorJitter of torchvision.
    """
    factor_key, hue_key, order_key, place_key = jax.random.split(key, 4)
    strength = jnp.array(strengths[:3])
    low = jnp.maximum(1 - strength, 0)
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=1 + strength)
    if image.shape[-1] == 1:
        return blends_in_order(image, _random_order(order_key, 2), factors)

    order = _random_order(order_key, 3)  # of brightness 0, contrast 1, saturation 2
    if not strengths[3]:
        return blends_in_order(image, order, factors)
    place = jax.random.randint(place_key, (), 0, 4)  # of the hue among the three
    before = jnp.arange(3) < place
    turn = jax.random.uniform(hue_key, minval=-strengths[3], maxval=strengths[3])
    image = blends_in_order(image, order, factors, before)
    image = adjust_hue(image, turn)
    return blends_in_order(image, order, factors, ~before)


def _random_order(key: jax.Array, length: int) -> jax.Array:
    """Draws a permutation of a few numbers from a table, so that the step need not sort."""
    orders = jnp.array(list(itertools.permutations(range(length))))
    return orders[jax.random.randint(key, (), 0, len(orders))]


def blends_in_order(image, order, factors, active=None):
    """Applies the blends that `order` names; places where `active` is False are skipped."""
    for place in range(order.shape[0]):
        operation = order[place]
        gray = to_gray(image)  # [H, W, C]
        other = jnp.where(operation == 2, gray, jnp.where(operation == 1, jnp.mean(gray), 0.0))
        factor = factors[operation]
        blended = jnp.clip(factor * image + (1 - factor) * other, 0, 1)
        image = blended if active is None else jnp.where(active[place], blended, image)
    return image


def to_gray(image: jax.Array) -> jax.Array:
    """Returns each pixel's luma (ITU-R 601) in every channel, [H, W, C]; C = 1 stays as it is."""
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


def random_blur(
    key: jax.Array, image: jax.Array, probability: jax.Array, sigma: tuple[float, float]
) -> jax.Array:
    """Blurs with a Gaussian of sigma U(sigma[0], sigma[1]) pixels, with the given probability."""
    apply_key, sigma_key = jax.random.split(key)
    drawn = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
    blurred = gaussian_blur(image, drawn, radius=math.ceil(3 * sigma[1]))
    return jnp.where(jax.random.bernoulli(apply_key, probability), blurred, image)


def gaussian_blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Blurs with a Gaussian by two products with a banded matrix; border pixels are repeated.

    Args:
      image: [H, W, C].
      sigma: standard deviation, pixels, above 0.
      radius: the kernel is cut off here, pixels.

    Returns:
      The blurred image, [H, W, C].
    """
    rows = _blur_matrix(image.shape[0], sigma, radius)  # [H, H]
    columns = _blur_matrix(image.shape[1], sigma, radius)  # [W, W]
    return separable(rows, image, columns)


def separable(rows: jax.Array, image: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies a matrix to the rows [I, H] and another to the columns [J, W] of an image.

    Args:
      rows: [I, H].
      image: [H, W, C].
      columns: [J, W].

    Returns:
      [I, J, C].
    """
    # With the default precision a TPU would round the pixels to bfloat16.
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=precision)


def _blur_matrix(length: int, sigma: jax.Array, radius: int) -> jax.Array:
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * jnp.square(offsets / sigma))
    kernel = kernel / jnp.sum(kernel)  # [2 radius + 1]
    pixels = jnp.arange(length)
    apart = pixels[None, :] - pixels[:, None]  # [length, length]
    banded = jnp.where(jnp.abs(apart) <= radius, kernel[jnp.clip(apart + radius, 0, 2 * radius)], 0)
    # Weights beyond the border fall on the border's own pixel.
    reach = pixels[:, None] + offsets[None, :]  # [length, 2 radius + 1]
    before = jnp.sum(jnp.where(reach < 0, kernel[None, :], 0), axis=1)
    behind = jnp.sum(jnp.where(reach >= length, kernel[None, :], 0), axis=1)
    return banded.at[:, 0].add(before).at[:, -1].add(behind)


def random_solarize(key: jax.Array, image: jax.Array, probability: jax.Array) -> jax.Array:
    """Inverts values of at least 1/2, with the given probability."""
    solarized = jnp.where(image < 0.5, image, 1 - image)
    return jnp.where(jax.random.bernoulli(key, probability), solarized, image)


def normalize_channels(
    image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Subtracts the channels' mean and divides by their standard deviation."""
    return (image - jnp.array(mean)[None, None]) / jnp.array(std)[None, None]
