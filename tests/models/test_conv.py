"""The convolution of tiny maps equals XLA's own, values and gradients."""

import chex
import jax
import jax.numpy as jnp
import pytest

from gsg_jax.models.conv import convolve

OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "feature_group_count": 1,
    "precision": jax.lax.Precision.HIGHEST,
}


@pytest.mark.parametrize(
    ("size", "height_width", "strides"),
    [
        (3, (1, 1), (1, 1)),
        (3, (2, 2), (1, 1)),
        (3, (2, 2), (2, 2)),
        (3, (2, 1), (1, 2)),
        (3, (1, 5), (2, 2)),
        (3, (3, 4), (1, 1)),
        (7, (4, 2), (2, 2)),
    ],
)
def test_it_equals_xlas_convolution(size, height_width, strides):
    x_key, kernel_key, y_key = jax.random.split(jax.random.key(size), 3)
    padding = [(size // 2, size // 2)] * 2
    with jax.enable_x64(True):
        x = jax.random.normal(x_key, (3, *height_width, 5), jnp.float64)
        kernel = jax.random.normal(kernel_key, (size, size, 5, 4), jnp.float64)
        expected, xla_gradient = jax.vjp(
            lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **OPTIONS),
            x,
            kernel,
        )
        y, gradient = jax.vjp(lambda x, k: convolve(x, k, strides, padding, **OPTIONS), x, kernel)
        weights = jax.random.normal(y_key, y.shape, jnp.float64)
        chex.assert_trees_all_close(y, expected, rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_close(
            gradient(weights), xla_gradient(weights), rtol=1e-12, atol=1e-12
        )


def test_tiny_maps_take_the_matrix_product_and_others_xlas_convolution():
    def operations(height):
        x, kernel = jnp.zeros((2, height, 3, 4)), jnp.zeros((3, 3, 4, 5))
        padding = [(1, 1), (1, 1)]
        return str(
            jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), padding, **OPTIONS))(x, kernel)
        )

    assert "dot_general" in operations(2) and "conv_general_dilated" not in operations(2)
    assert "dot_general" not in operations(3) and "conv_general_dilated" in operations(3)
