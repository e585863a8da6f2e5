"""The contract of a method: one pure loss of the branch outputs, and the choices around it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

TARGETS = ("online", "ema")
PREDICTORS = ("mlp", "none")


class Outputs(NamedTuple):
    """What the two branches made of a batch, views first.

    Attributes:
      h: embeddings of the online backbone, [V, B, F].
      z: projections of the online branch, [V, B, D].
      p: predictions of the online branch, [V, B, D]; the projections where there is no predictor.
      z_target: projections of the target branch, [V, B, D]; `z` itself where the target is online.
    """

    h: jax.Array
    z: jax.Array
    p: jax.Array
    z_target: jax.Array


Memory = Any
Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Memory, Metrics]]


def no_memory(key: jax.Array, *, width: int, **options) -> Memory:
    """Returns the memory of a method that carries none from step to step."""
    del key, width, options
    return {}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of METHODS.

    Attributes:
      loss: pure function (outputs, memory, key, **options) -> (loss, memory, metrics).
      target: "online" (weight-sharing) or "ema"; what `method.target="auto"` means.
      predictor: "mlp" or "none"; what `method.predictor="auto"` means.
      options: names of the `config.method` keys that the loss takes as keyword arguments.
      check: raises ValueError where the options and the number of views do not fit together.
      init_memory: (key, width=D, **options) -> the method's state before the first step.
      stop_gradient: whether the method is itself only with the gradient out of an online target.
    """

    loss: LossFn
    target: str
    predictor: str
    options: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    init_memory: Callable[..., Memory] = no_memory
    stop_gradient: bool = True
