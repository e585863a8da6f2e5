"""Normalisation, each kind with the same call: of a batch view by view, of groups, of a layer.

BatchNorm follows PyTorch's conventions and keeps one set of batch statistics a view. GroupNorm and
LayerNorm normalise every image by itself: they have no running statistics, and are the same in
training and in evaluation mode.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and the pixels, every view by itself.

    The rows of a batch stand images first, views second ([B x V, ...]), so that a batch sharded
    over devices by image stays where it is. A view is normalised by its own mean and biased
    variance, as if the views went through the network one after another; the running statistics
    take one update a view, in the views' order, with the unbiased variance.

    Under `jit` on global arrays the statistics span all devices and hosts.

    Attributes:
      num_views: views an image, V, in training mode.
      use_scale: whether the channels have a learned scale and bias.
      scale_init: initialiser of the scale.
      momentum: weight of the new statistics in the running ones (PyTorch's convention).
      epsilon: added to the variance.
      dtype: of the output; the statistics are float32 (or the input's float64).

    Source: Ioffe & Szegedy, ICML 2015 (arXiv 1502.03167); per-view statistics as in SimSiam,
    where each view is a forward pass of its own.
    """

    num_views: int = 1
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x, [B x V, ..., C]; in training mode the running statistics are updated."""
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

        views = x.reshape(-1, self.num_views, *x.shape[1:])  # [B, V, ..., C]
        views = views.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = (0, *range(2, views.ndim - 1))
        mean = jnp.mean(views, axis=axes)  # [V, C]
        per_view = (1, self.num_views, *(1,) * (views.ndim - 3), channels)
        centred = views - mean.reshape(per_view)
        var = jnp.mean(jnp.square(centred), axis=axes)  # [V, C]

        if not self.is_initializing():
            count = views.size // (self.num_views * channels)
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self._updated(running_mean.value, mean)
            running_var.value = self._updated(running_var.value, unbiased)

        multiplier = jax.lax.rsqrt(var + self.epsilon) * scale[None]  # [V, C]
        y = centred * multiplier.reshape(per_view) + bias.reshape((1,) * (views.ndim - 1) + (-1,))
        return y.astype(self.dtype).reshape(x.shape)

    def _updated(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        """The running statistic [C] after one update a view with batch [V, C], in order."""
        for view in batch:
            running = (1 - self.momentum) * running + self.momentum * view
        return jax.lax.stop_gradient(running)


class GroupNorm(nn.Module):
    """Normalises every image by itself, over its pixels and the channels of each group.

    Attributes:
      num_groups: groups of adjacent channels; divides the channels.
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
        norm = nn.GroupNorm(
            num_groups=self.num_groups,
            epsilon=self.epsilon,
            use_scale=self.use_scale,
            use_bias=self.use_scale,
            scale_init=self.scale_init,
            use_fast_variance=False,  # a large mean would swallow the variance
            dtype=self.dtype,
        )
        nn.share_scope(self, norm)  # scale and bias lie where BatchNorm has them
        return norm(x)


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
        norm = nn.LayerNorm(
            epsilon=self.epsilon,
            use_scale=self.use_scale,
            use_bias=self.use_scale,
            scale_init=self.scale_init,
            use_fast_variance=False,  # a large mean would swallow the variance
            dtype=self.dtype,
        )
        nn.share_scope(self, norm)  # scale and bias lie where BatchNorm has them
        return norm(x)


Norm = Callable[..., BatchNorm | GroupNorm | LayerNorm]  # (use_scale, scale_init, name) -> module
BACKBONE_NORMS = ("batch", "group")
HEAD_NORMS = ("batch", "layer")
