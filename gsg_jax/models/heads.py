"""The projector and the predictor: small perceptrons behind the backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsg_jax.methods.similarity import normalize
from gsg_jax.models.norm import BatchNorm, Norm

# PyTorch's default for a linear layer: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

PROJECTOR_ENDS = ("batch_norm", "none")


class Projector(nn.Module):
    """Linear layers, each followed by a norm, with ReLU between them.

    The last norm has no scale and bias, or is left out. No linear layer has a bias, as in SimSiam,
    where the BatchNorm behind it would cancel it.

    Attributes:
      num_layers: linear layers, at least 1 (3 in the papers).
      hidden_width: width of every layer but the last.
      width: of the projection, D.
      num_prototypes: K. 0 returns the projection; otherwise it is scaled to unit length and
        multiplied by K unit vectors.
      norm: makes a BatchNorm, which carries the number of views, or a LayerNorm.
      end: what follows the last layer, one of PROJECTOR_ENDS: "batch_norm" is a norm, of the same
        kind as the others; "none" is no norm, for losses that set means and variances themselves.
      dtype: of the activations.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), section 3; prototypes: Caron et al., ICCV 2021
    (arXiv 2104.14294), appendix C.
    """

    num_layers: int
    hidden_width: int
    width: int
    num_prototypes: int = 0
    norm: Norm = BatchNorm
    end: str = "batch_norm"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Maps embeddings [N, F] to projections [N, D] or scores [N, K], float32 or wider."""
        x = h
        for layer in range(1, self.num_layers + 1):
            is_last = layer == self.num_layers
            width = self.width if is_last else self.hidden_width
            x = _linear(width, self.dtype, f"linear{layer}")(x)
            if not is_last or self.end != "none":
                x = self.norm(use_scale=not is_last, name=f"bn{layer}")(x, train=train)
            x = x if is_last else nn.relu(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not self.num_prototypes:
            return x
        shape = (self.width, self.num_prototypes)
        prototypes = self.param("prototypes", nn.initializers.normal(0.02), shape)
        unit_columns = normalize(prototypes.T).T
        return jnp.matmul(normalize(x), unit_columns, precision=jax.lax.Precision.HIGHEST)


class Predictor(nn.Module):
    """A bottleneck: linear, norm, ReLU, linear with bias.

    Attributes:
      hidden_width: width of the bottleneck (512 of 2048 in the papers).
      norm: makes a BatchNorm, which carries the number of views, or a LayerNorm.
      dtype: of the activations.

    Source: Chen & He, CVPR 2021 (arXiv 2011.10566), section 3.
    """

    hidden_width: int
    norm: Norm = BatchNorm
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Maps projections [N, D] to predictions [N, D], float32 or wider."""
        x = _linear(self.hidden_width, self.dtype, "linear1")(z)
        x = nn.relu(self.norm(name="bn1")(x, train=train))
        # With a bias of zero, an image without an active hidden unit would have the zero vector as
        # its prediction, and the cosine's gradient there is divided by the norm's floor.
        bound = self.hidden_width**-0.5
        bias_init = nn.initializers.uniform(2 * bound)
        x = _linear(
            z.shape[-1],
            self.dtype,
            "linear2",
            use_bias=True,
            bias_init=lambda key, shape, dtype: bias_init(key, shape, dtype) - bound,
        )(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _linear(width: int, dtype: jnp.dtype, name: str, **bias) -> nn.Dense:
    bias = bias or {"use_bias": False}
    return nn.Dense(width, dtype=dtype, kernel_init=torch_uniform, name=name, **bias)
