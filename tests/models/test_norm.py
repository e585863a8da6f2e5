"""Norms against plain float64 NumPy: BatchNorm per view as PyTorch has it, groups, layers."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gsg_jax.models.norm import BatchNorm, GroupNorm, LayerNorm
from tests.models.plain import group_norm, layer_norm

MOMENTUM, EPSILON = 0.1, 1e-5
# (views, images, [H, W,] channels), odd batches among them.
CASES = [(2, 3, (3, 5, 4)), (4, 3, (2, 3, 3)), (1, 7, (6,))]


def one_view_after_another(x, num_views, scale, bias, running_mean, running_var):
    """V passes of torch.nn.functional.batch_norm, rows images first.

    Returns:
      (y, running_mean, running_var); a variance is biased to normalise, unbiased to remember.
    """
    y, axes = np.empty_like(x), tuple(range(x.ndim - 1))
    for view in range(num_views):
        rows = x[view::num_views]
        count = rows.size // rows.shape[-1]
        mean = rows.sum(axes) / count
        var = ((rows - mean) ** 2).sum(axes) / count
        y[view::num_views] = (rows - mean) / np.sqrt(var + EPSILON) * scale + bias
        running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
        running_var = (1 - MOMENTUM) * running_var + MOMENTUM * var * count / (count - 1)
    return y, running_mean, running_var


def draw(seed, num_views, num_images, shape):
    """Views of different mean and deviation, weights, running statistics; float64."""
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(num_images, num_views, *shape))
    per_view = (num_views, *(1,) * (len(shape) - 1), shape[-1])
    views = views * rng.uniform(0.5, 3, size=per_view) + rng.normal(size=per_view)
    channels = shape[-1]
    return (
        views.reshape(-1, *shape).astype(np.float32).astype(np.float64),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(0.5, 2, size=channels),
    )


@cache
def training_pass(num_views, group_images=0):
    """Compiled: x, scale, bias, running_mean, running_var, weights -> gradients, (y, stats)."""
    norm = BatchNorm(num_views=num_views, group_images=group_images)

    def loss(x, scale, bias, running_mean, running_var, weights):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": running_mean, "var": running_var},
        }
        y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(weights * y), (y, updates["batch_stats"])

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize(("num_views", "num_images", "shape"), CASES)
def test_views_are_normalised_as_if_they_passed_one_after_another(num_views, num_images, shape):
    inputs = draw(0, num_views, num_images, shape)
    weights = np.random.default_rng(1).normal(size=inputs[0].shape)
    gradients, (y, stats) = training_pass(num_views)(*map(jnp.float32, (*inputs, weights)))

    x, *rest = inputs
    expected, mean, var = one_view_after_another(x, num_views, *rest)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(stats["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)

    # Gradients: central differences of the float64 reference.
    def loss(x, scale, bias):
        return np.sum(weights * one_view_after_another(x, num_views, scale, bias, *rest[2:])[0])

    arguments = list(inputs[:3])
    for which, gradient in enumerate(gradients):
        differences = np.zeros(arguments[which].shape)
        for index in np.ndindex(*differences.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arguments]
                moved[which][index] += sign * 1e-5
                ends.append(loss(*moved))
            differences[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, differences, atol=1e-4)


def test_evaluation_uses_the_running_statistics_of_all_views_and_leaves_them():
    x, scale, bias, mean, var = draw(2, 2, 5, (3, 4, 6))
    expected = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    variables = {
        "params": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)},
        "batch_stats": {"mean": jnp.float32(mean), "var": jnp.float32(var)},
    }
    norm = BatchNorm(num_views=2)
    y, updates = norm.apply(variables, jnp.float32(x), train=False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    odd = norm.apply(variables, jnp.float32(x[:7]), train=False)  # 7 rows are no 2-view batch
    np.testing.assert_allclose(odd, expected[:7], atol=1e-5)


@pytest.mark.parametrize("norm", [BatchNorm(), GroupNorm(num_groups=2), LayerNorm()])
def test_norms_begin_at_zero_and_one(norm):
    x = np.random.default_rng(1).normal(size=(4, 3, 3, 8)).astype(np.float32) + 5
    variables = norm.init(jax.random.key(0), x, train=True)
    for leaves in variables.values():  # the statistics are not those of the batch
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, np.full(8, float(name in ("scale", "var"))))
    zero = norm.clone(scale_init=jax.nn.initializers.zeros)
    assert not zero.init(jax.random.key(0), x, train=True)["params"]["scale"].any()
    bare = norm.clone(use_scale=False).init(jax.random.key(0), x, train=True)
    assert "params" not in bare


@pytest.mark.parametrize(("near_mean", "tolerance"), [(47.0, 1e-5), (0.0, 2e-3)])
def test_bfloat16_activations_keep_float32_statistics(near_mean, tolerance):
    # A mean of 50 and a deviation of 0.5: bfloat16 sums or squares would lose the variance. In
    # float32 it loses few digits if the running mean is 100 deviations away, and none if it is 6.
    rng = np.random.default_rng(3)
    x = jnp.asarray(50 + 0.5 * rng.normal(size=(256, 4)), jnp.bfloat16)
    norm = BatchNorm(num_views=2, dtype=jnp.bfloat16)
    variables = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.full(4, near_mean), "var": jnp.ones(4)},
    }
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    exact, before = np.asarray(x, np.float64), np.full(4, near_mean)
    expected, mean, var = one_view_after_another(exact, 2, 1.0, 0.0, before, np.ones(4))
    assert y.dtype == jnp.bfloat16
    assert (
        updates["batch_stats"]["mean"].dtype == updates["batch_stats"]["var"].dtype == jnp.float32
    )
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], var, rtol=tolerance)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_eight_devices_equal_one():
    inputs = draw(5, 2, 8, (3, 3, 4))
    weights = np.random.default_rng(6).normal(size=inputs[0].shape)
    x, *rest, weights = map(np.float32, (*inputs, weights))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    put = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("data")))
    whole = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec()))
    sharded = training_pass(2)(put(x), *map(whole, rest), put(weights))
    single = training_pass(2)(x, *rest, weights)
    assert len(sharded[1][0].sharding.device_set) == 8
    chex.assert_trees_all_close(sharded, single, rtol=1e-5, atol=1e-5)


def test_groups_are_normalised_as_batches_of_their_own():
    size = 2 * 2  # two images' two views
    x, *rest = draw(7, 2, 6, (3, 2))
    weights = np.random.default_rng(8).normal(size=x.shape)
    x, weights, *rest = map(jnp.float32, (x, weights, *rest))
    found = training_pass(2, group_images=2)(x, *rest, weights)
    parts = [
        training_pass(2)(x[start : start + size], *rest, weights[start : start + size])
        for start in range(0, len(x), size)
    ]
    gradients, outputs = zip(*parts, strict=True)
    of_x, *of_weights = zip(*gradients, strict=True)
    y, stats = zip(*outputs, strict=True)
    mean = jax.tree.map(lambda *of_parts: sum(of_parts) / len(parts), *stats)
    expected = ((jnp.concatenate(of_x), *map(sum, of_weights)), (jnp.concatenate(y), mean))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("group_images", "num_sums"), [(0, 1), (2, 0)])
def test_a_group_that_lies_on_one_device_is_normalised_without_the_others(group_images, num_sums):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    module = BatchNorm(num_views=2, group_images=group_images, use_scale=False)
    x = jax.ShapeDtypeStruct(
        (8, 3, 5), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    variables = {"batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
    apply = jax.jit(lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    program = apply.lower(x).compile().as_text()
    assert ("all-reduce" in program or "all-gather" in program) == bool(num_sums)


# --- Norms of every image by itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "num_groups", "shape", "train"),
    [
        (GroupNorm(num_groups=3, epsilon=0.1), 3, (4, 5, 2, 6), True),
        (GroupNorm(num_groups=1, epsilon=0.1), 1, (4, 3, 3, 6), False),
        (LayerNorm(epsilon=0.1), 1, (5, 6), True),
    ],
)
def test_every_image_is_normalised_by_itself(norm, num_groups, shape, train):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * rng.uniform(0.5, 3, shape[-1]) + 2).astype(np.float32)
    params = {name: rng.normal(size=6).astype(np.float32) for name in ("scale", "bias")}
    init = jax.eval_shape(lambda: norm.init(jax.random.key(0), x, train=train))
    assert jax.tree.map(np.shape, init) == {"params": {"scale": (6,), "bias": (6,)}}
    y = jax.jit(lambda x: norm.apply({"params": params}, x, train=train))(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, group_norm(wide, params, num_groups, 0.1), atol=1e-5)

    bare = norm.clone(use_scale=False)
    assert not jax.eval_shape(lambda: bare.init(jax.random.key(0), x, train=train))
    plain = group_norm(wide, None, num_groups, 0.1)
    np.testing.assert_allclose(bare.apply({}, x, train=train), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "plain"), [(GroupNorm(num_groups=2), group_norm), (LayerNorm(), layer_norm)]
)
def test_bfloat16_norms_of_images_compute_in_float32(norm, plain):
    x = jnp.asarray(50 + 0.5 * np.random.default_rng(3).normal(size=(6, 64, 4)), jnp.bfloat16)
    half = norm.clone(dtype=jnp.bfloat16, use_scale=False)
    y = half.apply({}, x, train=True)
    expected = plain(np.asarray(x, np.float64))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)
