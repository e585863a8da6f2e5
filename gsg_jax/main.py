"""The one entry: `python -m gsg_jax.main --config=configs/simsiam_gsg.py [--workdir=DIR]`.

What people read goes to standard error; the last line of standard output is one JSON object with
the job's final figures. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage.
"""

import json
import pathlib
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from gsg_jax.config import check_overrides, load_config
from gsg_jax.errors import UsageError, UserError
from gsg_jax.jobs import JOBS
from gsg_jax.progress import say

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, configs/NAME.py[:RECIPE].")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; '' = runs/NAME-RECIPE. A run in it is resumed."
)


def main(argv: list[str]) -> int:
    """Runs the job that the command line names.

    Args:
      argv: the command line, the program's name first.

    Returns:
      The exit status.
    """
    try:
        config = parse_flags(argv)
        workdir = pathlib.Path(_WORKDIR.value or default_workdir(argv))
        figures = JOBS[config.job](config, workdir)
    except UsageError as error:
        say(f"error: {error}")
        return 2
    except UserError as error:
        say(f"error: {error}")
        return 1
    print(json.dumps(figures), flush=True)
    return 0


def parse_flags(argv: list[str]) -> ml_collections.ConfigDict:
    """Reads flags and config.

    Args:
      argv: the command line, the program's name first.

    Returns:
      The config with its overrides.

    Raises:
      UsageError: for an unknown flag, config, recipe or key, or a value of a wrong type.
    """
    path = _config_argument(argv)
    if path:
        check_overrides(load_config(path), argv[1:])
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is no flag: write --config.a.b=v, --config=, --workdir=")
    if _CONFIG.value is None:
        raise UsageError("--config is missing: give --config=configs/simsiam_gsg.py, say")
    return _CONFIG.value


def default_workdir(argv: list[str]) -> str:
    """The folder of a run that was given none: runs/NAME-RECIPE."""
    path, _, recipe = _config_argument(argv).partition(":")
    return f"runs/{pathlib.Path(path).stem}-{recipe or 'default'}"


def _config_argument(argv: list[str]) -> str:
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[position + 1 : position + 2])
    return ""


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    app.define_help_flags()
    sys.exit(main(sys.argv))
