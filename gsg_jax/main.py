"""The one entry: `python -m gsg_jax.main --config=configs/simsiam_gsg.py [--workdir=DIR]`.

What people read goes to standard error; the last line of standard output is one JSON object with
the job's final figures. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage. Anything
else is a crash, of this host or another, or a run that stood still: the same command resumes.
"""

import json
import logging
import os
import sys
import time
import traceback

from absl import logging as absl_logging

from gsg_jax.config.command_line import HELP, parse_flags
from gsg_jax.console import UsageError, explain, say_everywhere
from gsg_jax.devices.compile_cache import use_compile_cache
from gsg_jax.devices.hosts import are_several, is_writer, join_hosts
from gsg_jax.devices.mesh import give_fake_devices_threads
from gsg_jax.jobs import JOBS, ON_ONE_HOST

ABORTED = 134  # the status of a process that JAX aborts because another host is lost
_GRACE_SECONDS = 3


def main(argv: list[str], ask_cluster: bool = False) -> int:
    """Runs the job that the command line names.

    Args:
      argv: the command line, the program's name first.
      ask_cluster: whether a cluster may make this process one of several hosts.

    Returns:
      The exit status.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__ + HELP, end="")
        return 0
    give_fake_devices_threads()
    try:
        config, workdir, hosts = parse_flags(argv)
        if config.get("job") not in tuple(JOBS):
            raise UsageError(f"the config's job must be one of {', '.join(JOBS)}")
        join_hosts(hosts, ask_cluster)
        if config.job in ON_ONE_HOST and are_several():
            raise UsageError(f"the job {config.job} runs on one host, not on several")
        use_compile_cache()
        figures = JOBS[config.job](config, workdir)
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if not explained:
            raise
        status, text = explained
        say_everywhere(f"error: {text}")
        return status
    if is_writer():
        print(json.dumps(figures), flush=True)
    return 0


def _drop_late_errors(unraisable) -> None:
    """Drops what a failed save or read of Orbax leaves behind: its error was reported already."""
    late = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(late):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    # A worker process would import the program that these two name, which takes seconds and 300
    # MiB. __file__ is deleted because None makes `inspect` fail, which wandb's imports call.
    __spec__ = None
    del __file__
    # Orbax logs a traceback of every error that it raises, and leaves some to asyncio.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _drop_late_errors
    try:
        status = main(sys.argv, ask_cluster=True)
    except Exception:
        if not are_several():
            raise
        traceback.print_exc()
        say_everywhere("error: see above; if another host is lost, the same command resumes")
        status = ABORTED
    sys.stdout.flush()
    if status and are_several():
        # The end of host 0 ends the others; those that fail alike report it first.
        time.sleep(_GRACE_SECONDS)
    if status:
        # Threads that a full disk left half way would add their tracebacks, and JAX would wait for
        # hosts that have ended.
        os._exit(status)
