"""What the numbers of a run depend on besides its config: its images and JAX's settings."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gsg_jax.config.load import differences
from gsg_jax.console import UserError, say
from gsg_jax.data.source import ArraySource, Source, Subset, num_decode_threads
from gsg_jax.run.files import read_object

IDENTITY = "identity.json"
# Settings that change numbers silently.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)
_FILES_PER_CALL = 1000


def identity(sources: dict[str, Source | None], folder: str) -> dict[str, Any]:
    """What must be the same again for a run to end with the same numbers.

    Args:
      sources: of the run, by split.
      folder: of the images, which may move: names are taken relative to it.

    Returns:
      {"jax": {setting: value}, split: {"count": number, what else is known: digest}}.
    """
    images = {split: _of_images(x, folder) for split, x in sources.items() if x is not None}
    return {"jax": settings(), **images}


def settings() -> dict[str, Any]:
    """JAX's settings that change the numbers of a resumed run or evaluation."""
    return {name: getattr(jax.config, name) for name in SETTINGS}


def check_identity(workdir: pathlib.Path, now: dict[str, Any], may_differ: bool) -> None:
    """Compares the images and settings with those that the run in DIR began with.

    Args:
      workdir: DIR; a run that has not begun has recorded nothing.
      now: from `identity`.
      may_differ: whether a difference only causes a warning.

    Raises:
      UserError: if they differ, and may not; the message names what differs.
    """
    path = workdir / IDENTITY
    if not path.exists():
        return
    before = read_object(path)
    if not (differing := differences(ConfigDict(now), before)):
        return
    what = f"the images or JAX's settings are not those of the run in {workdir}"
    if not may_differ:
        raise UserError(
            f"{what}: {'; '.join(differing[:5])}: bring them back, give another --workdir, or "
            "resume with other numbers by --config.run.accept_changes=true"
        )
    say(f"warning: {what}: {'; '.join(differing[:5])}: it resumes with other numbers")


def _of_images(source: Source, folder: str) -> dict[str, Any]:
    """The number of images, and digests of what is known of them without decoding any."""
    while isinstance(source, Subset):  # drawn by the labels and the config
        source = source.source
    known = {"count": len(source), "classes": _digest(map(os.fsencode, source.class_names))}
    if source.paths:
        root = str(pathlib.Path(folder).expanduser()) if folder else ""
        names = [str(path).removeprefix(root) for path in source.paths]
        known["names"] = _digest(map(os.fsencode, names))
        known["sizes"] = _digest([np.array(_sizes(source.paths), np.int64).tobytes()])
    elif isinstance(source, ArraySource):
        known["pixels"] = _digest([np.ascontiguousarray(source.images)])
    elif files := getattr(source, "files", ()):
        names = [os.fsencode(os.path.basename(path)) for path in files]
        known["files"] = _digest([*names, np.array(_sizes(files), np.int64).tobytes()])
    # Other sources would have to read their records for the labels.
    if source.paths or isinstance(source, ArraySource):
        labels = source.labels
        known["labels"] = _digest([] if labels is None else [np.asarray(labels).tobytes()])
    return known


def _sizes(paths: Sequence[pathlib.Path | str]) -> list[int]:
    parts = [paths[n : n + _FILES_PER_CALL] for n in range(0, len(paths), _FILES_PER_CALL)]

    def sizes(part: Sequence[pathlib.Path | str]) -> list[int]:
        return [os.stat(path).st_size if os.path.exists(path) else -1 for path in part]

    with ThreadPoolExecutor(num_decode_threads()) as pool:
        return [size for part in pool.map(sizes, parts) for size in part]


def _digest(parts: Iterable[bytes | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]
