"""The command line of `python -m gsg_jax.main`: its flags, the config they change, the workdir."""

import pathlib
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gsg_jax.config.load import check_overrides, load_config
from gsg_jax.console import UsageError
from gsg_jax.devices.hosts import START_SECONDS, HostFlags, check_host_flags

HELP = """
  --config=configs/NAME.py[:RECIPE]  the experiment, and which data and sizes it takes
  --workdir=DIR                      folder of the run ('' = runs/NAME-RECIPE, or, for an
                                     evaluation, a folder in the run that it evaluates); a run
                                     in it resumes
  --config.GROUP.KEY=VALUE           another value of a key

With several hosts, the same command on each; Cloud TPU, SLURM and Open MPI set the first three:
  --coordinator=HOST:PORT            host 0
  --num_hosts=N                      how many there are
  --host_index=I                     which one this is, from 0
  --port=P                           of host 0, if the cluster sets the rest
  --host_timeout=SECONDS             to wait for a missing host, at the start (300) and later (60
                                     at most)
"""


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
      config: with its overrides.
      workdir: of the run.
      hosts: which of several hosts this process is.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    hosts: HostFlags


def parse_flags(argv: list[str]) -> Command:
    """Returns the command that argv spells, the program's name first.

    Raises:
      UsageError: for an unknown flag, config, recipe or key, or a value of a wrong type.
    """
    path, argv = _take_config(argv)
    if not path:
        raise UsageError("--config is missing: give for example --config=configs/simsiam_gsg.py")
    plain = load_config(path)
    check_overrides(plain, argv[1:])

    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", "", "", flag_values=values)
    coordinator = flags.DEFINE_string("coordinator", "", "", flag_values=values)
    num_hosts = flags.DEFINE_integer("num_hosts", 0, "", flag_values=values)
    host_index = flags.DEFINE_integer("host_index", -1, "", flag_values=values)
    port = flags.DEFINE_integer("port", 0, "", flag_values=values)
    timeout = flags.DEFINE_integer("host_timeout", START_SECONDS, "", flag_values=values)
    try:
        config = config_flags.DEFINE_config_dict("config", plain, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is not a flag: write --config.a.b=v, --config=, --workdir=")
    try:
        folder = workdir.value or default_workdir(path, config.value)
        folder = pathlib.Path(folder).expanduser()
    except RuntimeError as error:
        raise UsageError(f"--workdir={workdir.value}: {error} Give the whole path") from error
    hosts = HostFlags(
        coordinator.value, num_hosts.value, host_index.value, port.value, timeout.value
    )
    check_host_flags(hosts)
    return Command(config.value, folder, hosts)


def default_workdir(path_and_recipe: str, config: ml_collections.ConfigDict) -> str:
    """Returns the folder of a job that was given none.

    It is runs/NAME-RECIPE for a pretraining, PRETRAINED/NAME for one evaluation, and PRETRAINED
    itself for the report and for all evaluations together.
    """
    path, _, recipe = path_and_recipe.partition(":")
    name = pathlib.Path(path).stem
    if not config.get("pretrained"):
        return f"runs/{name}-{recipe or 'default'}"
    is_whole = config.get("job") in ("evaluate_all", "report")
    return config.pretrained if is_whole else f"{config.pretrained}/{name}"


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
