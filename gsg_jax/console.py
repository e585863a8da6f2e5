"""What a user reads on standard error: errors, lines and progress; and the last line for programs.

Output that cannot be written ends no job. Names and values from files, folders and flags are shown
with every character that a terminal would obey made visible.
"""

import argparse
import contextlib
import errno
import json
import os
import pathlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_SECONDS = 30.0
# Categories of Unicode that a terminal obeys instead of showing, and joiners, which are harmless.
_OBEYED, _JOINERS = {"Cc", "Cf", "Cs", "Zl", "Zp"}, "\u200c\u200d"

_host = 0  # the number of this process's host


class UserError(Exception):
    """The job cannot continue; the message names the value, the limit and the fix (status 1)."""


class UsageError(UserError):
    """The command line or the config is wrong (exit status 2)."""


def given_path(flag: str, value: str) -> pathlib.Path:
    """The path that a flag gives, with ~ expanded; UsageError if ~ cannot be expanded."""
    try:
        return pathlib.Path(value).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag}={value}: {error} Give its whole path") from error


def explain(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit status and the line for an error of a job.

    Returns:
      (status, text); None if the user cannot fix the error, so its traceback must be seen.
    """
    if isinstance(error, UserError):
        # Names in an error may have line breaks.
        return (2 if isinstance(error, UsageError) else 1), " ".join(str(error).splitlines())
    if isinstance(error, KeyboardInterrupt):
        return 1, "interrupted; the same command resumes where it stopped"
    if isinstance(error, OSError):  # a full disk, a folder that vanished
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror or error}; fix that, and the same command resumes"
    is_of_device = isinstance(error, RuntimeError) and "Out of memory" in str(error)
    if isinstance(error, MemoryError) or is_of_device:
        return 1, (
            "not enough memory: for a training lower --config.data.batch_size, --config.views.size "
            "or --config.model.width in another --workdir, for an evaluation "
            "--config.eval.batch_size; give a search a smaller --folder"
        )
    return None


def exit_status(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; prints a fixable error in one line."""
    try:
        return command()
    except (Exception, KeyboardInterrupt) as error:
        if not (explained := explain(error)):
            raise
        status, text = explained
        say_everywhere(f"error: {text}")
        return status


@contextlib.contextmanager
def counting(
    what: str, total: int, done: int = 0, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows how much of a task is done: a bar on a terminal, occasional lines elsewhere.

    Args:
      what: the task, in a few words.
      total: how many items it has.
      done: how many were already done.
      console: standard error if None.

    Yields:
      A function that takes the number of items done.
    """
    console, what = console or standard_error(), shown(what)
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
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.update(task, completed=count)


def shown(text: str) -> str:
    """Returns the text with whatever a terminal would obey written out, such as line breaks.

    A file name, a class or a value of a config could otherwise move the cursor, or begin a line
    that looks like one of ours.
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _OBEYED and c not in _JOINERS
        else c
        for c in text
    )


def say(*lines: str) -> None:
    """Prints lines for people on standard error, on host 0 only; a line stays one line."""
    if not _host:
        say_everywhere(*lines)


def say_everywhere(*lines: str) -> None:
    """Prints lines for people on any host, with the host's number unless it is 0."""
    host = f"host {_host}: " if _host else ""
    file = _lasting(sys.stderr)
    file.write("".join(f"{host}{shown(line)}\n" for line in lines))
    file.flush()


def last_line(figures: dict[str, Any]) -> int:
    """Prints the figures of a job, for programs; returns the exit status of the job.

    If standard output cannot be written, a complete run still returns 0, since its workdir has the
    figures too; whatever else loses its last line, such as a stopped run, has failed.
    """
    text, out = json.dumps(figures), _lasting(sys.stdout)
    out.write(text + "\n")
    out.flush()
    if out.error is None:
        return 0
    is_run = figures.get("job") == "pretrain"
    is_done = is_run and figures["step"] == figures["num_steps"]
    say(
        f"{'warning' if is_done else 'error'}: standard output cannot be written "
        f"({out.error.strerror or out.error}); its last line is {text}"
    )
    return 0 if is_done else 1


class LastingFile:
    """A file that drops what cannot be written because its reader has gone or its disk is full.

    Attributes:
      error: the last reason why something was dropped, or None.
    """

    def __init__(self, file: TextIO | None):
        """Wraps standard output or standard error; None is a closed one."""
        self._file, self.error = file, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Writes the text, or drops it."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Writes buffered text, or drops it."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self._file is not None and self._file.isatty()

    def _try(self, method: str, *arguments: str) -> None:
        try:
            if self._file is not None:
                getattr(self._file, method)(*arguments)
        except OSError as error:
            self.error = error
            if error.errno in (errno.EPIPE, errno.EIO):  # no reader comes back
                with contextlib.suppress(OSError), open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), self._file.fileno())


def protect_output() -> None:
    """Makes this process outlive the readers of its output; call it once, at the start."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file opened would get the output
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


def _lasting(file: TextIO | None) -> LastingFile:
    return file if isinstance(file, LastingFile) else LastingFile(file)


def argument_path(text: str) -> pathlib.Path:
    """The given_path of an argparse.ArgumentParser, which names the flag; never empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a path")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error} Give its whole path") from error


class Parser(argparse.ArgumentParser):
    """A parser of flags whose errors show what they name."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.print_usage(sys.stderr)
        say_everywhere(f"{self.prog}: error: {message}")
        sys.exit(2)


def set_host(host: int) -> None:
    """Tells this module which of several hosts this process is; only host 0 prints everything."""
    global _host
    _host = host


def standard_error(soft_wrap: bool = True) -> Console:
    """Returns the console that people read; it is silent on every host but host 0.

    Args:
      soft_wrap: whether the terminal breaks lines; False for tables.
    """
    file = _lasting(getattr(sys.stderr, "rich_proxied_file", sys.stderr))
    return Console(file=file, highlight=False, soft_wrap=soft_wrap, quiet=_host > 0)
