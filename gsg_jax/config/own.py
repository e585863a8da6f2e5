"""Own methods, backbones and data sets, registered by name from files that the user gives."""

import inspect
import linecache
import pathlib
import sys
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gsg_jax.config.keys import KEYS
from gsg_jax.config.load import run_file
from gsg_jax.console import UsageError
from gsg_jax.data.open import SOURCES
from gsg_jax.methods import METHODS, PREDICTORS, TARGETS, Key, Method
from gsg_jax.methods.method import EXTRAS
from gsg_jax.models.siamese import BACKBONES

# Arguments of a method's functions besides its options.
_TAKEN = ("width", "batch_size", "has_local_views", "has_cutmix", "is_guided", "num_prototypes")
_TABLES = {"method": METHODS, "backbone": BACKBONES, "dataset": SOURCES}


class Origin(NamedTuple):
    """Where a custom part was registered.

    Attributes:
      file: its path; the module's name if there is no file, as in a notebook.
      text: of the file, or of the notebook's cell, at that time.
    """

    file: str
    text: str


_ORIGINS: dict[tuple[str, str], Origin] = {}


def register(kind: str, name: str, part: Any) -> None:
    """Adds a custom part to the table of its kind: "method", "backbone" or "dataset".

    Raises:
      UsageError: if the name is taken, or the part is wrong; see gsg_jax.register_method,
        register_backbone and register_dataset.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(f"register_{kind}({name!r}): give a Python name, such as 'my_{kind}'")
    if kind == "method":
        _check_method(f"register_method({name!r}): ", part)
    elif not callable(part):
        raise UsageError(f"register_{kind}({name!r}): {part!r} is no function")
    origin = _origin()
    if name in _TABLES[kind]:
        before = _ORIGINS.get((kind, name))
        if before is None or before.file != origin.file:
            where = f"by {before.file}" if before else "by gsg_jax"
            raise UsageError(
                f"register_{kind}({name!r}): this name is taken {where}: choose another name"
            )
    _ORIGINS[kind, name], _TABLES[kind][name] = origin, part


def _check_method(called: str, method: Method) -> None:
    if not isinstance(method, Method):
        raise UsageError(f"{called}{type(method).__name__} is no gsg_jax.methods.Method")
    for field, known in (("target", TARGETS), ("predictor", PREDICTORS)):
        if (value := getattr(method, field)) not in known:
            raise UsageError(f"{called}{field} is {value!r}: take one of {', '.join(known)}")
    if wrong := set(method.extras) - set(EXTRAS):
        raise UsageError(f"{called}extras have {min(wrong)!r}: take from {', '.join(EXTRAS)}")
    options = method.options
    if not isinstance(options, dict) or not all(isinstance(x, Key) for x in options.values()):
        raise UsageError(f"{called}options must be a dict of gsg_jax.methods.Key by name")
    for option in options:
        if option in _TAKEN or f"method.{option}" in KEYS:
            raise UsageError(
                f"{called}the option {option!r} has a name of gsg_jax's own: rename it"
            )
    try:
        inspect.signature(method.loss).bind(0, 0, 0, stop_gradient=True, **options)
    except TypeError as error:
        raise UsageError(
            f"{called}the loss must take (outputs, memory, key, *, "
            f"{', '.join(['stop_gradient', *options])}): {error}"
        ) from error


def _origin() -> Origin:
    """The file that registers: the first caller outside of this package."""
    frame = sys._getframe(1)
    while (module := frame.f_globals.get("__name__", "__main__")).partition(".")[0] == "gsg_jax":
        frame = frame.f_back
    path = pathlib.Path(frame.f_code.co_filename)
    linecache.checkcache(str(path))
    text = "".join(linecache.getlines(str(path)))  # of a notebook's cell too
    return Origin(str(path.resolve()) if path.is_file() else module, text)


def own_parts(config: ConfigDict) -> dict[tuple[str, str], Origin]:
    """The custom parts that a config of pretraining names: {(kind, name): origin}."""
    named = {
        "method": config.method.name,
        "backbone": config.model.backbone,
        "dataset": config.data.name,
    }
    return {part: _ORIGINS[part] for part in named.items() if part in _ORIGINS}


def run_plugin(path: str) -> None:
    """Runs a file that registers custom parts; raises UsageError if it is missing or fails."""
    if not pathlib.Path(path).is_file():
        raise UsageError(f"--plugin={path}: there is no such file: give the path of a Python file")
    run_file(path, "--plugin")


def take_plugins(argv: list[str]) -> list[str]:
    """Runs the files of --plugin=FILE in a command line, and returns the rest of it.

    Raises:
      UsageError: if a file is missing or fails.
    """
    rest, arguments = [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--plugin", "-plugin"):
            run_plugin(value if equals else next(arguments, ""))
        else:
            rest.append(argument)
    return rest
