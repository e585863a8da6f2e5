"""Ends a run that stands still, and leaves the stacks of its threads."""

import faulthandler
import os
import pathlib
import signal

import jax

from gsg_jax.run.files import open_to_append

# Starting and compiling may take this many times as long: a large network compiles for minutes.
_COMPILING = 4
_DUMP_SECONDS = 10  # from the stacks to the end


class Watchdog:
    """Ends the process if `moved` is not called for `seconds`; a context manager.

    faulthandler writes the stacks of all threads to DIR/stacks-HOST.txt, and ten seconds later
    SIGALRM ends the process: a crash (status 142) to whoever restarts it, while faulthandler's own
    exit would have the status 1 of an error that the user must fix. Both work while Python hangs.
    """

    def __init__(self, seconds: float, workdir: pathlib.Path):
        """Prepares the watchdog, which starts with the block; 0 seconds disable it."""
        self._seconds = seconds
        self._path = workdir / f"stacks-{jax.process_index()}.txt"

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._file = open_to_append(self._path)
            self.moved(is_compiling=True)
        return self

    def __exit__(self, *_) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            is_empty = not os.fstat(self._file.fileno()).st_size
            self._file.close()
            if is_empty:
                self._path.unlink(missing_ok=True)

    def moved(self, is_compiling: bool = False) -> None:
        """Notes that the run moves; what follows has `seconds` again, or four times as many."""
        if self._seconds:
            seconds = self._seconds * (_COMPILING if is_compiling else 1)
            faulthandler.dump_traceback_later(seconds, file=self._file)
            signal.setitimer(signal.ITIMER_REAL, seconds + _DUMP_SECONDS)
