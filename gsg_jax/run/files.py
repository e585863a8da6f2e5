"""The small files of a workdir: written whole or not at all, and checked when they are read."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Collection, Iterator
from typing import IO, BinaryIO

from gsg_jax.config.load import is_number
from gsg_jax.console import UserError
from gsg_jax.devices.hosts import is_writer

# The figures of a line of throughput.jsonl that are read back.
TIMED = ("views_per_second", "interval_seconds", "train_seconds")


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Where this process prepares a file that others may write too, even on other machines."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end; a reader sees the old one or the new.

    Whatever lies at either name, even a link to elsewhere, is replaced, never written through.
    """
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file by `replacing`; bytes of file names stay as they are.

    All hosts call this with the same text; only the first writes.
    """
    if is_writer():
        with replacing(path) as file:
            file.write(text.encode(errors="surrogateescape"))


def open_to_append(path: pathlib.Path) -> IO[str]:
    """Opens a file that a run adds to; a link or a pipe there, which leads elsewhere, is replaced.

    Bytes of file names stay as they are.
    """
    if path.is_symlink() or not path.is_file():
        path.unlink(missing_ok=True)
    return path.open("a", encoding="utf-8", errors="surrogateescape")


def content(path: pathlib.Path) -> bytes:
    """The bytes of a file; UserError if it is not one, such as a pipe, which may never end."""
    if not path.is_file():
        raise _damaged(path, "not a file")
    return path.read_bytes()


def read_lines(path: pathlib.Path, names: Collection[str] = ()) -> list[dict]:
    """Returns the objects of a .jsonl file of logged steps; an incomplete last line is left out.

    Args:
      path: of the file; [] if there is none.
      names: figures that each line has, among others.

    Raises:
      UserError: if another line is damaged.
    """
    if not path.exists():
        return []
    objects, last = [], 0
    for number, line in enumerate(content(path).split(b"\n")[:-1], 1):
        with contextlib.suppress(ValueError, RecursionError):
            objects.append(json.loads(line))
        if len(objects) < number or not _is_logged_step(objects[-1], names):
            raise UserError(
                f"{path}, line {number} is damaged: remove that line, or give another --workdir"
            )
        if (step := objects[-1]["step"]) <= last:
            raise UserError(
                f"{path}, line {number} is damaged (step {step} after step {last}): remove that "
                "line, or give another --workdir"
            )
        last = step
    return objects


def read_object(path: pathlib.Path) -> dict:
    """Reads a file of one JSON object; raises UserError if it is damaged."""
    try:
        record = json.loads(content(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict):
        raise _damaged(path, "no object")
    return record


def read_figures(path: pathlib.Path, names: Collection[str]) -> dict[str, float]:
    """Reads a file of one object of figures; UserError if it has other names, or no numbers."""
    figures = read_object(path)
    if not figures or not figures.keys() <= set(names) or not all(map(is_number, figures.values())):
        raise _damaged(path, f"not {' and '.join(names)}")
    return figures


def _is_logged_step(line: object, names: Collection[str]) -> bool:
    is_object = isinstance(line, dict) and all(map(is_number, line.values()))
    return is_object and isinstance(line.get("step"), int) and line.keys() >= set(names)


def _damaged(path: pathlib.Path, how: str) -> UserError:
    return UserError(f"{path} is damaged ({how}): restore it, or give another --workdir")
