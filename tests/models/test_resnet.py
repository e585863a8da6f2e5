"""ResNets: sizes as in torchvision, values against loops over pixels with PyTorch's padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.norm import BatchNorm, GroupNorm
from gsg_jax.models.resnet import RESNETS, BasicBlock, Bottleneck, ResNet

# torchvision's models without fc.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


def abstract_init(model, shape=(2, 32, 32, 3)):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_torchvisions(name):
    params = abstract_init(ResNet(*RESNETS[name]))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


def test_resnet10_is_resnet18_without_the_second_block_of_each_stage():
    params = abstract_init(ResNet(*RESNETS["resnet10"]))["params"]
    second_blocks = sum(2 * (9 * width**2 + 2 * width) for width in (64, 128, 256, 512))
    expected = PARAMETERS["resnet18"] - second_blocks
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected


def feature_maps(model, shape):
    """Shapes of every layer's output, by name, without computing anything."""

    def apply(x):
        variables = model.init(jax.random.key(0), x, train=True)
        return model.apply(variables, x, train=False, capture_intermediates=True)

    h, state = jax.eval_shape(apply, jax.ShapeDtypeStruct(shape, jnp.float32))
    outputs = {k: v["__call__"][0].shape for k, v in state["intermediates"].items() if k[0] in "cl"}
    return h.shape, outputs


def halved(size, kernel):
    """PyTorch's formula with stride 2 and padding kernel // 2."""
    return (size + 2 * (kernel // 2) - kernel) // 2 + 1


@pytest.mark.parametrize("height_width", [(33, 60), (1, 2)])
@pytest.mark.parametrize("stem", ["imagenet", "small", "small stride 2"])
def test_maps_of_odd_sizes_follow_pytorchs_formula(stem, height_width):
    stem, stride = stem.split()[0], 2 if stem.endswith("2") else 1
    model = ResNet(BasicBlock, (1, 1, 1), width=4, stem=stem, stem_stride=stride)
    h, maps = feature_maps(model, (2, *height_width, 3))

    size = height_width
    if stem == "imagenet":
        size = tuple(halved(s, 7) for s in size)
    elif stride == 2:
        size = tuple(halved(s, 3) for s in size)
    assert maps["conv1"] == (2, *size, 4)
    if stem == "imagenet":
        size = tuple(halved(s, 3) for s in size)
    for stage in range(3):
        if stage:
            size = tuple(halved(s, 3) for s in size)
        assert maps[f"layer{stage + 1}_0"] == (2, *size, 4 * 2**stage)
    assert h == (2, 16)


# --- Values --------------------------------------------------------------------------------------


def plain_conv(x, kernel, stride, padding):
    """A loop over the pixels of the output, zeros around the input, torch.nn.Conv2d's way."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    k = kernel.shape[0]
    rows, columns = ((s - k) // stride + 1 for s in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = np.tensordot(patch, kernel, axes=3)
    return y


def plain_max_pool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((s - 3) // 2 + 1 for s in x.shape[1:3])
    return np.stack(
        [
            np.stack(
                [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(columns)], 1
            )
            for i in range(rows)
        ],
        1,
    )


def plain_norm(x, params, num_views):
    y = np.empty_like(x)
    for view in range(num_views):
        rows = x[view::num_views]
        y[view::num_views] = (rows - rows.mean((0, 1, 2))) / np.sqrt(rows.var((0, 1, 2)) + 1e-5)
    return y * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def plain_block(x, params, stride, num_views):
    """torchvision's BasicBlock or Bottleneck: the stride is in the first 3x3 convolution."""
    num_convs, y, strided = len([name for name in params if name.startswith("conv")]), x, False
    for i in range(1, num_convs + 1):
        kernel = params[f"conv{i}"]["kernel"]
        k = kernel.shape[0]
        step = stride if k == 3 and not strided else 1
        strided = strided or k == 3
        y = plain_norm(plain_conv(y, kernel, step, k // 2), params[f"bn{i}"], num_views)
        y = relu(y) if i < num_convs else y
    if "downsample_conv" in params:
        x = plain_conv(x, params["downsample_conv"]["kernel"], stride, 0)
        x = plain_norm(x, params["downsample_bn"], num_views)
    return relu(y + x)


def plain_resnet(x, params, stem, stem_stride, stage_sizes, num_views):
    kernel = params["conv1"]["kernel"]
    x = plain_conv(x, kernel, 2 if stem == "imagenet" else stem_stride, kernel.shape[0] // 2)
    x = relu(plain_norm(x, params["bn1"], num_views))
    if stem == "imagenet":
        x = plain_max_pool(x)
    for stage, num_blocks in enumerate(stage_sizes):
        for index in range(num_blocks):
            stride = 2 if stage and not index else 1
            x = plain_block(x, params[f"layer{stage + 1}_{index}"], stride, num_views)
    return x.mean((1, 2))


# Heights and widths odd and even at every stride-2 layer: TensorFlow's SAME pads an even map by
# (0, 1) where PyTorch pads by (1, 1).
@pytest.mark.parametrize(
    ("block", "stem", "stem_stride", "stage_sizes", "shape"),
    [
        (BasicBlock, "imagenet", 1, (1, 1), (24, 17, 3)),
        (BasicBlock, "small", 2, (2, 1), (16, 9, 1)),
        (Bottleneck, "small", 1, (1, 1), (8, 5, 3)),
    ],
    ids=["basic-imagenet", "basic-small-stride2", "bottleneck-small"],
)
def test_values_equal_loops_over_pixels(block, stem, stem_stride, stage_sizes, shape):
    num_views = 2
    model = ResNet(
        block,
        stage_sizes,
        width=3,
        stem=stem,
        stem_stride=stem_stride,
        norm=lambda **options: BatchNorm(num_views=num_views, **options),
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, *shape)).astype(np.float32)
    init = abstract_init(model, images.shape)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, init["params"])
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), init["batch_stats"])

    @jax.jit
    def forward(images):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    exact = jax.tree.map(np.float64, params)
    expected = plain_resnet(
        images.astype(np.float64), exact, stem, stem_stride, stage_sizes, num_views
    )
    np.testing.assert_allclose(forward(images), expected, atol=1e-4, rtol=1e-4)


def plain_group_norm(x, params):
    """Two groups of adjacent channels, by reshaping."""
    groups = x.reshape(*x.shape[:3], 2, -1)
    axes = (1, 2, 4)
    centred = groups - groups.mean(axes, keepdims=True)
    y = centred / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
    return y.reshape(x.shape) * params["scale"] + params["bias"]


def plain_standardize(kernel):
    return (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)


@pytest.mark.parametrize(
    ("block", "last", "weight_standardization"), [(BasicBlock, 2, True), (Bottleneck, 3, False)]
)
def test_group_norm_and_standardised_weights_equal_plain_numpy(
    block, last, weight_standardization, monkeypatch
):
    model = ResNet(
        block,
        (1, 1),
        width=4,
        stem="small",
        norm=lambda **options: GroupNorm(num_groups=2, **options),
        weight_standardization=weight_standardization,
    )
    images = np.random.default_rng(1).normal(size=(3, 7, 6, 3)).astype(np.float32)
    init = abstract_init(model, images.shape)
    assert set(init) == {"params"}  # no running statistics
    assert f"bn{last}" in init["params"]["layer2_0"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), init["params"]
    )
    forward = jax.jit(lambda p, x: model.apply({"params": p}, x, train=True))

    exact = jax.tree.map(np.float64, params)
    if weight_standardization:
        exact = jax.tree.map(lambda w: plain_standardize(w) if w.ndim == 4 else w, exact)
    monkeypatch.setattr(f"{__name__}.plain_norm", lambda x, params, _: plain_group_norm(x, params))
    expected = plain_resnet(images.astype(np.float64), exact, "small", 1, (1, 1), 1)
    np.testing.assert_allclose(forward(params, images), expected, atol=2e-4, rtol=2e-4)


# --- Start ---------------------------------------------------------------------------------------


def with_drawn_kernels(model, images):
    """Initial variables, but for the kernels, which NumPy draws: compiling their RNG is slow."""
    init = lambda: model.init(jax.random.key(0), images, train=True)  # noqa: E731
    abstract = jax.eval_shape(init)
    paths = [path for path, leaf in jax.tree_util.tree_leaves_with_path(abstract) if leaf.ndim == 1]
    vectors = jax.jit(
        lambda: [x for x in jax.tree.leaves(init()) if x.ndim == 1]  # the rest is dead code
    )()
    vectors = dict(zip(map(jax.tree_util.keystr, paths), vectors, strict=True))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        drawn = rng.normal(size=leaf.shape).astype(np.float32)
        return vectors.get(jax.tree_util.keystr(path), drawn)

    return jax.tree_util.tree_map_with_path(fill, abstract)


@pytest.mark.parametrize(
    ("block", "zero_init_residual"), [(BasicBlock, True), (Bottleneck, True), (BasicBlock, False)]
)
def test_zero_init_makes_every_block_its_shortcut_at_the_start(block, zero_init_residual):
    model = ResNet(block, (2, 1), width=4, stem="small", zero_init_residual=zero_init_residual)
    images = np.random.default_rng(1).normal(size=(3, 6, 6, 3)).astype(np.float32)
    variables = with_drawn_kernels(model, images)

    @jax.jit
    def outputs(variables, images):
        _, state = model.apply(
            variables, images, train=True, capture_intermediates=True, mutable=True
        )
        return state["intermediates"]

    layers = outputs(variables, images)
    first, second, third = (
        layers[name]["__call__"][0] for name in ("layer1_0", "layer1_1", "layer2_0")
    )
    shortcut = jax.nn.relu(layers["layer2_0"]["downsample_bn"]["__call__"][0])
    assert np.array_equal(second, first) == zero_init_residual
    assert np.array_equal(third, shortcut) == zero_init_residual
    assert float(np.std(first)) > 0.1 and float(np.std(third)) > 0.1


def test_convolutions_start_as_he_normal_over_the_outputs():
    model = ResNet(BasicBlock, (1,), width=32, stem="imagenet")

    @jax.jit
    def kernels():
        params = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=True)["params"]
        return params["conv1"]["kernel"], params["layer1_0"]["conv2"]["kernel"]

    for kernel in map(np.asarray, kernels()):
        expected = math.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * 32))
        assert kernel.std() == pytest.approx(expected, rel=0.04)
        assert np.abs(kernel).max() > 2.8 * expected  # not truncated at two deviations


def test_bfloat16_activations_give_float32_embeddings_and_statistics():
    def norm(**options):
        return BatchNorm(dtype=jnp.bfloat16, **options)

    model = ResNet(BasicBlock, (1, 1), width=4, norm=norm, dtype=jnp.bfloat16)
    init = lambda x: model.init_with_output(jax.random.key(0), x, train=True)  # noqa: E731
    h, variables = jax.eval_shape(init, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert h.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
