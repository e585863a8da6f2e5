"""Residual networks of 10 to 152 layers, with PyTorch's padding and initialisation."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsg_jax.models.conv import Conv
from gsg_jax.models.norm import BatchNorm, Norm


class Relu(nn.Module):
    """The positive part; a module, so that gsg_jax.models.cpu can replace it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x of any shape to max(x, 0)."""
        return nn.relu(x)


class _Block(nn.Module):
    width: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    last_scale: nn.initializers.Initializer


class BasicBlock(_Block):
    """Two 3x3 convolutions and a shortcut (ResNet-10, 18 and 34)."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, width]."""
        y = self.conv(self.width, 3, self.stride, padding=1, name="conv1")(x)
        y = Relu()(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, padding=1, name="conv2")(y)
        y = self.norm(scale_init=self.last_scale, name="bn2")(y, train=train)
        return Relu()(y + _shortcut(self, x, y.shape, train))


class Bottleneck(_Block):
    """1x1, 3x3 (which carries the stride, as in torchvision) and 1x1 convolutions."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, 4 x width]."""
        y = self.conv(self.width, 1, name="conv1")(x)
        y = Relu()(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, self.stride, padding=1, name="conv2")(y)
        y = Relu()(self.norm(name="bn2")(y, train=train))
        y = self.conv(self.width * self.expansion, 1, name="conv3")(y)
        y = self.norm(scale_init=self.last_scale, name="bn3")(y, train=train)
        return Relu()(y + _shortcut(self, x, y.shape, train))


def _shortcut(block: _Block, x: jax.Array, shape: tuple, train: bool) -> jax.Array:
    """The identity, or a strided 1x1 projection where the block changes the shape."""
    if x.shape == shape:
        return x
    x = block.conv(shape[-1], 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train=train)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
      block: BasicBlock or Bottleneck.
      stage_sizes: blocks of each stage; every stage after the first halves the map and doubles the
        width.
      width: channels of the first stage (64 in the paper).
      stem: "imagenet" (7x7 with stride 2, then 3x3 max pooling with stride 2) or "small" (one 3x3).
      stem_stride: stride of the "small" stem's convolution, 1 or more.
      zero_init_residual: whether the last norm's scale of each residual branch starts at zero.
      norm: makes a BatchNorm, which carries the number of views, or a GroupNorm, whose groups
        divide the width.
      weight_standardization: whether every kernel is standardised before it convolves.
      recompute: whether each block keeps only its input, and the backward pass recomputes its
        activations: a third more work, less memory.
      dtype: of the activations; parameters and statistics are float32.

    Source: He et al., CVPR 2016 (arXiv 1512.03385); zero-initialised last BatchNorm scale of each
    residual branch: Goyal et al. (arXiv 1706.02677), section 5.1; GroupNorm with standardised
    weights: Qiao et al. (arXiv 1903.10520); recompute: Chen et al. (arXiv 1604.06174).
    """

    block: type[_Block]
    stage_sizes: tuple[int, ...]
    width: int = 64
    stem: str = "imagenet"
    stem_stride: int = 1
    zero_init_residual: bool = True
    norm: Norm = BatchNorm
    weight_standardization: bool = False
    recompute: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to embeddings [N, F], float32 or wider."""
        conv = partial(Conv, weight_standardization=self.weight_standardization, dtype=self.dtype)
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones

        if self.stem == "imagenet":
            x = conv(self.width, 7, 2, padding=3, name="conv1")(x)
        else:
            x = conv(self.width, 3, self.stem_stride, padding=1, name="conv1")(x)
        x = Relu()(self.norm(name="bn1")(x, train=train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

        def run(block, x):
            return block(x, train=train)

        run = nn.remat(run) if self.recompute else run
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                block = self.block(
                    self.width * 2**stage, stride, conv, self.norm, last_scale, name=name
                )
                x = run(block, x)

        return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))


RESNETS = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
STEMS = ("imagenet", "small")
