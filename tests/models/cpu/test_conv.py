"""What a CPU computes in its own way equals XLA's convolutions, sums and ReLUs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.devices import backend
from gsg_jax.models import cpu_conv
from gsg_jax.models.norm import normalize_views
from gsg_jax.models.relu import relu
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images, small_experiment

CHOOSERS = ("gsg_jax.models.conv", "gsg_jax.models.norm", "gsg_jax.models.relu")


@pytest.fixture
def one_cpu(monkeypatch):
    for module in CHOOSERS:
        monkeypatch.setattr(f"{module}.is_one_cpu", lambda: True)


# Kernel, map, strides, padding: larger and smaller than SMALL_MAP, not square, ends left over.
CASES = [
    ((3, 3), (13, 9), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (13, 10), (2, 2), ((1, 1), (1, 1))),
    ((3, 3), (12, 11), (2, 1), ((1, 1), (0, 2))),
    ((3, 5), (9, 14), (1, 1), ((0, 2), (2, 1))),
    ((7, 7), (15, 18), (2, 2), ((3, 3), (3, 3))),
    ((3, 3), (5, 6), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (4, 12), (1, 1), ((1, 1), (1, 1))),  # by Winograd's sums, as the next one
    ((3, 3), (8, 4), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (4, 8), (1, 1), ((1, 1), (2, 0))),
    ((2, 3), (10, 9), (3, 2), ((0, 1), (1, 1))),
    ((1, 1), (11, 9), (2, 3), ((0, 0), (0, 0))),
    ((1, 1), (11, 9), (2, 1), ((1, 0), (0, 0))),
    ((2, 3), (10, 9), (1, 1), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("size", "height_width", "strides", "padding"), CASES)
@pytest.mark.parametrize("num_images", [6, 7])
def test_a_cpus_convolution_and_its_gradient_equal_xlas(
    monkeypatch, size, height_width, strides, padding, num_images
):
    monkeypatch.setattr(cpu_conv, "WINOGRAD_CHANNELS", 3)
    monkeypatch.setattr(cpu_conv, "BLOCK_ELEMENTS", 3 * np.prod(height_width) * 5)  # 2 or 3, or 1
    keys = jax.random.split(jax.random.key(sum(size)), 3)
    with jax.enable_x64(True):
        x = jax.random.normal(keys[0], (num_images, *height_width, 3), jnp.float64)
        kernel = jax.random.normal(keys[1], (*size, 3, 5), jnp.float64)
        xlas = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=strides,
            padding=padding,
            dimension_numbers=cpu_conv.DIMENSIONS,
        )
        expected, its_gradient = jax.vjp(xlas, x, kernel)
        ours = functools.partial(cpu_conv.convolve_on_cpu, strides=strides, padding=padding)
        y, gradient = jax.vjp(lambda x, k: ours(x, k, precision=None), x, kernel)
        dy = jax.random.normal(keys[2], y.shape, jnp.float64)
        chex.assert_trees_all_close(y, expected, rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_close(gradient(dy), its_gradient(dy), rtol=1e-12, atol=1e-12)


def test_winograds_rounding_is_small_and_evaluation_has_none_of_it():
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (3, 8, 4, 256))
    kernel = jax.random.normal(keys[1], (3, 3, 256, 257)) / 48
    ours = functools.partial(cpu_conv.convolve_on_cpu, strides=(1, 1), padding=((1, 1), (1, 1)))
    ours = functools.partial(ours, precision=None)
    y, gradient = jax.vjp(ours, x, kernel)
    dy = jax.random.normal(keys[2], y.shape)
    exact = functools.partial(cpu_conv._convolve, strides=(1, 1), padding=((1, 1), (1, 1)))
    with jax.enable_x64(True):
        wide = [jnp.asarray(one, jnp.float64) for one in (x, kernel, dy)]
        expected, its_gradient = jax.vjp(functools.partial(exact, precision=None), *wide[:2])
        expected = jax.device_get((expected, *its_gradient(wide[2])))
    evaluated = np.max(np.abs(np.asarray(ours(x, kernel), np.float64) - expected[0]))
    assert evaluated < 2e-6 * np.max(np.abs(expected[0]))
    for found, one in zip((y, *gradient(dy)), expected, strict=True):
        error = np.max(np.abs(np.asarray(found, np.float64) - one)) / np.max(np.abs(one))
        assert 1e-7 < error < 3e-5  # above nothing, or Winograd's had not been taken


def test_a_kernels_gradient_in_half_precision_is_summed_in_float32():
    # In bfloat16 a sum of 2,048 equal terms would stop growing at 256.
    x, dy = jnp.ones((32, 8, 8, 1), jnp.bfloat16), jnp.ones((32, 8, 8, 1), jnp.bfloat16)
    zero_padding = ((0, 0), (0, 0))
    of_one_tap = cpu_conv.kernel_gradient(x, dy, (1, 1), (1, 1), zero_padding)
    assert of_one_tap.dtype == jnp.bfloat16 and of_one_tap.item() == 2048


@pytest.mark.parametrize("pixels", [(9, 16), (16, 8), (13, 13), (4, 5), (1, 1), (15, 7)])
def test_sums_in_stages_normalise_and_differentiate_as_plain_sums(one_cpu, pixels, monkeypatch):
    rng = np.random.default_rng(sum(pixels))
    with jax.enable_x64(True):
        x = jnp.asarray(3 + rng.normal(size=(5, 2, *pixels, 4)))
        scale, bias = jnp.asarray(rng.normal(size=(2, 4)))
        weights = jnp.asarray(rng.normal(size=x.shape))

        def plain(x, scale, bias):
            axes = (0, 2, 3)
            mean = jnp.mean(x, axes, keepdims=True)
            var = jnp.mean(jnp.square(x - mean), axes, keepdims=True)
            shape = (1, 1, 1, 1, 4)
            y = (x - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(shape) + bias.reshape(shape)
            return jnp.sum(y * weights), (y, mean.reshape(2, 4), var.reshape(2, 4))

        def ours(x, scale, bias):
            y, mean, var = normalize_views(x, scale, bias, 1e-5)
            return jnp.sum(y * weights), (y, mean, var)

        of_all = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
        expected, found = of_all(plain)(x, scale, bias), of_all(ours)(x, scale, bias)
        chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_stored_relu_is_the_plain_one_and_has_no_gradient_at_zero(one_cpu):
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0])
    y, gradient = jax.vjp(relu, x)
    np.testing.assert_array_equal(y, [0, 0, 0, 3])
    np.testing.assert_array_equal(gradient(jnp.full(4, 7.0))[0], [0, 0, 0, 7])


def test_a_step_on_one_cpu_equals_the_step_that_tpus_and_gpus_run(monkeypatch):
    experiment = small_experiment("byol_gsg", pairing="halves", num_views=2)
    state = init_state(experiment, 1)
    step = functools.partial(train_step, experiment, state, images())
    plain_state, plain_metrics = jax.jit(step)()
    for module in CHOOSERS:
        monkeypatch.setattr(f"{module}.is_one_cpu", lambda: True)
    text = str(jax.make_jaxpr(lambda: step())())  # a function that JAX has not traced yet
    assert "optimization_barrier" in text  # or the choice had not been taken
    found_state, found_metrics = jax.jit(lambda: step())()
    chex.assert_trees_all_close(found_metrics, plain_metrics, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(found_state, plain_state, rtol=1e-3, atol=2e-5)


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(backend.CPU_OPTIONS, "xla_cpu_no_such_option", "1")
    backend.compiler_options.cache_clear()
    try:
        options = backend.compiler_options()
    finally:
        backend.compiler_options.cache_clear()
    assert "xla_cpu_no_such_option" not in options and "xla_disable_hlo_passes" in options


def test_several_devices_are_not_one_cpu():
    assert jax.device_count() == 8 and not backend.is_one_cpu()
