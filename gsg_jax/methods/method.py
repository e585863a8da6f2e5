"""The contract of a method: one pure loss of the branch outputs, and the choices around it."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

TARGETS = ("online", "ema", "ema_positive")
PREDICTORS = ("mlp", "none")
SOURCES = ("all", "selected")
# What a loss may support besides whole views against one target branch.
EXTRAS = ("local_views", "cutmix", "ema_positive", "guided")


class Key(NamedTuple):
    """One key of a config.

    Attributes:
      default: its value unless a recipe or a config says otherwise, of the key's type; the type
        itself if every config that has the key gives a value.
      meaning: what it is, in one line.
      limits: the smallest and the largest value of a number, or of each number of a tuple; the
        choices of a text, or the table that names them; () if whoever reads the value checks it.
      length: how many numbers a tuple has; 0: one or more.
      is_ordered: whether the first number of a tuple must not exceed the second.
      may_change: when the value may differ from the resumed run's record, one of the words in
        gsg_jax.config.keys; "" means its group's word there, and never for a method's option.
    """

    default: Any
    meaning: str
    limits: Collection = ()
    length: int = 0
    is_ordered: bool = False
    may_change: str = ""

    @property
    def kind(self) -> type:
        """The type of its values."""
        return self.default if isinstance(self.default, type) else type(self.default)

    @property
    def has_default(self) -> bool:
        """Whether a config may leave it out."""
        return not isinstance(self.default, type)


class CutMix(NamedTuple):
    """The patches that CutMix put into the online branch's views.

    Attributes:
      partner: the image whose patch an image carries, an index into the batch, [B].
      share: of the view that the patch covers, a scalar in [0, 1].
    """

    partner: jax.Array
    share: jax.Array


class Outputs(NamedTuple):
    """What the two branches compute for a batch, views first; G global views and L local ones.

    Attributes:
      h: embeddings of the online backbone, [V, B, F], V = G + L, global views first.
      z: projections of the online branch, [V, B, D].
      p: predictions of the online branch, [V, B, D]; the projections if there is no predictor.
      z_target: projections of the target branch, [G, B, D], of the views before any mixing; `z`
        itself if the target is online and nothing is mixed.
      z_negative: what negatives are made of, [G, B, D], if not `z_target`: online projections, if
        the target is "ema_positive".
      mix: the patches of CutMix, or None.
      sources: the global views that the online branch has seen, [S, B], if they were selected: h, z
        and p then have these S views instead of all G.
      picks: how often each global view is a guided source, [G, B], or None.
    """

    h: jax.Array
    z: jax.Array
    p: jax.Array
    z_target: jax.Array
    z_negative: jax.Array | None = None
    mix: CutMix | None = None
    sources: jax.Array | None = None
    picks: jax.Array | None = None

    @property
    def negatives(self) -> jax.Array:
        """Projections that negatives are made of, [G, B, D]."""
        return self.z_target if self.z_negative is None else self.z_negative


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
      loss: pure function (outputs, memory, key, **options) -> (loss, memory, metrics). Its metrics
        have `attraction` besides what is logged: the part of the loss that pulls a view toward its
        positive, a scalar whose gradient is the positive gradient; the rest is the negative one.
        It raises AssertionError or ValueError at trace time if shapes or the number of views do not
        fit.
      target: "online" (weight-sharing), "ema", or "ema_positive" (the EMA branch gives positives,
        the online branch negatives); what `method.target="auto"` means.
      predictor: "mlp" or "none"; what `method.predictor="auto"` means.
      options: the `config.method` keys that the loss takes as keyword arguments, with their
        default, limits and meaning.
      check: raises ValueError if the options, the number of views, the target and the stop-gradient
        do not fit together.
      init_memory: (key, width=D, **options) -> the method's state before the first step.
      stop_gradient: whether the method needs the stop-gradient on an online target.
      extras: the EXTRAS that the loss supports.
      own_values: (width=D, **options) -> {option: value} of the options whose 0 in a config stands
        for the method's own value.
      select: (z_target, key, **options) -> the only views [S, B] that the online branch needs;
        None if it needs all.
    """

    loss: LossFn
    target: str
    predictor: str
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    check: Callable[..., None] | None = None
    init_memory: Callable[..., Memory] = no_memory
    stop_gradient: bool = True
    extras: tuple[str, ...] = ()
    own_values: Callable[..., dict[str, float]] | None = None
    select: Callable[..., jax.Array] | None = None
