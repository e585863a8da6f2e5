"""The compilation cache of a run: its second start loads what the first has compiled."""

import contextlib
import pathlib
import re
import warnings
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from gsg_jax.console import say

# Of a workdir's cache; a run takes a few of them, each release of JAX or change of the code as
# many again. JAX's own bound would need the package filelock.
MAX_BYTES = 2**30

# What JAX warns of where an entry cannot be used.
_TROUBLE = r"Error (reading|writing) persistent compilation cache entry for '([^']*)': "


@contextlib.contextmanager
def caching(folder: pathlib.Path) -> Iterator[None]:
    """Keeps what is compiled inside in a folder, or where the user has told JAX to keep it.

    The user's folder (JAX_COMPILATION_CACHE_DIR, or jax_compilation_cache_dir) is used under the
    user's settings. JAX's key of an entry covers the instruction set of a CPU, the kind of an
    accelerator and the versions of JAX and XLA, so that a workdir may move to another machine. An
    entry that is damaged or cannot be written costs one line on standard error, and is compiled.

    Args:
      folder: made where something is compiled; the oldest entries beyond MAX_BYTES are removed.
    """
    users = jax.config.jax_compilation_cache_dir
    if users:
        with _told_once(users):
            yield
        return

    if jax.process_index() == 0:
        _drop_oldest(folder)
    settings = {
        "jax_compilation_cache_dir": str(folder.resolve()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # a load takes less than any compilation
        # XLA's own caches on a GPU: their paths would be in the keys, and a moved workdir miss.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _set(settings)
        with _told_once(folder, mended=folder):
            yield
    finally:
        _set(before)


def _set(settings: dict[str, str | float | None]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise the folder before stays in use


@contextlib.contextmanager
def _told_once(folder: pathlib.Path | str, mended: pathlib.Path | None = None) -> Iterator[None]:
    """Says what is wrong with a cache in one line, whatever the filters of warnings.

    JAX never overwrites an entry: from the folder `mended`, those that cannot be read are removed.
    """
    is_told = False

    def show(message, *arguments, **options):
        nonlocal is_told
        trouble = re.match(_TROUBLE, str(message))
        if not trouble:
            return others(message, *arguments, **options)
        verb, name = trouble.groups()
        if mended and verb == "reading":
            with contextlib.suppress(OSError):
                for entry in mended.glob(f"{name}-*"):
                    entry.unlink(missing_ok=True)
        if not is_told:
            is_told = True
            verb = {"reading": "read", "writing": "written"}[verb]
            reason = str(message)[trouble.end() :].splitlines()[0]
            say(
                f"warning: the compilation cache {folder} cannot be {verb} ({reason}); the run "
                "goes on and compiles what is missing"
            )

    with warnings.catch_warnings():
        warnings.filterwarnings("always", _TROUBLE)
        others, warnings.showwarning = warnings.showwarning, show
        yield


def _drop_oldest(folder: pathlib.Path) -> None:
    """Removes the oldest entries of a folder until it holds at most MAX_BYTES."""
    with contextlib.suppress(OSError):
        entries = [(entry.stat(), entry) for entry in folder.glob("*-cache")]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime):
            if total <= MAX_BYTES:
                break
            entry.unlink()
            total -= stat.st_size
