"""Strict numerics for every test: eight fake devices, and no silent rank promotion.

Compiling is most of the suite's time: it is done with little optimisation, and what one test, or
a run that a test starts, has compiled is kept for the next.
"""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# Eight devices wait for one another in threads of one pool. Where two sums over them are under way
# at once, eight threads are too few, and the process aborts.
os.environ.setdefault("NPROC", "64")
_cache = "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="gsg_jax-")
if _cache:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    """Removes the cache that this process made."""
    if _cache:
        shutil.rmtree(_cache, ignore_errors=True)
