"""The one entry: `python -m gsg_jax.main --config=configs/simsiam_gsg.py [--workdir=DIR]`.

What people read goes to standard error; the last line of standard output is one JSON object with
the job's final figures. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage, 3 the run
stood still, or another of its hosts was lost, and it was ended: the same command goes on.
"""

import json
import logging
import os
import pathlib
import sys
import time
import traceback
from typing import NamedTuple

import jax
import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gsg_jax.config.load import check_overrides, load_config
from gsg_jax.console import UsageError, UserError, say_everywhere
from gsg_jax.devices import hosts
from gsg_jax.devices.line import GRACE_SECONDS, LOST_SECONDS
from gsg_jax.devices.mesh import give_fake_devices_threads
from gsg_jax.jobs import JOBS, ON_ONE_HOST

HELP = """
  --config=configs/NAME.py[:RECIPE]  the experiment, and which data and sizes it takes
  --workdir=DIR                      folder of the run ('' = runs/NAME-RECIPE, or that of an
                                     evaluation beside what it judges); a run in it resumes
  --config.GROUP.KEY=VALUE           another value of a key

Of several hosts, all with the same command; Cloud TPU, SLURM and Open MPI tell the first three:
  --coordinator=HOST:PORT            host 0
  --num_hosts=N                      how many there are
  --host_index=I                     which this one is, from 0
  --port=P                           of host 0, where the cluster tells the rest
  --host_timeout=SECONDS             to wait for one another at the start (300)
"""


def main(argv: list[str]) -> int:
    """Runs the job that the command line names.

    Args:
      argv: the command line, the program's name first.

    Returns:
      The exit status.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__ + HELP, end="")
        return 0
    give_fake_devices_threads()
    try:
        command = parse_flags(argv)
        with hosts.joined(command.place, command.host_timeout):
            figures = JOBS[command.config.job](command.config, command.workdir)
            is_writer = hosts.is_writer()
    except (Exception, KeyboardInterrupt) as error:
        status, text = explained(error)
        hosts.end(status, text)
        say_everywhere(f"error: {text}")
        return status
    hosts.end(0)
    if is_writer:
        print(json.dumps(figures), flush=True)
    return 0


def explained(error: BaseException) -> tuple[int, str]:
    """What to say of an error.

    Args:
      error: that a job has raised.

    Returns:
      (status, text): the exit status, and one line.

    Raises:
      BaseException: `error` itself, where nothing is known that the user could mend.
    """
    if isinstance(error, UserError):
        # What an error names may have line breaks.
        return (2 if isinstance(error, UsageError) else 1), " ".join(str(error).splitlines())
    if isinstance(error, KeyboardInterrupt):
        return 1, "interrupted; the same command goes on from the newest checkpoint"
    if isinstance(error, OSError):  # a full disk, a folder that vanished
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror or error}; mend that, and the same command goes on"
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if isinstance(error, MemoryError) or (is_of_jax and "Out of memory" in str(error)):
        return 1, (
            "the memory does not suffice: lower --config.data.batch_size, --config.views.size or "
            "--config.model.width, in another --workdir; of an evaluation --config.eval.batch_size"
        )
    if is_of_jax and hosts.are_several():
        time.sleep(LOST_SECONDS + GRACE_SECONDS)  # the line ends this process where one is lost
    hosts.end(1, f"{type(error).__name__}: {error}")
    raise error


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
      config: with its overrides.
      workdir: of the run.
      place: of this process among several hosts, or None.
      host_timeout: seconds that the hosts wait for one another.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    place: hosts.Place | None
    host_timeout: int


def parse_flags(argv: list[str]) -> Command:
    """Reads flags and config.

    Args:
      argv: the command line, the program's name first.

    Returns:
      What it asks for.

    Raises:
      UserError: where the cluster's first host is not known by name.
      UsageError: for an unknown flag, config, recipe or key, or a value of a wrong type.
    """
    path, argv = _take_config(argv)
    if not path:
        raise UsageError("--config is missing: give --config=configs/simsiam_gsg.py, say")
    plain = load_config(path)
    if plain.get("job") not in tuple(JOBS):
        raise UsageError(f"--config={path}: its job must be one of {', '.join(JOBS)}")
    check_overrides(plain, argv[1:])

    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", "", "", flag_values=values)
    coordinator = flags.DEFINE_string("coordinator", "", "", flag_values=values)
    num_hosts = flags.DEFINE_integer("num_hosts", 0, "", flag_values=values)
    host_index = flags.DEFINE_integer("host_index", -1, "", flag_values=values)
    port = flags.DEFINE_integer("port", 0, "", flag_values=values)
    timeout = flags.DEFINE_integer("host_timeout", hosts.TIMEOUT, "", flag_values=values)
    try:
        config = config_flags.DEFINE_config_dict("config", plain, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is no flag: write --config.a.b=v, --config=, --workdir=")
    try:
        folder = workdir.value or default_workdir(path, config.value)
        folder = pathlib.Path(folder).expanduser()
    except RuntimeError as error:
        raise UsageError(f"--workdir={workdir.value}: {error} Give its whole path") from error
    place = hosts.find_place(
        coordinator.value, num_hosts.value, host_index.value, port.value, timeout.value
    )
    if place and plain.job in ON_ONE_HOST:
        raise UsageError(f"the job {plain.job} runs on one host, not {place.num_hosts}")
    return Command(config.value, folder, place, timeout.value)


def default_workdir(path_and_recipe: str, config: ml_collections.ConfigDict) -> str:
    """The folder of a job that was given none.

    Args:
      path_and_recipe: the value of --config.
      config: what it has become.

    Returns:
      runs/NAME-RECIPE; of an evaluation PRETRAINED/NAME; of all of them, and of the report,
      PRETRAINED itself.
    """
    path, _, recipe = path_and_recipe.partition(":")
    name = pathlib.Path(path).stem
    if not config.get("pretrained"):
        return f"runs/{name}-{recipe or 'default'}"
    beside = config.job in ("evaluate_all", "report")
    return config.pretrained if beside else f"{config.pretrained}/{name}"


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the command line without it."""
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


def _drop_late_errors(unraisable) -> None:
    """Leaves out what is left over of a save or read of Orbax that has failed: it is told."""
    late = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(late):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    # By these a worker process finds the program to import; it would take it seconds and 300 MiB.
    # None would do for __file__ as well, but that trips `inspect`, which wandb's imports call.
    __spec__ = None
    del __file__
    # Orbax logs a traceback of every error that it raises, and leaves some to asyncio.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _drop_late_errors
    try:
        status = main(sys.argv)
    except Exception:
        if not hosts.are_several():
            raise
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    if status == 1:
        # Threads that a full disk left half way would add their tracebacks, and JAX would wait for
        # hosts that have ended.
        os._exit(1)
    sys.exit(status)
