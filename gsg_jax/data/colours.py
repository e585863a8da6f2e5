"""Colours, blur and solarize of one view, on the device, inside `jit`.

Every function takes one image [H, W, C] of float32 in [0, 1] and returns one of that shape.
"""

import itertools
import math

import jax
import jax.numpy as jnp

GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def random_jitter(
    key: jax.Array,
    image: jax.Array,
    strengths: tuple[float, float, float, float],
    is_applied: jax.Array | bool = True,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random amounts in a random order.

    Args:
      key: PRNG key.
      image: [H, W, C] in [0, 1], C = 3, or 1, where saturation and hue change nothing.
      strengths: s for each. Brightness, contrast and saturation are scaled by U(1 - s, 1 + s), but
        at least 0; the hue turns by U(-s, s) of a full circle.
      is_applied: whether to jitter at all; if not, every factor is 1 and the hue stays.

    Returns:
      The image, [H, W, C] in [0, 1].

    Source: ColorJitter of torchvision.
    """
    factor_key, hue_key, order_key, place_key = jax.random.split(key, 4)
    strength = jnp.array(strengths[:3])
    low = jnp.maximum(1 - strength, 0)
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=1 + strength)
    factors = jnp.where(is_applied, factors, 1.0)
    if image.shape[-1] == 1:
        return jitter_in_order(image, _random_order(order_key, 2), factors)
    order = _random_order(order_key, 3)
    if not strengths[3]:
        return jitter_in_order(image, order, factors)
    place = jnp.where(is_applied, jax.random.randint(place_key, (), 0, 4), len(order) + 1)
    turn = jax.random.uniform(hue_key, minval=-strengths[3], maxval=strengths[3])
    return jitter_in_order(image, order, factors, place, turn)


def _random_order(key: jax.Array, length: int) -> jax.Array:
    """Draws a permutation of a few numbers from a table, so that the step need not sort."""
    orders = jnp.array(list(itertools.permutations(range(length))))
    return orders[jax.random.randint(key, (), 0, len(orders))]


def jitter_in_order(
    image: jax.Array,
    order: jax.Array,
    factors: jax.Array,
    place: jax.Array | int = 0,
    turn: jax.Array | None = None,
) -> jax.Array:
    """Applies blends in an order, and turns the hue before, between or after them.

    Three of the four operations blend the image with something (black, its mean gray, its own
    gray), so one blend serves each place of the order. All work per pixel, but the contrast needs
    the mean gray of the image that the operations before it produce. So the chain is computed
    twice, up to the contrast and whole: an accelerator then stores little in between.

    Args:
      image: [H, W, C] in [0, 1].
      order: of brightness 0, contrast 1 and saturation 2, each at most once.
      factors: of these three.
      place: how many blends come before the hue; if more than there are, no hue.
      turn: of the hue, in [-0.5, 0.5] of a full circle, or None to leave it.

    Returns:
      The image, [H, W, C] in [0, 1].
    """
    channels = [image[..., c] for c in range(image.shape[-1])]
    numbers = jnp.arange(len(order))

    def chain(length, mean_gray):
        of_place = jnp.where(numbers < length, factors[order], 1.0)  # a factor of 1 changes nothing
        if turn is None:
            return _blends(channels, order, of_place, mean_gray)
        is_first = numbers < place
        before = _blends(channels, order, jnp.where(is_first, of_place, 1.0), mean_gray)
        turned = _turned(before, turn)
        after = [jnp.where(place <= length, *pair) for pair in zip(turned, before, strict=True)]
        return _blends(after, order, jnp.where(is_first, 1.0, of_place), mean_gray)

    mean_gray = jnp.mean(_luma(chain(jnp.argmax(order == 1), 0.0)))
    return jnp.stack(chain(len(order), mean_gray), axis=-1)


def _blends(channels, order, factors, mean_gray):
    """Applies the blends that `order` names, by the factor of each place, to channels [H, W]."""
    for operation, factor in zip(order, factors, strict=True):
        other = jnp.where(operation == 1, mean_gray, 0.0)
        other = jnp.where(operation == 2, _luma(channels), other)
        channels = [jnp.clip(factor * c + (1 - factor) * other, 0, 1) for c in channels]
        channels = _stored_on_cpu(channels)
    return channels


def _stored_on_cpu(channels):
    """Keeps XLA on a CPU from recomputing every step of a chain for each use."""
    return jax.lax.platform_dependent(
        channels, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )


def _luma(channels):
    """The gray [H, W] of channels [H, W]; one channel is its own gray."""
    if len(channels) == 1:
        return channels[0]
    return sum(weight * c for weight, c in zip(GRAY_WEIGHTS, channels, strict=True))


def to_gray(image: jax.Array) -> jax.Array:
    """Returns each pixel's luma (ITU-R 601) in every channel, [H, W, C]; C = 1 stays as it is."""
    gray = _luma([image[..., c] for c in range(image.shape[-1])])
    return jnp.broadcast_to(gray[..., None], image.shape)


def adjust_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the hue of an RGB image [H, W, 3] by `turn` of a full circle, in [-0.5, 0.5]."""
    return jnp.stack(_turned([image[..., c] for c in range(3)], turn), axis=-1)


def _turned(channels, turn):
    """`adjust_hue` of channels [H, W]."""
    red, green, blue = channels
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
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

    return [channel(5), channel(3), channel(1)]


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
      radius: where the kernel is cut off, pixels.

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
    """Weights [length, length] of the Gaussian around each pixel."""

    def weight(distance):
        return jnp.exp(-0.5 * jnp.square(distance / sigma))

    offsets, pixels = jnp.arange(-radius, radius + 1), jnp.arange(length)
    kernel = weight(offsets)  # [2 radius + 1]
    apart = pixels[None, :] - pixels[:, None]  # [length, length]
    banded = jnp.where(jnp.abs(apart) <= radius, weight(apart), 0)
    # Weights beyond the border fall on the border's own pixel.
    reach = pixels[:, None] + offsets[None, :]  # [length, 2 radius + 1]
    before = jnp.sum(jnp.where(reach < 0, kernel[None, :], 0), axis=1, keepdims=True)
    behind = jnp.sum(jnp.where(reach >= length, kernel[None, :], 0), axis=1, keepdims=True)
    banded = banded + jnp.where(pixels[None, :] == 0, before, 0)
    banded = banded + jnp.where(pixels[None, :] == length - 1, behind, 0)
    return banded / jnp.sum(kernel)


def random_solarize(key: jax.Array, image: jax.Array, probability: jax.Array) -> jax.Array:
    """Inverts values of at least 1/2, with the given probability."""
    solarized = jnp.where(image < 0.5, image, 1 - image)
    return jnp.where(jax.random.bernoulli(key, probability), solarized, image)


def normalize_channels(
    image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Subtracts the channels' mean and divides by their standard deviation."""
    return (image - jnp.array(mean)[None, None]) / jnp.array(std)[None, None]
