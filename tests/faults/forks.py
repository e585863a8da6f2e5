"""The command line in processes that are forked from one that has imported everything."""

import multiprocessing
import os
import pathlib
import sys
from collections.abc import Sequence

from gsg_jax.jobs import JOBS
from gsg_jax.main import main, run_process
from tests.runs import XLA_FLAGS

assert JOBS  # what takes seconds to import
_context = multiprocessing.get_context("forkserver")


def fork(flags: Sequence[str], out: pathlib.Path, err: pathlib.Path):
    """Starts the command line on one device; its output goes to two files."""
    _context.set_forkserver_preload([__name__])
    process = _context.Process(target=_command_line, args=(flags, out, err))
    process.start()
    return process


def _command_line(flags, out, err):
    os.environ["XLA_FLAGS"] = XLA_FLAGS
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["gsg_jax", *flags]
    run_process(main)
