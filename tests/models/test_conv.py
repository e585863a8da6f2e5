"""Convolutions equal a loop over pixels, and standardised kernels plain NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.conv import Conv, standardize


def plain_standardize(kernel):
    """One output channel at a time."""
    y = np.empty(kernel.shape)
    for channel in range(kernel.shape[-1]):
        inputs = kernel[..., channel].astype(np.float64).ravel()
        mean = sum(inputs) / len(inputs)
        var = sum((inputs - mean) ** 2) / len(inputs)
        y[..., channel] = (kernel[..., channel] - mean) / np.sqrt(var + 1e-5)
    return y


def test_weights_are_standardised_over_the_inputs_of_every_output_channel():
    # Of the size that weights have: the variance's 1e-5 counts.
    kernel = (0.03 * np.random.default_rng(0).normal(size=(3, 3, 4, 5)) + 0.02).astype(np.float32)
    np.testing.assert_allclose(standardize(kernel), plain_standardize(kernel), atol=1e-5)
    half = standardize(jnp.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    exact = plain_standardize(np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float64))
    np.testing.assert_allclose(np.asarray(half, np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("weight_standardization", [True, False])
def test_it_equals_a_loop_over_pixels(weight_standardization):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 8, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    conv = Conv(5, 3, stride=2, padding=1, weight_standardization=weight_standardization)
    y = conv.apply({"params": {"kernel": kernel}}, x)
    exact = plain_standardize(kernel) if weight_standardization else kernel.astype(np.float64)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 4, 5))
    for row, column in np.ndindex(3, 4):
        patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        expected[:, row, column] = np.tensordot(patch, exact, axes=3)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_activations_of_a_kind_keep_a_float32_kernel():
    conv = Conv(5, 1, dtype=jnp.bfloat16)
    y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((2, 3, 4, 6)))
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32
