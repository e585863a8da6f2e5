"""What every loss of METHODS must do: keep gradient out of its target, and refuse bad shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods import METHODS
from gsg_jax.methods.method import Outputs
from tests.small import small_config

WIDTH, KEY = 5, jax.random.key(0)


def loss_and_memory(method, stop_gradient):
    row, config = METHODS[method], small_config(method).method
    options = {option: config[option] for option in row.options}
    loss = functools.partial(row.loss, stop_gradient=stop_gradient, **options)
    return loss, row.init_memory(KEY, width=WIDTH, **options)


def rows(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_with_a_stop_gradient_none_enters_target_or_negatives_and_without_it_some_does(method):
    p, z, negative = (rows(seed, (2, 6, WIDTH)) for seed in range(3))
    values = []
    for stop_gradient in (True, False):
        loss, memory = loss_and_memory(method, stop_gradient)

        def of_targets(targets, loss=loss, memory=memory):
            outputs = Outputs(h=p, z=p, p=p, z_target=targets[0], z_negative=targets[1])
            return loss(outputs, memory, KEY)[0]

        value, (into_z, into_negative) = jax.jit(jax.value_and_grad(of_targets))((z, negative))
        values.append(value)
        if stop_gradient:
            assert not np.asarray(into_z).any() and not np.asarray(into_negative).any()
        elif method != "unigrad":  # its targets never get gradient
            assert np.asarray(into_z).any()
    np.testing.assert_allclose(*values)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_bad_shapes_raise(method):
    loss, memory = loss_and_memory(method, METHODS[method].stop_gradient)
    for num_views, width in ((2, WIDTH + 1), (1, WIDTH)):
        p, z = rows(0, (num_views, 6, width)), rows(1, (num_views, 6, WIDTH))
        outputs = Outputs(h=p, z=p, p=p, z_target=z)
        with pytest.raises((AssertionError, ValueError, TypeError)):
            jax.eval_shape(lambda o=outputs: loss(o, memory, KEY))
