"""BatchNorm view by view, GroupNorm and LayerNorm, all with the same call.

BatchNorm follows PyTorch's conventions and has batch statistics for each view. GroupNorm and
LayerNorm normalise every image by itself: they have no running statistics, and work the same way in
training and in evaluation mode.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and the pixels, every view by itself.

    The rows of a batch are ordered by image, then by view ([B x V, ...]), so that no row of a batch
    sharded by image moves to another device. Each view is normalised by its own mean and biased
    variance, as if the views passed through the network in turn. The running statistics are
    updated once for each view, in the views' order, with the unbiased variance.

    Under `jit` on global arrays the statistics span all devices and hosts. With group_images they
    span a group of neighbouring images: each group is normalised by itself, and the running
    statistics take the mean over the groups. A group on a single device needs no communication.

    Attributes:
      num_views: views an image, V, in training mode.
      group_images: images that are normalised together, a divisor of B; 0 = all B.
      use_scale: whether the channels have a learned scale and bias.
      scale_init: initialiser of the scale.
      momentum: weight of the new statistics in the running ones (PyTorch's convention).
      epsilon: added to the variance.
      dtype: of the output; the statistics are float32 (or the input's float64).

    Source: Ioffe & Szegedy, ICML 2015 (arXiv 1502.03167); per-view statistics as in SimSiam,
    where each view is a forward pass of its own.
    """

    num_views: int = 1
    group_images: int = 0
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x, [B x V, ..., C]; training mode updates the running statistics."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale, bias = jnp.ones(channels), jnp.zeros(channels)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, (channels,))
            bias = self.param("bias", nn.initializers.zeros, (channels,))

        if not train:
            multiplier = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            offset = bias - running_mean.value * multiplier
            shape = (1,) * (x.ndim - 1) + (channels,)
            return (x * multiplier.reshape(shape) + offset.reshape(shape)).astype(self.dtype)

        if self.is_initializing():  # there may be too few images for statistics
            return x.astype(self.dtype)
        views = x.reshape(-1, self.num_views, *x.shape[1:])  # [B, V, ..., C]
        group_images = self.group_images or len(views)
        # Each view of each group is normalised by itself: [G, groups x V, ..., C].
        views = views.reshape(-1, group_images, *views.shape[1:]).swapaxes(0, 1)
        views_of_groups = views.reshape(group_images, -1, *x.shape[1:])
        y, mean, var = self.normalize(views_of_groups, scale, bias, running_mean.value)

        count = y.size // (y.shape[1] * channels)
        unbiased = var * (count / max(count - 1, 1))
        running_mean.value = self._updated(running_mean.value, self._over_groups(mean))
        running_var.value = self._updated(running_var.value, self._over_groups(unbiased))
        return y.reshape(views.shape).swapaxes(0, 1).astype(self.dtype).reshape(x.shape)

    def normalize(
        self, x: jax.Array, scale: jax.Array, bias: jax.Array, near_mean: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Calls `normalize_views`; gsg_jax.models.cpu replaces its sums."""
        return normalize_views(x, scale, bias, near_mean, self.epsilon)

    def _over_groups(self, statistic: jax.Array) -> jax.Array:
        """Maps [groups x V, C] to its mean over the groups, [V, C]."""
        return jnp.mean(statistic.reshape(-1, self.num_views, statistic.shape[-1]), axis=0)

    def _updated(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        """Returns the running statistic [C] after one update for each view of batch [V, C]."""
        for view in batch:
            running = (1 - self.momentum) * running + self.momentum * view
        return jax.lax.stop_gradient(running)


def sum_of_views(x: jax.Array) -> jax.Array:
    """Sums [B, V, ..., C] over images and pixels to [V, C]."""
    return jnp.sum(x, axis=(0, *range(2, x.ndim - 1)))


def moments_in_one_pass(x: jax.Array, near_mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each view, from sums of x - near_mean and of its square.

    Thus x is read once, on the way out of the convolution that computes it, and the sums of all
    devices are added in one exchange. The variance loses the digits by which the squared distance
    from near_mean to the mean exceeds it: a running mean is near enough.

    Args:
      x: [B, V, ..., C], float32 or wider.
      near_mean: [C].

    Returns:
      (mean, var), [V, C] each.
    """
    count = x.size // (x.shape[1] * x.shape[-1])
    distance = x - like_views(near_mean[None], x)
    first, second = sum_of_views(distance) / count, sum_of_views(jnp.square(distance)) / count
    return near_mean[None] + first, jnp.maximum(second - jnp.square(first), 0)


def sum_over_views(sums: jax.Array) -> jax.Array:
    """Adds the sums [V, C] of all views, or of all views of all groups, to [C]."""
    return jnp.sum(sums, axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def normalize_views(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near_mean: jax.Array,
    epsilon: float,
    moments: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = moments_in_one_pass,
    sum_of_views: Callable[[jax.Array], jax.Array] = sum_of_views,
    sum_over_views: Callable[[jax.Array], jax.Array] = sum_over_views,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises every view by its own statistics.

    Its gradient is written out, in two sums over the images and pixels:

        dx = scale / sqrt(var + epsilon) (dy - mean of dy - x_hat mean of (dy x_hat)),

    where x_hat is the normalised x. Only x is kept for the gradient, in its own type.

    Args:
      x: [B, V, ..., C].
      scale: [C].
      bias: [C].
      near_mean: [C], where the mean is expected.
      epsilon: added to the variance.
      moments: maps x and near_mean to the mean and the biased variance of each view, [V, C].
      sum_of_views: maps [B, V, ..., C] to its sums over images and pixels, [V, C].
      sum_over_views: maps these to their sum, [C].

    Returns:
      (y, mean, var): y like x, float32 or wider; mean and biased variance [V, C], which carry no
      gradient.

    Source: Ioffe & Szegedy, ICML 2015 (arXiv 1502.03167), section 3.
    """
    parts = moments, sum_of_views, sum_over_views
    return _normalized(x, scale, bias, near_mean, epsilon, *parts)[0]


def _normalized(x, scale, bias, near_mean, epsilon, moments, sum_of_views, sum_over_views):
    del sum_of_views, sum_over_views
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = moments(wide, near_mean)
    reciprocal = jax.lax.rsqrt(var + epsilon)
    centred, multiplier = wide - like_views(mean, x), like_views(reciprocal * scale[None], x)
    y = centred * multiplier + like_views(bias[None], x)
    return (y, mean, var), (x, scale, mean, reciprocal)


def _gradient_of_normalized(epsilon, moments, sum_of_views, sum_over_views, residuals, gradients):
    del epsilon, moments
    dy, *_ = gradients
    x, scale, mean, reciprocal = residuals
    count = x.size // (x.shape[1] * x.shape[-1])
    x_hat = (x.astype(dy.dtype) - like_views(mean, x)) * like_views(reciprocal, x)
    dy_sum, dy_x_sum = sum_of_views(dy), sum_of_views(dy * x_hat)  # [V, C] each
    rest = dy - like_views(dy_sum / count, x) - x_hat * like_views(dy_x_sum / count, x)
    dx = rest * like_views(reciprocal * scale[None], x)
    of_near_mean = jnp.zeros_like(scale)  # near_mean does not change the result
    return dx.astype(x.dtype), sum_over_views(dy_x_sum), sum_over_views(dy_sum), of_near_mean


normalize_views.defvjp(_normalized, _gradient_of_normalized)


def like_views(statistic: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes [V, C] or [1, C] to [1, V, 1..., C], to broadcast with x [B, V, ..., C]."""
    return statistic.reshape(1, -1, *(1,) * (x.ndim - 3), statistic.shape[-1])


class GroupNorm(nn.Module):
    """Normalises every image by itself, over its pixels and the channels of each group.

    Attributes:
      num_groups: groups of adjacent channels; divides their number.
      use_scale: whether the channels have a learned scale and bias.
      scale_init: initialiser of the scale.
      epsilon: added to the variance.
      dtype: of the output; the statistics are float32 or wider.

    Source: Wu & He, ECCV 2018 (arXiv 1803.08494).
    """

    num_groups: int = 32
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x, [N, ..., C]; the same in training and evaluation mode."""
        del train
        return _flax_norm(self, nn.GroupNorm, num_groups=self.num_groups)(x)


class LayerNorm(nn.Module):
    """Normalises every row by itself, over its channels.

    Attributes:
      use_scale: whether the channels have a learned scale and bias.
      scale_init: initialiser of the scale.
      epsilon: added to the variance.
      dtype: of the output; the statistics are float32 or wider.

    Source: Ba et al. (arXiv 1607.06450).
    """

    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x, [..., C]; the same in training and evaluation mode."""
        del train
        return _flax_norm(self, nn.LayerNorm)(x)


def _flax_norm(module: GroupNorm | LayerNorm, kind: type[nn.Module], **options) -> nn.Module:
    """Flax's norm with a module's settings, and its scale and bias stored where BatchNorm's are."""
    norm = kind(
        epsilon=module.epsilon,
        use_scale=module.use_scale,
        use_bias=module.use_scale,
        scale_init=module.scale_init,
        use_fast_variance=False,  # a large mean would swallow the variance
        dtype=module.dtype,
        **options,
    )
    nn.share_scope(module, norm)
    return norm


Norm = Callable[..., BatchNorm | GroupNorm | LayerNorm]  # (use_scale, scale_init, name) -> module
BACKBONE_NORMS = ("batch", "group")
HEAD_NORMS = ("batch", "layer")
