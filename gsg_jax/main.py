"""The one entry: `python -m gsg_jax.main --config=configs/simsiam_gsg.py [--workdir=DIR]`.

What people read goes to standard error; the last line of standard output is one JSON object with
the job's final figures. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage, 3 the run
stood still and was ended, to be started again.
"""

import json
import os
import pathlib
import sys

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from gsg_jax.config import check_overrides, load_config
from gsg_jax.errors import UsageError, UserError
from gsg_jax.jobs import JOBS
from gsg_jax.mesh import give_fake_devices_threads
from gsg_jax.progress import say

HELP = """
  --config=configs/NAME.py[:RECIPE]  the experiment, and which data and sizes it takes
  --workdir=DIR                      folder of the run ('' = runs/NAME-RECIPE, or that of an
                                     evaluation beside what it judges); a run in it resumes
  --config.GROUP.KEY=VALUE           another value of a key
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
        config, workdir = parse_flags(argv)
        figures = JOBS[config.job](config, workdir)
    except UserError as error:
        say(f"error: {' '.join(str(error).splitlines())}")  # what it names may have line breaks
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # a full disk, a folder that vanished
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror or error}; mend that, and the same command goes on")
        return 1
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "Out of memory" not in str(error):
            raise
        say(
            "error: the memory does not suffice: lower --config.data.batch_size, "
            "--config.views.size or --config.model.width, in another --workdir; of an evaluation "
            "--config.eval.batch_size"
        )
        return 1
    except KeyboardInterrupt:
        say("error: interrupted; the same command goes on from the newest checkpoint")
        return 1
    print(json.dumps(figures), flush=True)
    return 0


def parse_flags(argv: list[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Reads flags and config.

    Args:
      argv: the command line, the program's name first.

    Returns:
      (config, workdir): the config with its overrides, and the folder of the run.

    Raises:
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
    try:
        config = config_flags.DEFINE_config_dict("config", plain, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is no flag: write --config.a.b=v, --config=, --workdir=")
    try:
        folder = workdir.value or default_workdir(path, config.value)
        return config.value, pathlib.Path(folder).expanduser()
    except RuntimeError as error:
        raise UsageError(f"--workdir={workdir.value}: {error} Give its whole path") from error


def default_workdir(path_and_recipe: str, config: ml_collections.ConfigDict) -> str:
    """The folder of a job that was given none.

    Args:
      path_and_recipe: the value of --config.
      config: what it has become.

    Returns:
      runs/NAME-RECIPE; of an evaluation PRETRAINED/NAME, of all of them PRETRAINED itself.
    """
    path, _, recipe = path_and_recipe.partition(":")
    name = pathlib.Path(path).stem
    if not config.get("pretrained"):
        return f"runs/{name}-{recipe or 'default'}"
    return config.pretrained if config.job == "evaluate_all" else f"{config.pretrained}/{name}"


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
    """Leaves out what TensorStore's threads say after a save of Orbax has failed: it is told."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    # By these a worker process finds the program to import; it would take it seconds and 300 MiB.
    __spec__ = __file__ = None
    logging.set_verbosity(logging.FATAL)  # Orbax logs a traceback of every error that it raises
    sys.unraisablehook = _drop_late_errors
    status = main(sys.argv)
    sys.stdout.flush()
    if status == 1:
        os._exit(1)  # threads that a full disk left half way would add their tracebacks
    sys.exit(status)
