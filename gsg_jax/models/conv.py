"""A convolution with PyTorch's padding and initialisation, and weight standardisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp

STANDARDIZE_EPSILON = 1e-5
DIMENSIONS = ("NHWC", "HWIO", "NHWC")

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A square convolution without a bias.

    Attributes:
      width: output channels, F.
      size: side of the kernel, pixels.
      stride: along both axes.
      padding: zeros on every side of the map.
      weight_standardization: whether the kernel is standardised before it convolves.
      dtype: of the activations; the kernel is kept in float32.
    """

    width: int
    size: int
    stride: int = 1
    padding: int = 0
    weight_standardization: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, (H + 2 padding - size) // stride + 1, likewise W, F]."""
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", he_normal_fan_out, shape)
        if self.weight_standardization:
            kernel = standardize(kernel)
        strides, padding = (self.stride, self.stride), ((self.padding, self.padding),) * 2
        return self.convolve(x.astype(self.dtype), kernel.astype(self.dtype), strides, padding)

    def convolve(
        self,
        x: jax.Array,
        kernel: jax.Array,
        strides: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
    ) -> jax.Array:
        """Convolves x [N, H, W, C] with a kernel [h, w, C, F]; gsg_jax.models.cpu replaces it."""
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=DIMENSIONS
        )


def standardize(kernel: jax.Array) -> jax.Array:
    """Returns the kernel with mean 0 and variance 1 over the inputs of every output channel.

    Args:
      kernel: [h, w, C, F].

    Returns:
      The standardised kernel, of the same type; computed in float32 or wider.

    Source: Qiao et al. (arXiv 1903.10520), section 3; no learned gain.
    """
    exact = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    centred = exact - jnp.mean(exact, axis=(0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=(0, 1, 2), keepdims=True)  # [1, 1, 1, F]
    return (centred * jax.lax.rsqrt(var + STANDARDIZE_EPSILON)).astype(kernel.dtype)
