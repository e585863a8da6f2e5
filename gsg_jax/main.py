"""Runs the job of a config: `python -m gsg_jax.main --config=simsiam_gsg [--workdir=DIR]`.

What people read goes to standard error; the last line of standard output is one JSON object with
the job's final figures. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage. Anything
else is a crash, of this host or another, or a run that stood still: the same command resumes.
"""

import logging
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_collections
from absl import logging as absl_logging

from gsg_jax.config.command_line import as_text, parse_flags
from gsg_jax.console import UsageError, exit_status, last_line, protect_output, say_everywhere
from gsg_jax.devices.compile_cache import use_compile_cache
from gsg_jax.devices.hosts import are_several, is_writer, join_hosts
from gsg_jax.devices.mesh import give_fake_devices_threads
from gsg_jax.run.finished import read_finished

HELP_FLAGS = {"--help", "-help", "-h"}
FLAGS = """
  --config=CONFIG[:RECIPE]      the experiment, and which data and sizes it takes: the name of a
                                packaged config, or the path of your own
  --workdir=DIR                 folder of the run ('' = runs/NAME-RECIPE, or, for an evaluation, a
                                folder in the run that it evaluates); a run in it resumes; knn
                                and linear write predictions.csv only if it is given
  --config.GROUP.KEY=VALUE      another value of a key
  --plugin=FILE.py              a file that registers a method, backbone or data set, if it is
                                not the config itself; may be given again
  --print_config                print the config as it would be used, and end

With several hosts, the same command on each; Cloud TPU, SLURM and Open MPI set the first three:
  --coordinator=HOST:PORT       host 0
  --num_hosts=N                 how many there are
  --host_index=I                which one this is, from 0
  --port=P                      of host 0, if the cluster sets the rest
  --host_timeout=SECONDS        to wait for a missing host, at the start (300) and later (60 at
                                most)
"""
ABORTED = 134  # the status of a process that JAX aborts because another host is lost
CRASHED = 70  # that of a program's own error, in BSD's sysexits.h
_GRACE_SECONDS = 3


def main(argv: list[str], ask_cluster: bool = False) -> int:
    """Runs the job that the command line names.

    Args:
      argv: the command line, the program's name first.
      ask_cluster: whether a cluster may make this process one of several hosts.

    Returns:
      The exit status.
    """
    if HELP_FLAGS & set(argv[1:]):
        print(__doc__ + FLAGS, end="")
        return 0
    give_fake_devices_threads()
    return exit_status(lambda: _main(argv, ask_cluster))


def _main(argv: list[str], ask_cluster: bool) -> int:
    config, workdir, hosts, print_config = parse_flags(argv)
    if print_config:
        print(as_text(config), end="")
        return 0
    join_hosts(hosts, ask_cluster)
    figures = run_job(config, workdir)
    return last_line(figures) if is_writer() else 0


def run_job(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> dict[str, Any]:
    """Runs the job of a config, and returns the figures of its last line.

    Raises:
      UserError: if it cannot start or continue.
    """
    if config.get("job") == "pretrain" and not are_several():
        if figures := read_finished(workdir, config):
            return figures
    from gsg_jax.jobs import JOBS, ON_ONE_HOST  # here: importing them takes two seconds

    if config.get("job") not in tuple(JOBS):
        raise UsageError(f"the config's job must be one of {', '.join(JOBS)}")
    if config.job in ON_ONE_HOST and are_several():
        raise UsageError(f"the job {config.job} runs on one host, not on several")
    use_compile_cache()
    return JOBS[config.job](config, workdir)


def run_process(program: Callable[[list[str]], int]) -> None:
    """Runs a program on sys.argv as this process, and ends with its exit status."""
    protect_output()
    # Orbax logs a traceback of every error that it raises, and leaves some to asyncio.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _drop_late_errors
    try:
        status = program(sys.argv)
    except Exception as error:
        say_everywhere(*"".join(traceback.format_exception(error)).splitlines())
        status = CRASHED
        if are_several():
            say_everywhere("error: see above; if another host is lost, the same command resumes")
            status = ABORTED
    sys.stdout.flush()
    if status and are_several():
        # When host 0 ends, the others do; hosts that fail alike report it first.
        time.sleep(_GRACE_SECONDS)
    if status:
        # Threads that a full disk interrupted would add their tracebacks, and JAX would wait for
        # hosts that have ended.
        os._exit(status)


def _drop_late_errors(unraisable) -> None:
    """Drops what a failed save or read of Orbax leaves behind: its error was reported already."""
    late = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(late):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    run_process(partial(main, ask_cluster=True))
