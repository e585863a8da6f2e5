"""The command line: its flags, the config they change, the workdir."""

import pathlib
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.evaluations import KEYS as EVALUATION_KEYS
from gsg_jax.config.find import config_names, find_config
from gsg_jax.config.keys import KEYS, option_keys
from gsg_jax.config.load import check_overrides, flat, load_config, resolve
from gsg_jax.config.own import take_plugins
from gsg_jax.console import UsageError, given_path
from gsg_jax.devices.hosts import START_SECONDS, HostFlags, check_host_flags


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
      config: with its overrides.
      workdir: of the run; None for an evaluation that writes only if it is given one.
      hosts: which of several hosts this process is.
      print_config: whether to print the config instead of using it.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path | None
    hosts: HostFlags
    print_config: bool


def parse_flags(argv: list[str]) -> Command:
    """Returns the command in argv, whose first word is the program's name.

    Raises:
      UsageError: for an unknown flag, config, recipe or key, or a value of a wrong type.
    """
    path, argv = _take_config(take_plugins(argv))
    if not path:
        words = [word for word in argv[1:] if not word.startswith("-")]
        hint = _meaning(words[0]) if words else "give for example --config=simsiam_gsg"
        raise UsageError(f"--config is missing: {hint}")
    plain = load_config(path)
    check_overrides(plain, argv[1:])

    values = flags.FlagValues()
    print_config = flags.DEFINE_boolean("print_config", False, "", flag_values=values)
    workdir = flags.DEFINE_string("workdir", "", "", flag_values=values)
    coordinator = flags.DEFINE_string("coordinator", "", "", flag_values=values)
    num_hosts = flags.DEFINE_integer("num_hosts", 0, "", flag_values=values)
    host_index = flags.DEFINE_integer("host_index", -1, "", flag_values=values)
    port = flags.DEFINE_integer("port", 0, "", flag_values=values)
    timeout = flags.DEFINE_integer("host_timeout", START_SECONDS, "", flag_values=values)
    _check_names(argv[1:], values, flat(plain))
    try:
        config = config_flags.DEFINE_config_dict("config", plain, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is not a flag: {_meaning(rest[0])}")
    folder = workdir.value or default_workdir(path, config.value)
    folder = given_path("--workdir", folder) if folder else None
    hosts = HostFlags(
        coordinator.value, num_hosts.value, host_index.value, port.value, timeout.value
    )
    check_host_flags(hosts)
    return Command(config.value, folder, hosts, print_config.value)


def _check_names(arguments: list[str], own: flags.FlagValues, keys: dict) -> None:
    """Raises UsageError for a config's key that is given without --config."""
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--") or name in own:
            continue
        meant = [key for key in keys if key == name or key.endswith(f".{name}")]
        if meant:
            hint = " or ".join(f"--config.{key}{equals}{value}" for key in meant)
            raise UsageError(f"{argument}: there is no such flag; did you mean {hint}?")


def _meaning(word: str) -> str:
    """The end of an error line: the flag that a lone word was probably meant to be."""
    if pathlib.Path(word).is_dir():
        return (
            f"did you mean --workdir={word} for a run, or for images --config.data.dir={word} with "
            "the recipe folder (METHOD:folder)?"
        )
    try:
        find_config(word.partition(":")[0])
    except UsageError:
        return f"write --config=NAME, --workdir=DIR, --config.a.b=v; names: {_names()}"
    return f"did you mean --config={word}?"


def _names() -> str:
    return ", ".join(config_names())


def as_text(config: ml_collections.ConfigDict) -> str:
    """Returns a config as it will be used, checked, with a line for each key and its meaning.

    Raises:
      UsageError: if a value is wrong.
    """
    known = EVALUATION_KEYS
    if config.get("job") == "pretrain":
        check_pretraining(config)
        config, known = resolve(config), KEYS | option_keys(config.method.name)
    leaves = {key: repr(value) for key, value in flat(config).items()}
    width, value_width = max(map(len, leaves)), 24
    lines = [
        f"{key:{width}} = {value:{value_width}}  # {known[key].meaning}"
        if key in known
        else f"{key:{width}} = {value}"
        for key, value in leaves.items()
    ]
    return "\n".join(lines) + "\n"


def default_workdir(path_and_recipe: str, config: ml_collections.ConfigDict) -> str:
    """Returns the folder of a job without --workdir.

    It is runs/NAME-RECIPE for a pretraining, PRETRAINED/NAME for one evaluation, and PRETRAINED
    itself for the report and for all evaluations together. It is "" for k-NN and for a linear
    classifier on embeddings, which then write nothing.
    """
    if config.get("job") == "knn" or config.get("protocol") in ("probe", "lbfgs"):
        return ""
    path, _, recipe = path_and_recipe.partition(":")
    name = pathlib.Path(path).stem
    if not config.get("pretrained"):
        return f"runs/{name}-{recipe or 'default'}"
    folder = str(given_path("--config.pretrained", config.pretrained))
    return folder if config.get("job") in ("evaluate_all", "report") else f"{folder}/{name}"


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """Returns the value of --config, and the command line without it."""
    given, others, arguments = [], [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            given.append(value if equals else next(arguments, ""))
        else:
            others.append(argument)
    if len(given) > 1:
        raise UsageError(f"--config is given {len(given)} times ({', '.join(given)}): give it once")
    return "".join(given), others
