"""The hosts of a run: found, joined once at the start, and told apart."""

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv

from gsg_jax import __version__
from gsg_jax import console as progress
from gsg_jax.console import UsageError, UserError
from gsg_jax.devices.line import GRACE_SECONDS, Line, meet

PORT = 8476  # of host 0, where neither the flags nor the cluster name another
TIMEOUT = 300  # seconds that hosts wait for one another at the start

_line: Line | None = None  # of this process, while it is one of several hosts


class Place(NamedTuple):
    """Where this process stands among the hosts.

    Attributes:
      coordinator: HOST:PORT of host 0.
      num_hosts: processes of the run, 1 or more.
      host: this one, in [0, num_hosts).
      local_devices: of this machine's devices those that are this process's; None for all.
    """

    coordinator: str
    num_hosts: int
    host: int
    local_devices: list[int] | None = None


def find_place(
    coordinator: str = "",
    num_hosts: int = 0,
    host_index: int = -1,
    port: int = 0,
    timeout: int = TIMEOUT,
) -> Place | None:
    """Finds out from the flags, or else from the cluster, which of several hosts this is.

    Cloud TPU, SLURM and Open MPI tell; JAX asks them, without a request on any other machine.

    Args:
      coordinator: HOST or HOST:PORT of host 0; "" to ask the cluster.
      num_hosts: of the run; 0 to ask the cluster.
      host_index: this one; -1 to ask the cluster.
      port: of host 0; 0 for the coordinator's, the cluster's or PORT.
      timeout: seconds to wait for host 0's name to be known.

    Returns:
      The place, or None where there is one host.

    Raises:
      UsageError: where a flag is missing beside others, or out of range.
      UserError: where the cluster's host 0 is not known by name.
    """
    _check_flags(coordinator, num_hosts, host_index, port, timeout)
    if coordinator:
        name, its_port = _split(coordinator)
        place = Place(f"{name}:{port or its_port or PORT}", num_hosts, host_index)
    else:
        if port:
            os.environ["JAX_COORDINATOR_PORT"] = str(port)
        place = _place_in_cluster(timeout)
    return place if (place.num_hosts or 1) > 1 else None  # outside of a cluster it has no number


@contextlib.contextmanager
def joined(place: Place | None, timeout: int = TIMEOUT) -> Iterator[None]:
    """Makes this process one of the run's hosts.

    To be entered before JAX knows its devices. A host that is lost, or that ends with an error,
    ends this process too, with a line that names it.

    Args:
      place: of find_place; None changes nothing.
      timeout: seconds to wait for the others.

    Raises:
      UserError: where a host is missing: named.
    """
    global _line
    if place is None:
        yield
        return
    progress.speak_as(place.host)
    _line = meet(
        place.coordinator,
        place.num_hosts,
        place.host,
        timeout=timeout,
        about=f"gsg_jax {__version__}, jax {jax.__version__}",
        say=progress.say_everywhere,
    )
    _abort_slowly()
    jax.distributed.initialize(
        place.coordinator,
        place.num_hosts,
        place.host,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
    )
    progress.say(f"{place.num_hosts} hosts, {jax.device_count()} devices")
    yield


def end(status: int, text: str = "") -> None:
    """Tells the other hosts that this process ends, and how; they end too where it failed."""
    if _line:
        _line.end(status, text)


def is_writer() -> bool:
    """Whether this host writes what is written once: logs, records, the last line."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether this process is one of several hosts."""
    return _line is not None


def leave_note(text: str) -> None:
    """Tells the other hosts what this one does, in place of what it told before."""
    if _line:
        _line.leave_note(text)


def notes() -> dict[int, str]:
    """What the hosts have told last, {host: text}; {} where there is only one."""
    return _line.notes() if _line else {}


def _abort_slowly() -> None:
    """Gives the line time to say who is lost: JAX aborts the process where host 0 is.

    The handler is the C library's sleep, called with the signal's number: the thread that aborts
    stops for six seconds, twice the line's GRACE_SECONDS, and the others go on. Python's own
    handlers would run too late, and JAX's callback takes the process down with an error of its own.
    """
    assert signal.SIGABRT > GRACE_SECONDS
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (
        (ctypes.c_int, ctypes.c_void_p),
        ctypes.c_void_p,
    )
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _place_in_cluster(timeout: int) -> Place:
    try:
        place = Place(
            *ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
        )
    except RuntimeError as error:
        raise UserError(f"the cluster's host 0 is not found: {error}") from error
    return place._replace(local_devices=None) if _is_alone_on_its_machine() else place


def _is_alone_on_its_machine() -> bool:
    """Whether the cluster has begun one process a machine, which then has all of its devices.

    JAX takes it for one process a device, and would leave the others idle.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE", ""
    )
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def _split(coordinator: str) -> tuple[str, int]:
    """HOST:PORT, HOST or [IPv6]:PORT to its name and port, 0 where there is none."""
    name, colon, port = coordinator.rpartition(":")
    if not colon or coordinator.endswith("]"):
        return coordinator, 0
    if not name or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UsageError(f"--coordinator={coordinator}: must be HOST or HOST:PORT, of host 0")
    return name, int(port)


def _check_flags(
    coordinator: str, num_hosts: int, host_index: int, port: int, timeout: int
) -> None:
    given = {
        "--coordinator": bool(coordinator),
        "--num_hosts": num_hosts != 0,
        "--host_index": host_index != -1,
    }
    missing = [flag for flag, is_given in given.items() if not is_given]
    if missing and len(missing) < len(given):
        raise UsageError(
            f"{' and '.join(missing)} missing: give --coordinator=HOST:PORT, --num_hosts=N and "
            "--host_index=I together, or none of them where the cluster tells"
        )
    if not missing and num_hosts < 1:
        raise UsageError(f"--num_hosts={num_hosts}: must be 1 or more")
    if not missing and not 0 <= host_index < num_hosts:
        raise UsageError(f"--host_index={host_index}: must be from 0 to {num_hosts - 1}")
    if not 0 <= port <= 65535:
        raise UsageError(
            f"--port={port}: must be from 1 to 65535, or 0 for {PORT} or the cluster's"
        )
    if timeout < 1:
        raise UsageError(f"--host_timeout={timeout}: must be 1 s or more")
    _split(coordinator)
