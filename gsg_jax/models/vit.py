"""Vision transformers of four sizes, by timm's conventions, without their classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

MLP_RATIO = 4
NORM_EPSILON = 1e-6
WAVELENGTH = 10_000  # the fixed positions' wavelengths are below 2 pi times this, in patches

xavier_uniform = nn.initializers.xavier_uniform()


class ViT(nn.Module):
    """A vision transformer without its classifier.

    Patches are projected to tokens, positions are added, and pre-norm blocks of attention and a
    perceptron follow. Images may have any size that is a multiple of the patch size.

    Attributes:
      width: of a token, D; a multiple of 4, and of num_heads.
      num_heads: attention heads per block.
      depth: blocks.
      patch_size: side of a patch, pixels.
      pooling: what embeds an image: "class_token", an extra token, or "mean", the mean of the
        patches' tokens without an extra one.
      positions: "fixed", sines and cosines of row and column, or "learned", a table for the square
        grid of the first images, which is resized for other grids.
      freeze_patches: whether the gradient stops at the projected patches. The optimizer must leave
        their projection out too: see gsg_jax.models.siamese.frozen_params.
      drop_path: share of the samples that skip a branch of the last block in training mode, in
        [0, 1); rises linearly from 0 at the first block. Reads the "drop_path" stream of keys.
      recompute: whether each block keeps only its input, and the backward pass recomputes its
        activations: a third more work, less memory.
      dtype: of the activations; parameters, norms' statistics and softmax are float32 or wider.

    Source: Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929). Frozen patches, fixed positions and
    initial weights: Chen, Xie & He, ICCV 2021 (arXiv 2104.02057). Stochastic depth: Huang et al.,
    ECCV 2016 (arXiv 1603.09382). Mean pooling without a class token: Beyer et al. (arXiv
    2205.01580). Recompute: Chen et al. (arXiv 1604.06174).
    """

    width: int
    num_heads: int
    depth: int
    patch_size: int = 16
    pooling: str = "class_token"
    positions: str = "fixed"
    freeze_patches: bool = False
    drop_path: float = 0.0
    recompute: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to embeddings [N, D], float32 or wider.

        Raises:
          ValueError: at trace time, if the patch size does not divide H and W, or learned
            positions are initialised with images that are not square.
        """
        patches, grid = split_patches(images, self.patch_size)  # [N, T, P P C], (rows, columns)
        x = _linear(self.width, self.dtype, "patch_embed")(patches)  # [N, T, D]
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)

        has_class_token = self.pooling == "class_token"
        if has_class_token:
            token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width))
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
            x = jnp.concatenate([token.astype(self.dtype), x], axis=1)  # [N, 1 + T, D]
        x = x + self._positions(grid, has_class_token).astype(self.dtype)

        def run(block, x):
            return block(x, train=train)

        run = nn.remat(run) if self.recompute else run
        for index in range(self.depth):
            drop_path = self.drop_path * index / max(self.depth - 1, 1)
            block = Block(self.num_heads, drop_path, self.dtype, name=f"block{index}")
            x = run(block, x)
        x = _layer_norm(self.dtype, "norm")(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x[:, 0] if has_class_token else jnp.mean(x, axis=1)

    def _positions(self, grid: tuple[int, int], has_class_token: bool) -> jax.Array:
        """Returns the positions of all tokens, [1, T or 1 + T, D], the class token's first."""
        num_extra = int(has_class_token)
        if self.positions == "fixed":
            fixed = sine_cosine_positions(grid, self.width)
            return jnp.pad(fixed, ((num_extra, 0), (0, 0)))[None]
        if self.has_variable("params", "positions"):
            table = self.get_variable("params", "positions")  # for the grid of initialisation
        else:
            if grid[0] != grid[1]:
                raise ValueError(
                    f"learned positions start as a square grid, but the images have {grid[0]} x "
                    f"{grid[1]} patches: initialise with square images"
                )
            shape = (1, num_extra + grid[0] * grid[1], self.width)
            table = self.param("positions", nn.initializers.truncated_normal(0.02), shape)
        return resize_positions(table, grid, num_extra)


class Block(nn.Module):
    """Attention, then a perceptron, each after a LayerNorm and with a shortcut.

    Attributes:
      num_heads: attention heads; divides the width.
      drop_path: share of the samples that skip a branch in training mode, in [0, 1).
      dtype: of the activations.
    """

    num_heads: int
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps tokens [N, T, D] to tokens [N, T, D]."""
        width = x.shape[-1]
        y = _layer_norm(self.dtype, "norm1")(x)
        y = Attention(self.num_heads, self.dtype, name="attention")(y)
        x = x + self._dropped(y, train)

        y = _layer_norm(self.dtype, "norm2")(x)
        y = nn.gelu(_linear(MLP_RATIO * width, self.dtype, "mlp1")(y), approximate=False)
        y = _linear(width, self.dtype, "mlp2")(y)
        return x + self._dropped(y, train)

    def _dropped(self, branch: jax.Array, train: bool) -> jax.Array:
        """Zeroes the branch of some samples and scales the others to keep the mean."""
        if not train or not self.drop_path or self.is_initializing():
            return branch
        kept = 1 - self.drop_path
        is_kept = jax.random.bernoulli(self.make_rng("drop_path"), kept, (branch.shape[0], 1, 1))
        return jnp.where(is_kept, branch / kept, 0).astype(branch.dtype)


class Attention(nn.Module):
    """Scaled dot-product attention of every token to every token, with several heads.

    Attributes:
      num_heads: heads; divides the width.
      dtype: of the activations; the softmax is float32 or wider.

    Source: Vaswani et al., NeurIPS 2017 (arXiv 1706.03762), section 3.2.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [N, T, D] to tokens [N, T, D]."""
        n, t, width = x.shape
        head_width = width // self.num_heads
        qkv = _linear(3 * width, self.dtype, "qkv", _each_third_xavier)(x)
        qkv = qkv.reshape(n, t, 3, self.num_heads, head_width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [N, T, heads, D / heads] each

        wide = jnp.promote_types(qkv.dtype, jnp.float32)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide)
        weights = nn.softmax(scores * head_width**-0.5, axis=-1).astype(v.dtype)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, width)
        return _linear(width, self.dtype, "out")(y)


def split_patches(images: jax.Array, patch_size: int) -> tuple[jax.Array, tuple[int, int]]:
    """Cuts images into patches, row by row.

    Args:
      images: [N, H, W, C].
      patch_size: P, which divides H and W.

    Returns:
      (patches, grid): patches [N, T, P P C], pixels row by row, channels last; grid is
      (H / P, W / P), and T the product of the two.

    Raises:
      ValueError: if P does not divide H and W.
    """
    n, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be cut into patches of {patch_size}: "
            "resize them to a multiple of model.patch_size"
        )
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(n, rows, patch_size, columns, patch_size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)  # [N, rows, columns, P, P, C]
    return patches.reshape(n, rows * columns, -1), (rows, columns)


def sine_cosine_positions(grid: tuple[int, int], width: int) -> jax.Array:
    """Returns fixed positions: sines and cosines of a patch's row, then of its column.

    Args:
      grid: rows and columns of patches.
      width: D, a multiple of 4.

    Returns:
      float32 [rows x columns, D], row by row, in [-1, 1]: D / 4 sines of the row with rising
      wavelengths, D / 4 cosines, and the same for the column.

    Source: Chen, Xie & He, ICCV 2021 (arXiv 2104.02057), section 5; in one dimension:
    Vaswani et al., NeurIPS 2017 (arXiv 1706.03762), section 3.5.
    """
    num_waves = width // 4
    frequency = 1 / WAVELENGTH ** (jnp.arange(num_waves) / num_waves)

    def waves(place):
        angle = place.reshape(-1, 1) * frequency[None]  # [T, D / 4]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)

    row, column = jnp.meshgrid(jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    return jnp.concatenate([waves(row), waves(column)], axis=1)


def resize_positions(table: jax.Array, grid: tuple[int, int], num_extra: int) -> jax.Array:
    """Resizes learned positions to another grid of patches.

    Args:
      table: [1, num_extra + S x S, D], for a square grid.
      grid: rows and columns of the result.
      num_extra: tokens before the patches', which keep their positions.

    Returns:
      [1, num_extra + rows x columns, D]: the table itself if it has this grid already, otherwise
      resized bicubically, with antialiasing if it shrinks.
    """
    side = round((table.shape[1] - num_extra) ** 0.5)
    if grid == (side, side):
        return table
    width = table.shape[-1]
    square = table[:, num_extra:].reshape(1, side, side, width)
    resized = jax.image.resize(square, (1, *grid, width), "bicubic")
    return jnp.concatenate([table[:, :num_extra], resized.reshape(1, -1, width)], axis=1)


def _each_third_xavier(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Draws the query, key and value weights as three matrices."""
    limit = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def _linear(
    width: int,
    dtype: jnp.dtype,
    name: str,
    kernel_init: nn.initializers.Initializer = xavier_uniform,
) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=kernel_init, name=name)


def _layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, use_fast_variance=False, name=name)


# Width, heads and depth. "vit_micro" is our own, for small images on a CPU.
VITS = {
    "vit_micro": (96, 3, 4),
    "vit_tiny": (192, 3, 12),
    "vit_small": (384, 6, 12),
    "vit_base": (768, 12, 12),
}
POOLINGS = ("class_token", "mean")
POSITIONS = ("fixed", "learned")


def num_heads(model: ml_collections.ConfigDict) -> int:
    """Returns the attention heads of the ViT of `config.model`."""
    return model.num_heads or VITS[model.backbone][1]
