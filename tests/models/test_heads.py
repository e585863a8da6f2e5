"""Projector and predictor: their layers, and their values against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.heads import Predictor, Projector
from gsg_jax.models.norm import BatchNorm, LayerNorm
from tests.models.plain import NUM_VIEWS, batch_norm, drawn, layer_norm

NUM_IMAGES, FEATURES = 6, 5


def relu(x):
    return np.maximum(x, 0)


def run(module, features=FEATURES):
    """Input, parameters (all drawn, the biases too) and output of a head in training mode."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_IMAGES * NUM_VIEWS, features)).astype(np.float32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=True))
    variables = drawn(variables, rng)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    y, _ = apply(variables, x)
    return x.astype(np.float64), jax.tree.map(np.float64, variables["params"]), y


NORMS = pytest.mark.parametrize(
    ("norm", "plain"),
    [(partial(BatchNorm, num_views=NUM_VIEWS), batch_norm), (LayerNorm, layer_norm)],
    ids=["batch", "layer"],
)


def shapes(params):
    return jax.tree.map(np.shape, params)


@NORMS
def test_projector_is_linear_norm_relu_twice_then_linear_norm_without_any_bias(norm, plain):
    module = Projector(num_layers=3, hidden_width=7, width=4, norm=norm)
    x, params, z = run(module)
    assert shapes(params) == {
        "linear1": {"kernel": (5, 7)},
        "bn1": {"scale": (7,), "bias": (7,)},
        "linear2": {"kernel": (7, 7)},
        "bn2": {"scale": (7,), "bias": (7,)},
        "linear3": {"kernel": (7, 4)},
    }
    for layer in (1, 2):
        x = relu(plain(x @ params[f"linear{layer}"]["kernel"], params[f"bn{layer}"]))
    expected = plain(x @ params["linear3"]["kernel"], None)
    np.testing.assert_allclose(z, expected, atol=1e-4)


def test_without_a_norm_at_its_end_a_projector_ends_in_a_linear_layer():
    norm = partial(BatchNorm, num_views=NUM_VIEWS)
    module = Projector(num_layers=2, hidden_width=7, width=4, norm=norm, end="none")
    x, params, z = run(module)
    assert set(params) == {"linear1", "bn1", "linear2"}
    hidden = relu(batch_norm(x @ params["linear1"]["kernel"], params["bn1"]))
    np.testing.assert_allclose(z, hidden @ params["linear2"]["kernel"], atol=1e-4)


@pytest.mark.parametrize(
    ("num_layers", "kernels"),
    [(1, [(5, 4)]), (2, [(5, 7), (7, 4)]), (4, [(5, 7), (7, 7), (7, 7), (7, 4)])],
)
def test_projector_has_as_many_layers_as_asked_for(num_layers, kernels):
    module = Projector(num_layers=num_layers, hidden_width=7, width=4)
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((6, 5)), train=True))
    linear = [shape for shape in jax.tree.leaves(init["params"]) if shape.ndim == 2]
    assert [leaf.shape for leaf in linear] == kernels
    assert set(init["batch_stats"]) == {f"bn{i + 1}" for i in range(num_layers)}
    assert f"bn{num_layers}" not in init["params"]  # the last has no scale and bias


@NORMS
def test_predictor_is_linear_norm_relu_linear_and_the_last_alone_has_a_bias(norm, plain):
    z, params, p = run(Predictor(hidden_width=3, norm=norm))
    assert shapes(params) == {
        "linear1": {"kernel": (5, 3)},
        "bn1": {"scale": (3,), "bias": (3,)},
        "linear2": {"kernel": (3, 5), "bias": (5,)},
    }
    hidden = relu(plain(z @ params["linear1"]["kernel"], params["bn1"]))
    expected = hidden @ params["linear2"]["kernel"] + params["linear2"]["bias"]
    np.testing.assert_allclose(p, expected, atol=1e-4)


def test_linear_layers_start_uniform_within_one_over_the_root_of_their_inputs():
    module = Predictor(hidden_width=50)
    x = jnp.ones((2, 640))
    params = jax.jit(lambda: module.init(jax.random.key(1), x, train=True)["params"])()
    # torch.nn.Linear's default, of the bias too.
    leaves = [
        (params["linear1"]["kernel"], 640),
        (params["linear2"]["kernel"], 50),
        (params["linear2"]["bias"], 50),
    ]
    for leaf, inputs in leaves:
        leaf, limit = np.asarray(leaf), 1 / np.sqrt(inputs)
        assert -limit <= leaf.min() < -0.98 * limit
        assert 0.98 * limit < leaf.max() <= limit
        assert abs(leaf.mean()) < 0.1 * limit
        assert leaf.std() == pytest.approx(limit / np.sqrt(3), rel=0.06)
