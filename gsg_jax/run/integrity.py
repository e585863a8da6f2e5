"""Whether a checkpoint is whole: by the digests of its files, or by reading it.

Orbax and TensorStore notice a file that is missing or cut short, but not every bit that changed.
"""

import errno
import hashlib
import json
import os
import pathlib
import re
import textwrap
from typing import Any

import jax
import orbax.checkpoint as ocp

# Where a checkpoint's arrays lie in its folder, and its score.
ARRAYS, SCORE = "default", "metrics"
# The SHA-256 of each file of a checkpoint, {"sha256": {name: hex digits}}.
DIGESTS = f"{ARRAYS}/digests.json"
UNFINISHED = ".orbax-checkpoint-tmp"


def write_digests(arrays: pathlib.Path) -> None:
    """Writes the digests of what a checkpoint holds; `arrays` may have its unfinished name yet."""
    digests = {}
    for path in sorted(arrays.parent.rglob("*")):
        names = path.relative_to(arrays.parent).parts
        if path.is_file() and len(names) > 1:  # Orbax goes on writing what lies above
            item = names[0].partition(UNFINISHED)[0]
            digests["/".join((item, *names[1:]))] = _file_digest(path)
    with (arrays / pathlib.Path(DIGESTS).name).open("w") as file:
        json.dump({"sha256": digests}, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def _file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is whole.

    One of an earlier version has no digests; it is whole where all its arrays can be read.
    """
    if not (checkpoint / DIGESTS).exists():
        return score_damage(checkpoint) or _reading_damage(checkpoint)
    try:
        digests = json.loads((checkpoint / DIGESTS).read_bytes())["sha256"].items()
    except (ValueError, TypeError, LookupError, AttributeError):
        return f"{DIGESTS} cannot be understood"
    for name, digest in digests:
        try:
            if _file_digest(checkpoint / name) != digest:
                return f"{name} is not what was saved"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return f"{ascii(name)[1:-1]} is missing"
    return score_damage(checkpoint)


def score_damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with the score of a checkpoint, which Orbax reads when it opens the folder."""
    path = checkpoint / SCORE / SCORE
    if not path.exists():
        return None
    try:
        float(json.loads(path.read_bytes())["knn_top1"])
    except (ValueError, TypeError, LookupError):
        return f"{SCORE}/{SCORE} is no score"
    return None


def _reading_damage(checkpoint: pathlib.Path) -> str | None:
    """Why the arrays of a checkpoint cannot be read; None where they can."""
    arrays = checkpoint.resolve() / ARRAYS
    reader = ocp.PyTreeCheckpointHandler()
    try:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        how = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=here), metadata(arrays))
        reader.restore(arrays, args=ocp.args.PyTreeRestore(restore_args=how))
    except Exception as error:  # damaged files make Orbax raise whatever it may
        number = error_number(error)
        if number not in (None, errno.ENOENT, errno.ENOTDIR):  # the store's fault, not the file's
            raise OSError(number, os.strerror(number), str(arrays)) from error
        return f"cannot be read: {reason(error)}"
    finally:
        reader.close()
    return None


def metadata(arrays: pathlib.Path) -> Any:
    """The tree of a checkpoint, with the shape and type of each array."""
    return ocp.StandardCheckpointHandler().metadata(arrays).tree


def reason(error: BaseException) -> str:
    """What went wrong at the bottom of an error of Orbax, in a few words."""
    if number := error_number(error):
        return os.strerror(number)
    while cause := error.__cause__ or error.__context__:
        error = cause
    return textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")


def error_number(error: BaseException) -> int | None:
    """The number of the system's error at the bottom of an error of Orbax, where there is one."""
    while error:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        text = str(error)
        if code := re.search(r"os_error_code='(\d+)'", text):  # TensorStore's way
            return int(code[1])
        if text.startswith("NOT_FOUND"):
            return errno.ENOENT
        error = error.__cause__ or error.__context__
    return None
