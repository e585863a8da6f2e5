"""starts.jsonl: the command that started or resumed a run, when, at which commit, and where."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

from gsg_jax.console import UserError
from gsg_jax.devices.hosts import is_writer
from gsg_jax.run.files import content, write_atomically

NAME = "starts.jsonl"
TEXTS = ("date", "command", "version", "commit", "machine")
PACKAGE = pathlib.Path(__file__).parents[1]


def write_start(workdir: pathlib.Path, step: int) -> None:
    """Adds this process, which begins after `step`, to the starts of a run."""
    if not is_writer():
        return
    start = {
        "step": step,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(),
        "version": sys.modules[PACKAGE.name].__version__,
        "commit": commit(),
        "machine": machine(),
    }
    path = workdir / NAME
    before = path.read_text(errors="replace") if path.is_file() else ""
    write_atomically(path, before + json.dumps(start) + "\n")


def read_starts(workdir: pathlib.Path) -> list[dict]:
    """Returns the starts of a run, earliest first; [] if it has not recorded any.

    Raises:
      UserError: if the file is damaged.
    """
    path = workdir / NAME
    if not path.exists():
        return []
    try:
        starts = [json.loads(line) for line in content(path).decode().splitlines()]
        if not all(isinstance(start[name], str) for start in starts for name in TEXTS):
            raise TypeError(f"{', '.join(TEXTS)} must be texts")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from error
    return starts


def command() -> str:
    """The command line of this process, as a shell takes it."""
    program = pathlib.Path(sys.argv[0]).name
    if program == "gsg-jax":
        return shlex.join([program, *sys.argv[1:]])
    return shlex.join(["python", *sys.orig_argv[1:]])


def commit() -> str:
    """The commit of this package, "-dirty" at its end if files differ; "" outside a repository."""
    folder = PACKAGE.parent
    if not (folder / ".git").exists():  # otherwise it could be another repository
        return ""
    git = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or another user's repository
        return ""


def machine() -> str:
    """The devices, the processor and the versions, in a few words."""
    devices, model = jax.devices(), platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    accelerators = (
        [] if devices[0].platform == "cpu" else [f"{len(devices)} x {devices[0].device_kind}"]
    )
    hosts = [f"{jax.process_count()} hosts"] if jax.process_count() > 1 else []
    processor = f"{os.cpu_count()} CPU cores ({model or platform.machine()})"
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return ", ".join([*accelerators, *hosts, processor, versions])
