"""Convolution of tiny maps equals XLA's own, and standardised kernels plain NumPy's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.conv import convolve, convolve_standardized, standardize

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


def plain_standardize(kernel):
    """One output channel at a time."""
    y = np.empty(kernel.shape)
    for channel in range(kernel.shape[-1]):
        inputs = kernel[..., channel].astype(np.float64).ravel()
        mean = sum(inputs) / len(inputs)
        var = sum((inputs - mean) ** 2) / len(inputs)
        y[..., channel] = (kernel[..., channel] - mean) / np.sqrt(var + 1e-5)
    return y


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 7, 2), (7, 7, 3, 2)])
def test_weights_are_standardised_over_the_inputs_of_every_output_channel(shape):
    rng = np.random.default_rng(0)
    # Of the size that weights have: the variance's 1e-5 counts.
    kernel = (0.03 * rng.normal(size=shape) + 0.02).astype(np.float32)
    np.testing.assert_allclose(standardize(kernel), plain_standardize(kernel), atol=1e-5)
    half = standardize(jnp.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(half, np.float64),
        plain_standardize(np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float64)),
        rtol=2**-8,
        atol=1e-6,
    )


@pytest.mark.parametrize("height_width", [(2, 2), (4, 5)])  # the matrix product, and XLA's own
def test_a_standardised_convolution_does_not_see_the_kernels_mean_or_size(height_width):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *height_width, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    padding = [(1, 1), (1, 1)]
    y = convolve_standardized(x, kernel, (1, 1), padding, **OPTIONS)
    expected = convolve(x, jnp.float32(plain_standardize(kernel)), (1, 1), padding, **OPTIONS)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    moved = convolve_standardized(x, 3 * kernel + 2, (1, 1), padding, **OPTIONS)
    np.testing.assert_allclose(moved, y, atol=1e-3)
