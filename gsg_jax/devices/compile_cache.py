"""JAX's compilation cache of this user: a second start loads what the first has compiled."""

import hashlib
import os
import pathlib
import platform

import jax
from jax.experimental.compilation_cache import compilation_cache

from gsg_jax.console import say

MAX_BYTES = 2**30  # dozens of runs; the least recently used entries go first


def cache_folder() -> pathlib.Path:
    """Returns the folder for compiled code, unless the user has set another one.

    It holds machine code that JAX trusts, so it lies in the user's own cache folder and never in a
    workdir, which people share; a relative cache path would lie there, and is ignored. Each version
    of JAX and each kind of processor has its own folder.
    """
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():
        caches = pathlib.Path.home() / ".cache"
    return caches / "gsg_jax" / f"compiled-{jax.__version__}-{_processor()}"


def _processor() -> str:
    """What tells apart processors that do not run the same machine code."""
    about = pathlib.Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
    first = dict.fromkeys(x for x in lines if x.startswith(("model name", "flags", "Features")))
    digest = hashlib.sha256("\n".join(first or lines).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"


def use_compile_cache() -> None:
    """Makes JAX keep what it compiles from now on, and load what it has compiled before.

    JAX_COMPILATION_CACHE_DIR and the user's other settings of JAX are left as they are. A folder
    that cannot be written, or that others can write, is reported in one line, and everything is
    compiled.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (found := folder.stat()).st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{folder} is another user's, or others may write to it")
        for entry in folder.glob("*-cache"):
            # JAX writes the time last: without it the process was killed while writing.
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink(missing_ok=True)
        (folder / ".lockfile").touch()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        say(
            f"warning: the compilation cache cannot be used ({error}); the run compiles "
            "everything. Set JAX_COMPILATION_CACHE_DIR to a folder of your own"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # loading takes less
    compilation_cache.reset_cache()  # JAX may have looked for a folder already
