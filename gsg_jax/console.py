"""What a user reads on standard error: errors, lines and progress."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

# Exit status of a process that was ended though nothing is wrong with its command, which goes on
# when it is given again: a crash to whoever restarts it, unlike 1 and 2.
AGAIN = 3


LINE_EVERY_SECONDS = 30.0

_host = 0  # of this process


class UserError(Exception):
    """The job cannot go on; the message names the value, the limit and the mend (exit status 1)."""


class UsageError(UserError):
    """The command line or the config is wrong (exit status 2)."""


@contextlib.contextmanager
def counting(
    what: str, total: int, done: int = 0, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows how many of a number are done: a bar on a terminal, now and then a line elsewhere.

    Args:
      what: is done, a few words.
      total: how many there are.
      done: how many were done before.
      console: standard error, where none is given.

    Returns:
      A context manager whose value takes the number that are done.
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
    """Prints a line for people, on standard error; of several hosts the first says it."""
    if not _host:
        print(text, file=sys.stderr, flush=True)


def say_everywhere(text: str) -> None:
    """Prints a line for people on whichever host it is; says which, where there are several."""
    print(f"host {_host}: {text}" if _host else text, file=sys.stderr, flush=True)


def speak_as(host: int) -> None:
    """Leaves what all hosts would say alike to host 0; `host` is this one."""
    global _host
    _host = host


def standard_error() -> Console:
    """The console that people read; silent on every host but the first."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=_host > 0)
