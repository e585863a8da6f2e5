"""Projector and predictor: their layers, and their values against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.heads import Predictor, Projector
from gsg_jax.models.norm import BatchNorm, LayerNorm

NUM_VIEWS, NUM_IMAGES, FEATURES = 2, 6, 5


def per_view_norm(x, params):
    y = np.empty_like(x)
    for view in range(NUM_VIEWS):
        rows = x[view::NUM_VIEWS]
        y[view::NUM_VIEWS] = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    return y * params["scale"] + params["bias"] if params else y


def relu(x):
    return np.maximum(x, 0)


def norm(**options):
    return BatchNorm(num_views=NUM_VIEWS, **options)


def run(module, features=FEATURES):
    """Input, parameters (all drawn, the biases too) and output of a head in training mode."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_IMAGES * NUM_VIEWS, features)).astype(np.float32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=True))
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, variables["params"])
    stats = variables.get("batch_stats", {})
    variables = {"params": params, "batch_stats": jax.tree.map(draw, stats)}
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    y, _ = apply(variables, x)
    return x.astype(np.float64), jax.tree.map(np.float64, params), y


def shapes(params):
    return jax.tree.map(np.shape, params)


def test_projector_is_linear_norm_relu_twice_then_linear_norm_without_any_bias():
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
        x = relu(per_view_norm(x @ params[f"linear{layer}"]["kernel"], params[f"bn{layer}"]))
    expected = per_view_norm(x @ params["linear3"]["kernel"], None)
    np.testing.assert_allclose(z, expected, atol=1e-4)


def test_projections_have_mean_zero_and_variance_one_in_every_view():
    _, _, z = run(Projector(num_layers=2, hidden_width=7, width=4, norm=norm))
    for view in range(NUM_VIEWS):
        rows = np.asarray(z[view::NUM_VIEWS], np.float64)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(rows.var(0), 1, atol=1e-3)


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


def test_predictor_is_linear_norm_relu_linear_and_the_last_alone_has_a_bias():
    z, params, p = run(Predictor(hidden_width=3, norm=norm))
    assert shapes(params) == {
        "linear1": {"kernel": (5, 3)},
        "bn1": {"scale": (3,), "bias": (3,)},
        "linear2": {"kernel": (3, 5), "bias": (5,)},
    }
    hidden = relu(per_view_norm(z @ params["linear1"]["kernel"], params["bn1"]))
    expected = hidden @ params["linear2"]["kernel"] + params["linear2"]["bias"]
    np.testing.assert_allclose(p, expected, atol=1e-4)


def plain_layer_norm(x, params):
    mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    y = (x - mean) / np.sqrt(var + 1e-5)
    return y * params["scale"] + params["bias"] if params else y


def test_heads_with_layer_norm_have_no_statistics_and_see_one_row_at_a_time():
    module = Projector(num_layers=2, hidden_width=7, width=4, norm=LayerNorm)
    x, params, z = run(module)
    assert shapes(params) == {
        "linear1": {"kernel": (5, 7)},
        "bn1": {"scale": (7,), "bias": (7,)},
        "linear2": {"kernel": (7, 4)},
    }
    hidden = relu(plain_layer_norm(x @ params["linear1"]["kernel"], params["bn1"]))
    expected = plain_layer_norm(hidden @ params["linear2"]["kernel"], None)
    np.testing.assert_allclose(z, expected, atol=1e-4)

    z, params, p = run(Predictor(hidden_width=3, norm=LayerNorm))
    hidden = relu(plain_layer_norm(z @ params["linear1"]["kernel"], params["bn1"]))
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


@pytest.mark.parametrize("head", [Projector(2, 7, 4), Predictor(3)], ids=["projector", "predictor"])
def test_bfloat16_activations_give_float32_outputs(head):
    half = head.clone(dtype=jnp.bfloat16)
    shape = jax.eval_shape(
        lambda x: half.init_with_output(jax.random.key(0), x, train=True),
        jax.ShapeDtypeStruct((6, 5), jnp.float32),
    )
    output, variables = shape
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
