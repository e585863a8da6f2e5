"""What a user reads on standard error: errors, lines and progress."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_SECONDS = 30.0

_host = 0  # of this process


class UserError(Exception):
    """The job cannot continue; the message names the value, the limit and the fix (status 1)."""


class UsageError(UserError):
    """The command line or the config is wrong (exit status 2)."""


def explain(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit status and the line that an error of a job deserves.

    Returns:
      (status, text); None if the user cannot fix it, so that its traceback must be seen.
    """
    if isinstance(error, UserError):
        # What an error names may have line breaks.
        return (2 if isinstance(error, UsageError) else 1), " ".join(str(error).splitlines())
    if isinstance(error, KeyboardInterrupt):
        return 1, "interrupted; the same command resumes where it stopped"
    if isinstance(error, OSError):  # a full disk, a folder that vanished
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror or error}; fix that, and the same command resumes"
    is_of_device = isinstance(error, RuntimeError) and "Out of memory" in str(error)
    if isinstance(error, MemoryError) or is_of_device:
        return 1, (
            "not enough memory: lower --config.data.batch_size, --config.views.size or "
            "--config.model.width in another --workdir; for an evaluation --config.eval.batch_size"
        )
    return None


@contextlib.contextmanager
def counting(
    what: str, total: int, done: int = 0, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows how much of a task is done: a bar on a terminal, a line now and then elsewhere.

    Args:
      what: the task, in a few words.
      total: how many items it has.
      done: how many were done before.
      console: standard error if None.

    Yields:
      A function that takes the number of items done.
    """
    console = console or standard_error()
    start, last = time.monotonic(), time.monotonic()

    def line(count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_SECONDS and count < total:
            return
        last = now
        rate = (count - done) / max(now - start, 1e-9)
        console.print(Text(f"{what}: {count:,}/{total:,}, {rate:,.0f}/s"))

    if not console.is_interactive:
        yield line
        return
    columns = (TextColumn(what), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, expand=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda count: bar.update(task, completed=count)


def say(text: str) -> None:
    """Prints a line for people on standard error, on host 0 only."""
    if not _host:
        print(text, file=sys.stderr, flush=True)


def say_everywhere(text: str) -> None:
    """Prints a line for people on whichever host this is, with the host's number unless it is 0."""
    print(f"host {_host}: {text}" if _host else text, file=sys.stderr, flush=True)


def set_host(host: int) -> None:
    """Tells this module which of several hosts this process is; only host 0 prints everything."""
    global _host
    _host = host


def standard_error() -> Console:
    """Returns the console that people read; it is silent on every host but host 0."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=_host > 0)
