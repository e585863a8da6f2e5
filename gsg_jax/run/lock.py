"""One writer per folder: a lock of the operating system, which ends with the process."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from filelock import FileLock, Timeout

from gsg_jax.console import UserError, say
from gsg_jax.devices.hosts import is_writer
from gsg_jax.devices.mesh import wait_for_hosts

LOCK = "run.lock"  # stays in the folder; it is held while a process writes there
APPEARS_SECONDS = 10.0  # NFS may show a new file to another host late
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def writing(folder: pathlib.Path, name: str = LOCK) -> Iterator[Callable[[], None]]:
    """Makes a folder and holds it against other processes that write; readers need no lock.

    Only the host that writes holds it. A killed process no longer holds it. If the file
    system has no locks, one line warns of it.

    Args:
      folder: of a run or an evaluation.
      name: of the lock, if an evaluation writes beside a run that may train.

    Yields:
      A function to call before work that must not mix with another process's: if somebody has
      removed the lock's file, it takes the lock again.

    Raises:
      UserError: if another process holds the folder, it cannot be written, or is not host 0's.
    """
    path, held = folder / name, []
    if not is_writer():
        wait_for_hosts("the folder is held")
        if not _appears(path):
            raise UserError(
                f"--workdir={folder} is not the folder that host 0 has made: give one on a file "
                "system that all hosts share"
            )
        yield lambda: None
        return
    # A soft lock, a file that is there or not, would outlive a process that is killed.
    lock = FileLock(path, timeout=0, fallback_to_soft=False, on_acquired=held.append)

    def take() -> None:
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{folder} is written by {_holder(path)}: wait for its end, stop it, or give "
                "another --workdir"
            ) from error
        _write_holder(held[-1])

    def keep() -> None:
        if lock.is_locked and not _is_at(path, held[-1]):
            lock.release()
            take()

    try:
        folder.mkdir(parents=True, exist_ok=True)
        take()
    except OSError as error:
        lock.release()
        if error.errno not in _NO_LOCKS:
            raise not_writable(folder, error) from error
        say(f"warning: {folder} cannot be locked ({error.strerror}): start no second process there")
    try:
        wait_for_hosts("the folder is held")
        yield keep
    finally:
        if lock.is_locked:
            os.ftruncate(held[-1], 0)
            lock.release()


def not_writable(folder: pathlib.Path, error: OSError) -> UserError:
    """The error of a folder that cannot be written."""
    return UserError(
        f"--workdir={folder} cannot be written ({error.strerror}): "
        "give a folder that you may write to"
    )


def _appears(path: pathlib.Path) -> bool:
    """Whether a file that another host has made is seen here, now or soon."""
    until = time.monotonic() + APPEARS_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.5)
        if path.parent.is_dir():
            os.listdir(path.parent)  # asks the server again
    return path.exists()


def _is_at(path: pathlib.Path, file: int) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(path: pathlib.Path) -> str:
    """Who holds a lock, for people."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ):  # it has just taken or dropped the lock
        return "another process"


def _write_holder(descriptor: int) -> None:
    """Writes who holds a lock into its file."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
