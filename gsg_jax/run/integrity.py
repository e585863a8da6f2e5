"""Which checkpoints are whole, by the digests of their files or by reading them.

Orbax and TensorStore notice a file that is missing or truncated, but not every changed bit.
"""

import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import textwrap
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gsg_jax.console import UserError, say

ARRAYS, SCORE = "default", "metrics"  # the subfolders of a checkpoint
DIGESTS = f"{ARRAYS}/digests.json"  # {"sha256": {name of a file: hex digits}}
MAX_STEP = 2**31 - 1  # a state counts its steps in int32
UNFINISHED = ".orbax-checkpoint-tmp"


_STEP = re.compile(r"0|[1-9][0-9]*")  # the name of a checkpoint


def write_digests(arrays: pathlib.Path) -> None:
    """Writes the digests of a checkpoint's files; `arrays` may still have its unfinished name."""
    digests = {}
    for path in sorted(arrays.parent.rglob("*")):
        names = path.relative_to(arrays.parent).parts
        if path.is_file() and len(names) > 1:  # Orbax is still writing the files above
            item = names[0].partition(UNFINISHED)[0]
            digests["/".join((item, *names[1:]))] = _file_digest(path)
    with (arrays / pathlib.Path(DIGESTS).name).open("w") as file:
        json.dump({"sha256": digests}, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def _file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(workdir: pathlib.Path) -> None:
    """Raises UserError if the full path of DIR is not UTF-8, which TensorStore needs."""
    try:
        str(workdir.resolve()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--workdir={workdir}: checkpoints need a name in UTF-8: give another, or rename it"
        ) from error


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints of a run, whole or damaged, the oldest first."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _STEP.fullmatch(name) and int(name) <= MAX_STEP)


def newest_whole(workdir: pathlib.Path, read_only: bool) -> int | None:
    """Returns the newest whole checkpoint's step, or None; reports the damaged ones, a line each.

    Args:
      workdir: DIR.
      read_only: False moves damaged checkpoints to DIR/damaged and removes half-written ones.

    Raises:
      UserError: if there are checkpoints and none is whole.
      OSError: if the folder cannot be read.
    """
    folder = workdir / "checkpoints"
    found = saved_steps(workdir)
    steps, damaged, whole = [*found], {}, None
    while steps and whole is None:
        step = steps.pop()
        if not (reason := damage(folder / str(step))):
            whole = step
        elif (folder / str(step)).exists():  # otherwise a run has just removed it
            damaged[step] = reason
    if read_only and found and whole != found[-1] and saved_steps(workdir) != found:
        raise UserError(
            f"{folder} changes while it is read: try again once its run saves less often"
        )
    if whole is None and damaged:
        newest = max(damaged)
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folder} is whole (step {newest}: "
            f"{damaged[newest]}): restore one, or start in another --workdir"
        )
    if not read_only:
        for step in steps:  # Orbax reads the scores of all
            if reason := score_damage(folder / str(step)):
                damaged[step] = reason
        for path in folder.iterdir() if folder.is_dir() else ():
            if _STEP.fullmatch(path.name) and int(path.name) > MAX_STEP:  # Orbax would accept it
                damaged[int(path.name)] = f"no run has more than {MAX_STEP} steps"
        for path in folder.glob(f"*{UNFINISHED}*"):
            step = path.name.partition(".")[0]
            if step.isdecimal() and int(step) > (whole or 0):
                used = "the run starts again" if whole is None else f"step {whole} is used"
                say(f"warning: the checkpoint of step {step} is only half written: {used}")
            shutil.rmtree(path)
    for step, reason in damaged.items():
        line = f"warning: the checkpoint of step {step} is damaged ({reason})"
        if not read_only:
            line += f" and is kept in {_put_away(workdir, step)}"
        say(f"{line}: step {whole} is used")
    return whole


def _put_away(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint out of Orbax's sight; returns its new path."""
    (workdir / "damaged").mkdir(exist_ok=True)
    place, count = workdir / "damaged" / str(step), 1
    while place.exists():
        place, count = place.with_name(f"{step}-{count + 1}"), count + 1
    (workdir / "checkpoints" / str(step)).rename(place)
    return place


def damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole.

    Only files inside it are opened: reading pipes, or devices elsewhere, may never end.
    """
    for folder, _, names in os.walk(checkpoint):
        for name in names:
            if not os.path.isfile(os.path.join(folder, name)):
                return f"{ascii(name)[1:-1]} is not a file"
    try:
        digests = json.loads((checkpoint / DIGESTS).read_bytes())["sha256"].items()
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return f"{DIGESTS} is not JSON of digests"
    for name, digest in digests:
        try:
            if not _is_inner(name):
                return f"{ascii(name)[1:-1]} is not in it"
            if _file_digest(checkpoint / name) != digest:
                return f"{name} is not what was saved"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return f"{ascii(name)[1:-1]} is missing"
    return score_damage(checkpoint) or _step_damage(checkpoint)


def _is_inner(name: str) -> bool:
    """Whether a path cannot lead out of the folder that it is relative to."""
    return not pathlib.PurePath(name).is_absolute() and ".." not in pathlib.PurePath(name).parts


def score_damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with the score of a checkpoint, which Orbax reads when it opens the folder."""
    path = checkpoint / SCORE / SCORE
    if not path.exists():
        return None
    try:
        float(json.loads(path.read_bytes())["knn_top1"])
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return f"{SCORE}/{SCORE} is not a score"
    return None


def _step_damage(checkpoint: pathlib.Path) -> str | None:
    """Why a checkpoint's step cannot be read or does not match its name; else None."""
    arrays = checkpoint.resolve() / ARRAYS
    reader = ocp.PyTreeCheckpointHandler()
    try:
        step = metadata(arrays)["step"]
        item = {"step": jax.ShapeDtypeStruct(step.shape, step.dtype)}
        how = {"step": ocp.RestoreArgs(restore_type=np.ndarray)}
        what = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        step = int(reader.restore(arrays, args=what)["step"])
    except Exception as error:  # damaged files make Orbax raise anything
        number = error_number(error)
        if number not in (None, errno.ENOENT, errno.ENOTDIR):  # the store's fault, not the file's
            raise OSError(number, os.strerror(number), str(arrays)) from error
        return f"cannot be read: {reason(error)}"
    finally:
        reader.close()
    return None if str(step) == checkpoint.name else f"it is of step {step}"


def metadata(arrays: pathlib.Path) -> Any:
    """The tree of a checkpoint, with the shape and type of each array."""
    return ocp.StandardCheckpointHandler().metadata(arrays).tree


def reason(error: BaseException) -> str:
    """The cause of an error of Orbax, in a few words."""
    if number := error_number(error):
        return os.strerror(number)
    while cause := error.__cause__ or error.__context__:
        error = cause
    return textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")


def error_number(error: BaseException) -> int | None:
    """The number of the system's error that caused an error of Orbax, or None."""
    while error:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        text = str(error)
        if code := re.search(r"os_error_code='(\d+)'", text):  # TensorStore's format
            return int(code[1])
        if text.startswith("NOT_FOUND"):
            return errno.ENOENT
        error = error.__cause__ or error.__context__
    return None
