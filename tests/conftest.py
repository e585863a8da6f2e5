"""Strict numerics for every test: eight fake devices, and no silent rank promotion.

Compiling is most of the suite's time. It is done with little optimisation, into one cache that the
whole session shares: both workers, and every process that a test starts.
"""

import os
import resource
import shutil
import tempfile

# libtpu, which comes with the extra tpu-compile, complains where there is no TPU. tests/test_gpu.py
# says how to take a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_PLATFORMS"] == "cpu":
    _flags.append("--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])
# Eight devices wait for one another in threads of one pool. While two sums over them are under way
# at once, eight threads are too few, and the process aborts.
os.environ.setdefault("NPROC", "64")
_cache = "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="gsg_jax-")
if _cache:  # the workers, which start later, inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

from tests.runs import write_images  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# By default a save cuts every array into eight, and compiles a program for each of their shapes.
logging.set_verbosity(logging.ERROR)  # Orbax warns of the override
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
)
logging.set_verbosity(logging.WARNING)

_resident = {}  # MiB by worker


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images, which no test changes."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Keeps a worker small: what a module has compiled stays in the session's cache on disk."""
    yield
    jax.clear_caches()


def pytest_sessionfinish(session):
    """Tells the controller how large this worker has been."""
    if hasattr(session.config, "workeroutput"):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        session.config.workeroutput["resident_mib"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Notes the size that a worker has told."""
    if "resident_mib" in getattr(node, "workeroutput", {}):
        _resident[node.gateway.id] = node.workeroutput["resident_mib"]


def pytest_terminal_summary(terminalreporter):
    """Prints the largest resident memory of each worker."""
    if _resident:
        told = ", ".join(f"{name} {mib:,} MiB" for name, mib in sorted(_resident.items()))
        terminalreporter.write_line(f"largest resident memory: {told}")


def pytest_unconfigure():
    """Removes the cache that this process has made."""
    if _cache:
        shutil.rmtree(_cache, ignore_errors=True)
