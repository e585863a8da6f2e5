"""Vision transformers: timm's sizes, values against plain loops in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gsg_jax.models.vit import VITS, Block, ViT, resize_positions
from tests.models.plain import drawn, layer_norm

# timm's vit_*_patch16_224 with num_classes=0.
PARAMETERS = {"vit_tiny": 5_524_416, "vit_small": 21_665_664, "vit_base": 85_798_656}

WIDTH, NUM_HEADS, DEPTH, PATCH = 12, 3, 2, 4


def small(**changes):
    return ViT(WIDTH, NUM_HEADS, DEPTH, **{"patch_size": PATCH, **changes})


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn_params(model, shape, seed=1):
    """Parameters of a model for images of a shape, all of them drawn, biases and scales too."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    init = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)
    assert set(init) == {"params"}
    return drawn(init["params"], np.random.default_rng(seed), 0.4)


def embed(model, params, images):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_timms(name):
    model = ViT(*VITS[name], positions="learned")
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    init = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(init)) == PARAMETERS[name]
    assert init["params"]["positions"].shape == (1, 197, VITS[name][0])


def test_fixed_positions_are_no_parameters_and_the_mean_needs_no_class_token():
    names = "block0 block1 class_token norm patch_embed"
    assert sorted(drawn_params(small(), (2, 8, 8, 3))) == names.split()
    params = drawn_params(small(pooling="mean", positions="learned"), (2, 8, 8, 3))
    assert "class_token" not in params and params["positions"].shape == (1, 4, WIDTH)


# --- Values --------------------------------------------------------------------------------------


def plain_linear(x, params):
    return x @ params["kernel"] + params["bias"]


def plain_attention(x, params):
    """One query of one head of one image at a time."""
    n, t, width = x.shape
    size = width // NUM_HEADS
    qkv = plain_linear(x, params["qkv"])
    y = np.zeros_like(x)
    for image in range(n):
        for head in range(NUM_HEADS):
            # All the queries stand before all the keys, and these before the values.
            q, k, v = (
                qkv[image, :, part * width + head * size : part * width + (head + 1) * size]
                for part in range(3)
            )
            for query in range(t):
                weights = [math.exp(sum(q[query] * k[key]) / math.sqrt(size)) for key in range(t)]
                value = sum(w * v[key] for key, w in enumerate(weights)) / sum(weights)
                y[image, query, head * size : (head + 1) * size] = value
    return plain_linear(y, params["out"])


def plain_gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def plain_block(x, params):
    x = x + plain_attention(layer_norm(x, params["norm1"], 1e-6), params["attention"])
    hidden = plain_gelu(plain_linear(layer_norm(x, params["norm2"], 1e-6), params["mlp1"]))
    return x + plain_linear(hidden, params["mlp2"])


def plain_positions(rows, columns, width):
    """Row by row: sines and cosines of the row, then of the column."""
    positions, quarter = np.zeros((rows, columns, width)), width // 4
    for row, column, wave in np.ndindex(rows, columns, quarter):
        angles = [place * 10_000 ** (-wave / quarter) for place in (row, row, column, column)]
        waves = (math.sin, math.cos, math.sin, math.cos)
        positions[row, column, wave::quarter] = [f(a) for f, a in zip(waves, angles, strict=True)]
    return positions.reshape(-1, width)


def plain_vit(images, params, pooling, positions):
    n, height, width, _ = images.shape
    rows, columns = height // PATCH, width // PATCH
    kernel = params["patch_embed"]["kernel"].reshape(PATCH, PATCH, -1, WIDTH)
    x = np.zeros((n, rows * columns, WIDTH))
    for row in range(rows):
        for column in range(columns):
            patch = images[:, row * PATCH :, column * PATCH :][:, :PATCH, :PATCH]
            x[:, row * columns + column] = np.tensordot(patch, kernel, axes=3)
    x = x + params["patch_embed"]["bias"]
    table = plain_positions(rows, columns, WIDTH)
    if pooling == "class_token":
        x = np.concatenate([np.tile(params["class_token"], (n, 1, 1)), x], axis=1)
        table = np.concatenate([np.zeros((1, WIDTH)), table])
    x = x + (params["positions"] if positions == "learned" else table)
    for index in range(DEPTH):
        x = plain_block(x, params[f"block{index}"])
    x = layer_norm(x, params["norm"], 1e-6)
    return x[:, 0] if pooling == "class_token" else x.sum(1) / x.shape[1]


@pytest.mark.parametrize(
    ("pooling", "positions", "height_width"),
    [
        ("class_token", "fixed", (12, 8)),
        ("mean", "learned", (8, 8)),
    ],
)
def test_values_equal_plain_loops(pooling, positions, height_width):
    model = small(pooling=pooling, positions=positions)
    images = draw((3, *height_width, 2))
    params = drawn_params(model, images.shape)
    exact = jax.tree.map(np.float64, params)
    expected = plain_vit(images.astype(np.float64), exact, pooling, positions)
    assert expected.std() > 0.1
    np.testing.assert_allclose(embed(model, params, images), expected, atol=2e-5, rtol=1e-4)


# --- Other sizes of images -----------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "num_extra"), [((2, 7), 1), ((9, 4), 0)])
def test_learned_positions_are_resized_to_the_grid_at_hand(grid, num_extra):
    # Pillow's bicubic filter, widened if it shrinks, resizes one channel at a time.
    side = 5
    table = draw((1, num_extra + side**2, WIDTH))
    resized = [
        np.asarray(
            Image.fromarray(table[0, num_extra:, channel].reshape(side, side)).resize(
                grid[::-1], Image.Resampling.BICUBIC
            )
        ).reshape(-1)
        for channel in range(WIDTH)
    ]
    expected = np.concatenate([table[0, :num_extra], np.stack(resized, 1)])
    found = jax.jit(resize_positions, static_argnums=(1, 2))(table, grid, num_extra)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_local_crops_pass_a_network_of_large_views():
    model = small(positions="learned")
    params = drawn_params(model, (1, 20, 20, 3))
    h = embed(model, params, draw((2, 8, 8, 3)))
    assert h.shape == (2, WIDTH) and np.isfinite(h).all()


def test_images_that_cannot_be_cut_into_patches_are_refused():
    with pytest.raises(ValueError, match="8 x 10 pixels .* patches of 4.*model.patch_size"):
        drawn_params(small(), (1, 8, 10, 3))
    with pytest.raises(ValueError, match="2 x 3 patches: initialise with square images"):
        drawn_params(small(positions="learned"), (1, 8, 12, 3))


# --- Stochastic depth ----------------------------------------------------------------------------


@pytest.mark.parametrize("silent", ["attention", "mlp"])
def test_samples_skip_a_branch_at_the_rate_and_the_rest_keep_the_expectation(silent):
    rate = 0.3
    block, x = Block(NUM_HEADS, drop_path=rate), np.tile(draw((1, 5, WIDTH)), (4000, 1, 1))
    params = drawn_params(block, (1, 5, WIDTH))
    last = params["attention"]["out"] if silent == "attention" else params["mlp2"]
    last.update(kernel=np.zeros_like(last["kernel"]), bias=np.zeros_like(last["bias"]))
    branch = np.asarray(embed(block, params, x[:1]) - x[:1])
    rngs = {"drop_path": jax.random.key(5)}
    y = jax.jit(lambda x: block.apply({"params": params}, x, train=True, rngs=rngs))(x)
    moved = np.asarray(y) - x
    is_skipped = (moved == 0).all((1, 2))
    assert is_skipped.mean() == pytest.approx(rate, abs=0.03)  # 4 standard errors
    expected = np.tile(branch / (1 - rate), ((~is_skipped).sum(), 1, 1))
    np.testing.assert_allclose(moved[~is_skipped], expected, atol=1e-5)
    np.testing.assert_allclose(moved.mean(0), branch[0], atol=0.04 * np.abs(branch).max())


def test_the_rate_rises_from_zero_at_the_first_block_to_its_value_at_the_last():
    model = ViT(WIDTH, NUM_HEADS, 3, patch_size=PATCH, drop_path=0.6)
    images = np.tile(draw((1, 4, 4, 1)), (2000, 1, 1, 1))
    params = drawn_params(model, images.shape)

    apply = jax.jit(partial(model.apply, train=True, capture_intermediates=True))
    _, state = apply({"params": params}, images, rngs={"drop_path": jax.random.key(3)})
    blocks = [state["intermediates"][f"block{k}"]["__call__"][0] for k in range(3)]
    first, second, third = map(np.asarray, blocks)
    assert np.ptp(first, axis=0).max() < 1e-5  # nobody skips: equal samples stay equal
    skipped_both = [(a == b).all((1, 2)).mean() for a, b in ((first, second), (second, third))]
    np.testing.assert_allclose(skipped_both, [0.3**2, 0.6**2], atol=0.045)


def test_nothing_is_skipped_in_evaluation_mode_or_at_rate_zero():
    images, params = draw((4, 8, 8, 1)), drawn_params(small(), (4, 8, 8, 1))
    h = embed(small(drop_path=0.5), params, images)
    np.testing.assert_array_equal(h, embed(small(), params, images))
    train = jax.jit(lambda x: small().apply({"params": params}, x, train=True))
    np.testing.assert_allclose(train(images), h, rtol=1e-6, atol=1e-6)


# --- Start, types, frozen patches ----------------------------------------------------------------


def test_weights_start_as_in_moco_v3():
    model = ViT(96, 3, 1, patch_size=8, positions="learned")
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)), train=True))()
    params = jax.tree.map(np.asarray, params["params"])
    block = params["block0"]
    for kernel, fan_in, fan_out in (
        (params["patch_embed"]["kernel"], 3 * 8 * 8, 96),
        (block["attention"]["qkv"]["kernel"], 96, 96),  # three matrices side by side
        (block["attention"]["out"]["kernel"], 96, 96),
        (block["mlp1"]["kernel"], 96, 384),
        (block["mlp2"]["kernel"], 384, 96),
    ):
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert 0.995 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert np.abs(params["class_token"]).max() < 1e-5
    assert params["positions"].std() == pytest.approx(0.02, rel=0.15)
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias"]
    assert len(biases) == 8 and not any(bias.any() for bias in biases)


def test_bfloat16_activations_give_float32_embeddings_near_the_float32_ones():
    images, params = draw((4, 8, 8, 1)), drawn_params(small(), (4, 8, 8, 1))
    exact = embed(small(), params, images)
    half = embed(small(dtype=jnp.bfloat16), params, images)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("freeze_patches", [True, False])
def test_frozen_patches_get_no_gradient_and_all_the_rest_does(freeze_patches):
    model = small(freeze_patches=freeze_patches, positions="learned")
    images, params = draw((4, 8, 8, 1)), drawn_params(model, (4, 8, 8, 1))
    weights = draw((4, WIDTH), seed=2)

    def loss(params):
        return jnp.sum(weights * model.apply({"params": params}, images, train=True))

    gradient = jax.jit(jax.grad(loss))(params)
    is_moved = {name: any(x.any() for x in jax.tree.leaves(g)) for name, g in gradient.items()}
    assert is_moved.pop("patch_embed") != freeze_patches
    assert all(is_moved.values())
    if freeze_patches:  # not one element of it
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient["patch_embed"]))
