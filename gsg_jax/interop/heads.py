"""Projectors and predictors by PyTorch's names: the numbered layers of an nn.Sequential.

Our layer l is a linear layer, a norm and a ReLU there: numbers 3 l - 3, 3 l - 2 and 3 l - 1.
"""

import re
from typing import NamedTuple

import ml_collections

from gsg_jax.console import UserError
from gsg_jax.interop.backbones import Shapes
from gsg_jax.interop.tensors import Tensor, linear, norm


class Head(NamedTuple):
    """What can be inferred from a head's tensors.

    Attributes:
      model: keys that the run's config needs.
      last_bias: name of a bias before the last norm, which cancels every bias, or "".
    """

    model: dict[str, int]
    last_bias: str = ""


def projector_tensors(num_layers: int, last_norm: str = "") -> list[Tensor]:
    """Lists the tensors of a projector in PyTorch's order; paths begin below "projector".

    Args:
      num_layers: of linear layers, each with a norm.
      last_norm: name of the last norm if it is not a layer of the nn.Sequential.
    """
    tensors = []
    for layer in range(1, num_layers + 1):
        is_last = layer == num_layers
        tensors += linear(f"{3 * layer - 3}", f"linear{layer}", has_bias=False)
        name = last_norm if is_last and last_norm else f"{3 * layer - 2}"
        tensors += norm(name, f"bn{layer}", is_affine=not is_last)
    return tensors


def predictor_tensors() -> list[Tensor]:
    """Lists the tensors of a predictor; paths begin below "predictor"."""
    return [*linear("0", "linear1", has_bias=False), *norm("1", "bn1"), *linear("3", "linear2")]


def has_known_heads(model: ml_collections.ConfigDict) -> bool:
    """Whether the references' layouts have names for all parts of a config's heads."""
    is_normed = (model.head_norm, model.projector_end) == ("batch", "batch_norm")
    return is_normed and not model.num_prototypes


def check_travels(model: ml_collections.ConfigDict) -> None:
    """Raises UserError if a head has parts that no reference's layout has."""
    if not has_known_heads(model):
        raise UserError(
            f"model.head_norm is {model.head_norm!r}, projector_end {model.projector_end!r}, "
            f"num_prototypes {model.num_prototypes}: the reference's layout has no names for such "
            "heads; export the backbone alone, by --config.layout=torchvision or timm"
        )


def infer_projector(shapes: Shapes, last_norm: str = "") -> Head | None:
    """Infers a projector from its tensors.

    Args:
      shapes: by name, without prefix.
      last_norm: name of the last norm if it is not a layer of the nn.Sequential.

    Returns:
      Its sizes, or None if it is of another kind than ours.
    """
    num_layers = sum(bool(re.fullmatch(r"\d+\.weight", n)) and len(shapes[n]) == 2 for n in shapes)
    last = 3 * num_layers - 3
    last_bias = f"{last}.bias" if f"{last}.bias" in shapes else ""
    expected = {tensor.name for tensor in projector_tensors(num_layers, last_norm)}
    if not num_layers or _without_counters(shapes) - {last_bias} != expected:
        return None
    hidden = {shapes[f"{number}.weight"][0] for number in range(0, last, 3)}
    if len(hidden) > 1:
        return None
    width = shapes[f"{last}.weight"][0]
    model = {
        "projector_layers": num_layers,
        "projector_hidden_width": hidden.pop() if hidden else width,
        "projector_width": width,
    }
    return Head(model, last_bias)


def infer_predictor(shapes: Shapes) -> Head | None:
    """Infers a predictor's sizes from its tensors; None if it is of another kind than ours."""
    if _without_counters(shapes) != {tensor.name for tensor in predictor_tensors()}:
        return None
    return Head({"predictor_hidden_width": shapes["0.weight"][0]})


def _without_counters(shapes: Shapes) -> set[str]:
    return {name for name in shapes if not name.endswith("num_batches_tracked")}
