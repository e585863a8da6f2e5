"""Norms against plain float64 NumPy: BatchNorm per view as PyTorch has it, groups, layers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gsg_jax.models.norm import BatchNorm, GroupNorm, LayerNorm

MOMENTUM, EPSILON = 0.1, 1e-5
# (views, images, [H, W,] channels), odd batches among them.
CASES = [(2, 3, (3, 5, 4)), (4, 3, (2, 3, 3)), (1, 7, (6,))]


def one_view(x, scale, bias, running_mean, running_var):
    """torch.nn.functional.batch_norm of one batch: biased to normalise, unbiased to remember."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean = x.sum(axes) / count
    var = ((x - mean) ** 2).sum(axes) / count
    y = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
    running_var = (1 - MOMENTUM) * running_var + MOMENTUM * var * count / (count - 1)
    return y, running_mean, running_var


def one_view_after_another(x, num_views, scale, bias, running_mean, running_var):
    """V separate passes, rows images first; returns (y, running_mean, running_var)."""
    y = np.empty_like(x)
    for view in range(num_views):
        rows = [image * num_views + view for image in range(len(x) // num_views)]
        y[rows], running_mean, running_var = one_view(
            x[rows], scale, bias, running_mean, running_var
        )
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


def test_the_order_of_the_views_counts_in_the_running_statistics():
    # A weight of 0.1 for the last view, 0.09 for the one before it.
    x = jnp.array([[1.0], [3.0]] * 3)  # three images; view 0 is 1, view 1 is 3
    norm = BatchNorm(num_views=2)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)},
    }
    apply = jax.jit(lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"]))
    y, updates = apply(x)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.09 * 1 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(y, np.zeros((6, 1)), atol=1e-6)


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
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    odd = norm.apply(variables, jnp.float32(x[:7]), train=False)  # 7 rows are no 2-view batch
    np.testing.assert_allclose(odd, expected[:7], atol=1e-5)


def test_initialising_leaves_the_running_statistics_at_zero_and_one():
    variables = BatchNorm().init(jax.random.key(0), 5 + jnp.ones((4, 3)), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(3))
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(3))
    bare = BatchNorm(use_scale=False).init(jax.random.key(0), jnp.ones((4, 3)), train=True)
    assert "params" not in bare


def test_bfloat16_activations_keep_float32_statistics():
    # A mean of 50 and a deviation of 0.5: bfloat16 sums or squares would lose the variance.
    rng = np.random.default_rng(3)
    x = jnp.asarray(50 + 0.5 * rng.normal(size=(256, 4)), jnp.bfloat16)
    norm = BatchNorm(num_views=2, dtype=jnp.bfloat16)
    variables = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    expected, mean, var = one_view_after_another(exact, 2, 1.0, 0.0, np.zeros(4), np.ones(4))
    assert y.dtype == jnp.bfloat16
    assert (
        updates["batch_stats"]["mean"].dtype == updates["batch_stats"]["var"].dtype == jnp.float32
    )
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], var, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_a_large_mean_does_not_swallow_the_variance():
    # E[x^2] - E[x]^2 in float32 has no digit left of a variance of 1 at a mean of 1e4.
    x, scale, bias, mean, var = draw(4, 1, 63, (2,))
    x = (x + 1e4).astype(np.float32).astype(np.float64)
    _, (_, stats) = training_pass(1)(*map(jnp.float32, (x, scale, bias, mean, var, x)))
    _, _, expected = one_view_after_another(x, 1, scale, bias, mean, var)
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-4)


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
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), sharded, single)


def in_groups(x, num_views, group_images, *statistics):
    """One group after another, as if it were a batch of its own; the statistics' mean over them."""
    size = group_images * num_views
    parts = [
        one_view_after_another(x[start : start + size], num_views, *statistics)
        for start in range(0, len(x), size)
    ]
    y, mean, var = zip(*parts, strict=True)
    return np.concatenate(y), np.mean(mean, axis=0), np.mean(var, axis=0)


def test_groups_are_normalised_one_by_one():
    group_images = 2
    x, *rest = draw(7, 2, 6, (3, 2))
    weights = np.random.default_rng(8).normal(size=x.shape)
    x, weights, *rest = map(jnp.float32, (x, weights, *rest))
    gradients, (found, stats) = training_pass(2, group_images)(x, *rest, weights)
    wide = [np.asarray(array, np.float64) for array in (x, *rest)]
    y, mean, var = in_groups(wide[0], 2, group_images, *wide[1:])
    np.testing.assert_allclose(found, y, atol=2e-5)
    np.testing.assert_allclose(stats["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    size = 2 * group_images
    of_parts = [
        training_pass(2)(x[start : start + size], *rest, weights[start : start + size])[0]
        for start in range(0, len(x), size)
    ]
    of_x, of_scale, of_bias = zip(*of_parts, strict=True)
    np.testing.assert_allclose(gradients[0], jnp.concatenate(of_x), atol=1e-5)
    np.testing.assert_allclose(gradients[1], sum(of_scale), atol=1e-4)
    np.testing.assert_allclose(gradients[2], sum(of_bias), atol=1e-4)


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


def plain_group_norm(x, num_groups, epsilon):
    """One image and one group of adjacent channels at a time."""
    y, size = np.empty_like(x), x.shape[-1] // num_groups
    for image in range(len(x)):
        for group in range(num_groups):
            part = x[image, ..., group * size : (group + 1) * size]
            mean = part.sum() / part.size
            var = ((part - mean) ** 2).sum() / part.size
            y[image, ..., group * size : (group + 1) * size] = (part - mean) / np.sqrt(
                var + epsilon
            )
    return y


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
    plain = plain_group_norm(x.astype(np.float64), num_groups, 0.1)
    np.testing.assert_allclose(y, plain * params["scale"] + params["bias"], atol=1e-5)

    bare = norm.clone(use_scale=False)
    assert not jax.eval_shape(lambda: bare.init(jax.random.key(0), x, train=train))
    np.testing.assert_allclose(bare.apply({}, x, train=train), plain, atol=1e-5)


@pytest.mark.parametrize("norm", [GroupNorm(num_groups=2), LayerNorm()])
def test_norms_of_images_begin_at_one_and_zero_and_keep_the_digits_of_a_large_mean(norm):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(4, 3, 3, 8)) + 1e4).astype(np.float32)
    y, variables = norm.init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(8))
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(8))
    axes = (1, 2) if isinstance(norm, GroupNorm) else ()
    groups = np.asarray(y, np.float64).reshape(4, 3, 3, -1, 4 if axes else 8)
    np.testing.assert_allclose(groups.var((*axes, 4)), 1, rtol=2e-3)
    started = norm.clone(scale_init=jax.nn.initializers.zeros)
    assert not started.init_with_output(jax.random.key(0), x, train=True)[0].any()


@pytest.mark.parametrize("norm", [GroupNorm(num_groups=2), LayerNorm()])
def test_bfloat16_norms_of_images_compute_in_float32(norm):
    x = jnp.asarray(50 + 0.5 * np.random.default_rng(3).normal(size=(6, 64, 4)), jnp.bfloat16)
    half = norm.clone(dtype=jnp.bfloat16, use_scale=False)
    y = half.apply({}, x, train=True)
    exact = np.asarray(x, np.float64)
    rows = exact if isinstance(norm, GroupNorm) else exact.reshape(-1, 4)
    num_groups = 2 if isinstance(norm, GroupNorm) else 1
    expected = plain_group_norm(rows, num_groups, 1e-5).reshape(exact.shape)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)
