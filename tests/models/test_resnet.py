"""ResNets: sizes as in torchvision, values against loops over pixels with PyTorch's padding."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.models.conv import standardize
from gsg_jax.models.norm import BatchNorm, GroupNorm
from gsg_jax.models.resnet import RESNETS, BasicBlock, Bottleneck, ResNet
from tests.models.plain import NUM_VIEWS, batch_norm, drawn, group_norm

# torchvision's models without fc.
PARAMETERS = {
    "resnet10": 4_905_792,  # resnet18 without the second block of each stage
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
    y = np.empty((len(x), rows, columns, x.shape[-1]))
    for i, j in np.ndindex(rows, columns):
        y[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return y


def plain_standardize(kernel):
    return (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)


def relu(x):
    return np.maximum(x, 0)


def plain_block(x, params, stride, norm):
    """torchvision's BasicBlock or Bottleneck: the stride is in the first 3x3 convolution."""
    num_convs, y, strided = len([name for name in params if name.startswith("conv")]), x, False
    for i in range(1, num_convs + 1):
        kernel = params[f"conv{i}"]["kernel"]
        k = kernel.shape[0]
        step = stride if k == 3 and not strided else 1
        strided = strided or k == 3
        y = norm(plain_conv(y, kernel, step, k // 2), params[f"bn{i}"])
        y = relu(y) if i < num_convs else y
    if "downsample_conv" in params:
        x = plain_conv(x, params["downsample_conv"]["kernel"], stride, 0)
        x = norm(x, params["downsample_bn"])
    return relu(y + x)


def plain_resnet(x, params, model, norm):
    kernel = params["conv1"]["kernel"]
    stride = 2 if model.stem == "imagenet" else model.stem_stride
    x = relu(norm(plain_conv(x, kernel, stride, kernel.shape[0] // 2), params["bn1"]))
    if model.stem == "imagenet":
        x = plain_max_pool(x)
    for stage, num_blocks in enumerate(model.stage_sizes):
        for index in range(num_blocks):
            stride = 2 if stage and not index else 1
            x = plain_block(x, params[f"layer{stage + 1}_{index}"], stride, norm)
    return x.mean((1, 2))


BATCH = partial(BatchNorm, num_views=NUM_VIEWS)
GROUP = partial(GroupNorm, num_groups=2)


# Heights and widths odd and even at every stride-2 layer: TensorFlow's SAME pads an even map by
# (0, 1) where PyTorch pads by (1, 1).
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ResNet(BasicBlock, (1, 1), width=3, stem="imagenet", norm=BATCH), (24, 17, 3)),
        (ResNet(BasicBlock, (2, 1), 3, stem="small", stem_stride=2, norm=BATCH), (16, 9, 1)),
        (ResNet(Bottleneck, (1, 1), width=3, stem="small", norm=BATCH), (8, 5, 3)),
        (
            ResNet(BasicBlock, (1, 1), 4, stem="small", norm=GROUP, weight_standardization=True),
            (7, 6, 3),
        ),
        (ResNet(Bottleneck, (1, 1), width=4, stem="small", norm=GROUP), (7, 6, 3)),
    ],
    ids=["imagenet", "small-stride2", "bottleneck", "group-standardised", "group-bottleneck"],
)
def test_values_equal_loops_over_pixels(model, shape):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, *shape)).astype(np.float32)
    init = abstract_init(model, images.shape)
    params = drawn(init["params"], rng)
    is_batch = model.norm is BATCH
    assert ("batch_stats" in init) == is_batch
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), init.get("batch_stats", {}))

    @jax.jit
    def forward(images):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    exact = jax.tree.map(np.float64, params)
    if model.weight_standardization:
        exact = jax.tree.map(lambda w: plain_standardize(w) if w.ndim == 4 else w, exact)
    norm, error = (batch_norm, 1e-4) if is_batch else (group_norm, 2e-4)
    expected = plain_resnet(images.astype(np.float64), exact, model, norm)
    np.testing.assert_allclose(forward(images), expected, atol=error, rtol=error)


def test_weights_are_standardised_over_the_inputs_of_every_output_channel():
    # As large as weights are, so that the variance's 1e-5 counts.
    kernel = (0.03 * np.random.default_rng(0).normal(size=(3, 3, 4, 5)) + 0.02).astype(np.float32)
    exact = plain_standardize(kernel.astype(np.float64))
    np.testing.assert_allclose(standardize(kernel), exact, atol=1e-5)
    half = jnp.asarray(kernel, jnp.bfloat16)
    assert standardize(half).dtype == jnp.bfloat16
    exact = plain_standardize(np.asarray(half, np.float64))
    found = np.asarray(standardize(half), np.float64)
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-6)


# --- Start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "zero_init_residual"), [(BasicBlock, True), (Bottleneck, True), (BasicBlock, False)]
)
def test_zero_init_makes_every_block_its_shortcut_at_the_start(block, zero_init_residual):
    model = ResNet(block, (2, 1), width=4, stem="small", zero_init_residual=zero_init_residual)
    images = np.random.default_rng(1).normal(size=(3, 6, 6, 3)).astype(np.float32)
    init = partial(model.init, jax.random.key(0), images, train=True)
    # All but the kernels, which NumPy draws: compiling their RNG is slow.
    vectors = jax.jit(lambda: jax.tree.map(lambda x: x if x.ndim == 1 else 0, init()))()
    kernels = drawn(jax.eval_shape(init), np.random.default_rng(0))
    variables = jax.tree.map(lambda x, kernel: x if x.ndim else kernel, vectors, kernels)

    apply = partial(model.apply, train=True, capture_intermediates=True, mutable=True)
    layers = jax.jit(apply)(variables, images)[1]["intermediates"]
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
