"""What one CPU computes its own way equals XLA's convolutions and plain sums."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.devices.mesh import all_devices
from gsg_jax.models import cpu
from gsg_jax.models.conv import DIMENSIONS
from gsg_jax.models.cpu import conv
from gsg_jax.models.cpu.relu import stored_relu
from gsg_jax.models.cpu.sums import moments_in_stages, sum_in_stages
from gsg_jax.models.jit import jit_network
from gsg_jax.models.norm import normalize_views
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images, small_experiment

ONE, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
# Kernel, map, strides, padding: not square, ends left over.
QUICK = [
    ((3, 3), (13, 9), (1, 1), ONE),
    ((2, 3), (10, 9), (3, 2), ((0, 1), (1, 1))),
    ((3, 3), (2, 1), (1, 2), ONE),  # a map smaller than its kernel
]
CASES = [
    ((3, 3), (13, 10), (2, 2), ONE),
    ((3, 5), (9, 14), (1, 1), ((0, 2), (2, 1))),
    ((7, 7), (15, 18), (2, 2), ((3, 3), (3, 3))),
    ((3, 3), (5, 6), (1, 1), ONE),
    ((3, 3), (8, 4), (1, 1), ONE),  # Winograd's sums
    ((1, 1), (11, 9), (2, 3), NONE),
    ((2, 3), (10, 9), (1, 1), NONE),
    ((7, 7), (4, 2), (2, 2), ((3, 3), (3, 3))),
]


def xla(strides, padding):
    return functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=DIMENSIONS,
    )


def with_gradient(function):
    """Maps x, kernel and dy to (y, (dx, dkernel))."""

    @jax.jit
    def both(x, kernel, dy):
        y, gradient = jax.vjp(function, x, kernel)
        return y, gradient(dy)

    return both


def extended(cases):
    return [pytest.param(*case, marks=pytest.mark.extended) for case in cases]


@pytest.mark.parametrize(("size", "height_width", "strides", "padding"), [*QUICK, *extended(CASES)])
def test_a_cpus_convolution_and_its_gradient_equal_xlas(
    monkeypatch, size, height_width, strides, padding
):
    monkeypatch.setattr(conv, "WINOGRAD_CHANNELS", 3)
    keys = jax.random.split(jax.random.key(sum(size)), 3)
    with jax.enable_x64(True):
        x = jax.random.normal(keys[0], (6, *height_width, 3), jnp.float64)
        kernel = jax.random.normal(keys[1], (*size, 3, 5), jnp.float64)
        xlas = xla(strides, padding)
        dy = jax.random.normal(keys[2], jax.eval_shape(xlas, x, kernel).shape, jnp.float64)
        found = with_gradient(lambda x, k: conv.convolve(x, k, strides, padding))(x, kernel, dy)
        expected = with_gradient(xlas)(x, kernel, dy)
        chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.extended
def test_winograds_rounding_is_small_and_evaluation_has_none_of_it():
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (3, 8, 4, 256))
    kernel = jax.random.normal(keys[1], (3, 3, 256, 257)) / 48
    ours = functools.partial(conv.convolve, strides=(1, 1), padding=ONE)
    dy = jax.random.normal(keys[2], (3, 8, 4, 257))
    y, gradients = with_gradient(ours)(x, kernel, dy)
    with jax.enable_x64(True):
        wide = [jnp.asarray(one, jnp.float64) for one in (x, kernel, dy)]
        exact, its_gradients = jax.device_get(with_gradient(xla((1, 1), ONE))(*wide))
        expected = (exact, *its_gradients)
    evaluated = np.max(np.abs(np.asarray(ours(x, kernel), np.float64) - expected[0]))
    assert evaluated < 2e-6 * np.max(np.abs(expected[0]))
    for found, one in zip((y, *gradients), expected, strict=True):
        error = np.max(np.abs(np.asarray(found, np.float64) - one)) / np.max(np.abs(one))
        assert 1e-7 < error < 3e-5  # an error of zero would mean that Winograd's was not taken


@pytest.mark.parametrize(
    "pixels", [(9, 16), *extended([[(16, 8)], [(13, 13)], [(4, 5)], [(1, 1)], [()]])]
)
def test_sums_in_stages_normalise_and_differentiate_as_plain_sums(pixels):
    rng = np.random.default_rng(sum(pixels))
    with jax.enable_x64(True):
        x = jnp.asarray(3 + rng.normal(size=(5, 2, *pixels, 4)))
        scale, bias, near_mean = jnp.asarray(rng.normal(size=(3, 4)))
        weights = jnp.asarray(rng.normal(size=x.shape))

        def loss(x, scale, bias, *sums):
            y, mean, var = normalize_views(x, scale, bias, near_mean, 1e-5, *sums)
            return jnp.sum(y * weights), (y, mean, var)

        @jax.jit
        def gradients(*given):
            gradient = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
            staged = gradient(lambda *args: loss(*args, moments_in_stages, sum_in_stages, sum))
            return staged(*given), gradient(loss)(*given)

        found, expected = gradients(x, scale, bias)
        chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_stored_relu_is_the_plain_one_and_has_no_gradient_at_zero():
    y, gradient = jax.vjp(stored_relu, jnp.asarray([-2.0, -0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(y, [0, 0, 0, 3])
    np.testing.assert_array_equal(gradient(jnp.full(4, 7.0))[0], [0, 0, 0, 7])


@pytest.mark.extended
def test_a_step_on_one_cpu_equals_the_step_of_tpus_and_gpus(monkeypatch):
    experiment = small_experiment("byol_gsg", pairing="halves", num_views=2)
    state, mesh = init_state(experiment, 1), all_devices()
    step = functools.partial(train_step, experiment)
    assert jax.device_count() == 8 and not cpu.is_one_cpu(mesh)
    plain = jit_network(step, mesh)(state, images())
    monkeypatch.setattr(cpu, "is_one_cpu", lambda mesh: True)
    taken = []
    names = ("convolve", "sum_in_stages", "stored_relu")
    for name in names:
        function = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, f=function: (taken.append(f), f(*args))[1])
    found = jit_network(step, mesh)(state, images())
    assert len(set(taken)) == len(names)
    chex.assert_trees_all_close(found[1], plain[1], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(found[0], plain[0], rtol=1e-3, atol=2e-5)


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(cpu.COMPILER_OPTIONS, "xla_cpu_no_such_option", "1")
    options = cpu.compiler_options(all_devices())
    assert "xla_cpu_no_such_option" not in options and options
