"""Reads configs from a file, a command line, or the record of a run."""

import ast
import difflib
import importlib.util
import inspect
import json
import os
import pathlib
import sys
import textwrap
import traceback
import types
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from gsg_jax.config.find import find_config
from gsg_jax.console import UsageError
from gsg_jax.data.augment import ViewRecipe
from gsg_jax.methods import METHODS
from gsg_jax.models.siamese import output_width

# Keys that the config file and its recipe decide.
FIXED_KEYS = {
    "job": "give the --config of another job",
    "recipe": "give it after the config, as in simsiam_gsg:cifar10",
}
# Keys that name a folder or a file.
FOLDERS = ("data.dir", "dir", "pretrained", "checkpoint", "init_from")


def load_config(path_and_recipe: str) -> ConfigDict:
    """Returns what get_config of a config file returns, without overrides.

    Args:
      path_and_recipe: "simsiam_gsg", "simsiam_gsg:cifar10" or "my/config.py:cifar10".

    Raises:
      UsageError: if the file is missing, has no get_config, or has no such recipe.
    """
    name = path_and_recipe.partition(":")[0]
    config, _ = run_getter(find_config(name), "--config", path_and_recipe, "get_config")
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={name}: get_config() must return an ml_collections.ConfigDict")
    _add_options(config)
    return config


def run_getter(path: pathlib.Path, flag: str, given: str, getter: str) -> tuple[Any, str]:
    """Calls a function of a file that a flag gives.

    Args:
      path: of the file.
      flag: such as "--config".
      given: its value, such as "simsiam:cifar10"; the function gets what follows the colon, if any.
      getter: name of the function.

    Returns:
      (what it returns, the file's docstring).

    Raises:
      UsageError: if the file cannot be run, lacks the function, or the function fails.
    """
    where, (name, _, recipe) = f"{flag}={given}", given.partition(":")
    module = run_file(str(path), flag)
    if not hasattr(module, getter):
        raise UsageError(f"{where}: defines no {getter}(); give a file that does")
    function = getattr(module, getter)
    if recipe and not inspect.signature(function).parameters:
        raise UsageError(f"{where}: takes no recipe; give {flag}={name}")
    try:
        return function(recipe) if recipe else function(), inspect.cleandoc(module.__doc__ or "")
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where}: {_failure(error, str(path))}") from error


def run_file(path: str, flag: str = "--config") -> types.ModuleType:
    """Returns the module of a file that a flag gives; raises UsageError if it cannot be run."""
    spec = importlib.util.spec_from_file_location("gsg_jax_config", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{flag}={path}: not a Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, such as Flax's modules, look for their module there. It is removed again: what
    # cannot be imported must not be pickled for worker processes.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UsageError as error:
        raise UsageError(f"{flag}={path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UsageError(f"{flag}={path}: {_failure(error, path)}") from error
    finally:
        del sys.modules[spec.name]
    return module


def _failure(error: BaseException, path: str) -> str:
    """Says at which line a config file failed, and with which error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
    return f"line {line}: {text}"


def _add_options(config: ConfigDict) -> None:
    """Adds the method's options that have a default and that the config does not set."""
    method = config.get("method")
    row = METHODS.get(method.get("name")) if isinstance(method, ConfigDict) else None
    for option, key in row.options.items() if row else ():
        if key.has_default and option not in method:
            method[option] = key.default


def is_number(value: object) -> bool:
    """Whether a value of a config or a JSON file is a number in float's range; true is not one."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and (isinstance(value, float) or value.bit_length() < 1024)


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by their dotted keys, in order."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def check_overrides(config: ConfigDict, argv: list[str]) -> None:
    """Checks the `--config.a.b=v` of a command line against the config they override.

    Raises:
      UsageError: if a key is unknown (the nearest right one is named) or a value has a wrong type.
    """
    known, tuples = flat(config), set()
    for position, argument in enumerate(argv):
        name, equals, text = argument.lstrip("-").partition("=")
        is_negated = name.startswith("noconfig.")  # --noconfig.a.b is --config.a.b=false
        if not argument.startswith("-") or not (is_negated or name.startswith("config.")):
            continue
        key = name.partition(".")[2]
        if key not in known:
            raise UsageError(f"--config.{key}: there is no such key{nearest_key(key, known)}")
        if key in FIXED_KEYS:
            raise UsageError(f"--config.{key} cannot be set: {FIXED_KEYS[key]}")
        if isinstance(known[key], bool) and not equals:
            continue
        if is_negated:
            raise UsageError(f"--no{name.removeprefix('no')}: {key} is not true or false")
        if isinstance(known[key], tuple):
            if key in tuples:  # absl would join the two
                raise UsageError(f"--config.{key} is given twice: give it once")
            tuples.add(key)
        if not equals:
            text = "".join(argv[position + 1 : position + 2])
        _check_type(key, text, known[key])


def override(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys of a config, as the flags `--config.a.b=v` of a command line do.

    Args:
      config: changed in place.
      values: by dotted keys, such as {"run.num_epochs": 2}.

    Raises:
      UsageError: as check_overrides does.
    """
    check_overrides(config, [f"--config.{key}={value}" for key, value in values.items()])
    for key, value in values.items():
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        try:
            config.update_from_flattened_dict({key: given})
        except (TypeError, KeyError) as error:
            raise UsageError(f"--config.{key}={value!r}: {error}") from error


def setting_of(text: str) -> tuple[str, Any]:
    """Returns key and value of "KEY=VALUE": the value is Python's, true, false, or else text."""
    key, _, value = text.partition("=")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def nearest_key(key: str, known: dict[str, Any]) -> str:
    """Returns the end of an error line: the key that was probably meant, or all known keys."""
    if group := [name for name in known if name.startswith(key + ".")]:
        return f"; it is a group, set a key of it, such as --config.{group[0]}"
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = " or ".join(f"--config.{name}" for name in near)
    return f"; did you mean {hint}?" if near else f"; keys are {', '.join(known)}"


def _check_type(key: str, text: str, default: Any) -> None:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if isinstance(default, bool):
            if text.lower() not in ("true", "false", "1", "0", "t", "f"):
                raise ValueError
        elif isinstance(default, int | float):
            type(default)(text)
    except ValueError:
        kind = words[type(default)]
        raise UsageError(f"--config.{key}={text}: takes {kind}, such as {default}") from None


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which "auto", and 0 for "the method's own", are replaced by what they mean."""
    config = config.copy_and_resolve_references()
    row = METHODS[config.method.name]
    if config.method.target == "auto":
        config.method.target = row.target
    if config.method.predictor == "auto":
        config.method.predictor = row.predictor
    if row.own_values:
        options = {option: config.method[option] for option in row.options}
        own = row.own_values(width=output_width(config.model), **options)
        with config.method.ignore_type():  # a config may say 0 for 0.0
            for option, value in own.items():
                config.method[option] = config.method[option] or value
    return config


def view_recipe(views: ConfigDict) -> ViewRecipe:
    """The views of `config.views`, as the step takes them."""
    return ViewRecipe(**views.to_dict())


def as_json(config: ConfigDict) -> str:
    """The record of a run: its config as JSON, with the keys in order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_record(record: dict[str, Any]) -> ConfigDict:
    """The config of a run's record; JSON's lists become tuples again."""
    return ConfigDict(_with_tuples(record))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(
    config: ConfigDict, record: dict[str, Any], free: Collection[str] = ()
) -> list[str]:
    """The keys, except free ones, in which a config and a run's record differ.

    Returns:
      "key (its value there, its value here)" for each.
    """
    ours, theirs = flat(json.loads(as_json(config))), flat(record)
    pairs = [(key, theirs.get(key, "none"), ours.get(key, "none")) for key in {**ours, **theirs}]
    return [
        f"{key} ({there} there, {here} here)"
        for key, there, here in pairs
        if key not in free and not is_same(key, there, here)
    ]


def is_same(key: str, there: Any, here: Any) -> bool:
    """Whether two values of a key mean the same: NaN is NaN, and the folders d/ and d are one."""
    if key in FOLDERS and there and here:
        there, here = (os.path.realpath(os.path.expanduser(str(path))) for path in (there, here))
    return there == here or (there != there and here != here)
