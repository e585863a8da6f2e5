"""The hosts of a run: joined once at the start by JAX, and told apart."""

import os
import re
import socket
import time
from typing import NamedTuple

import jax

from gsg_jax.console import UsageError, UserError, say, set_host

PORT = 8476  # of host 0, unless the flags or the cluster name another
START_SECONDS = 300
HEARTBEAT_SECONDS = 60  # of silence, after which JAX ends the others
# For a host that has finished while host 0 still writes a report. A host lost meanwhile is
# noticed by its heartbeat.
_SHUTDOWN_SECONDS = 3600


class HostFlags(NamedTuple):
    """The flags that place a process among the hosts.

    Attributes:
      coordinator: HOST or HOST:PORT of host 0; "" to ask the cluster.
      num_hosts: processes of the run; 0 to ask the cluster.
      host_index: of this process, from 0; -1 to ask the cluster.
      port: of host 0; 0 for the coordinator's, the cluster's or PORT.
      timeout: seconds to wait for a missing host at the start; later at most HEARTBEAT_SECONDS.
    """

    coordinator: str = ""
    num_hosts: int = 0
    host_index: int = -1
    port: int = 0
    timeout: int = START_SECONDS


def check_host_flags(flags: HostFlags) -> None:
    """Raises UsageError if a flag is out of range, or given without those that belong to it."""
    given = {
        "--coordinator": bool(flags.coordinator),
        "--num_hosts": flags.num_hosts != 0,
        "--host_index": flags.host_index != -1,
    }
    missing = [flag for flag, is_given in given.items() if not is_given]
    if missing and len(missing) < len(given):
        raise UsageError(
            f"{' and '.join(missing)} missing: give --coordinator=HOST:PORT, --num_hosts=N and "
            "--host_index=I together, or none of them if the cluster sets them"
        )
    if not missing and flags.num_hosts < 1:
        raise UsageError(f"--num_hosts={flags.num_hosts}: must be 1 or more")
    if not missing and not 0 <= flags.host_index < flags.num_hosts:
        raise UsageError(
            f"--host_index={flags.host_index}: must be from 0 to {flags.num_hosts - 1}"
        )
    if not 0 <= flags.port <= 65535:
        raise UsageError(
            f"--port={flags.port}: must be from 1 to 65535, or 0 for {PORT} or the cluster's"
        )
    if flags.timeout < 1:
        raise UsageError(f"--host_timeout={flags.timeout}: must be 1 s or more")
    _address(flags)


def join_hosts(flags: HostFlags, ask_cluster: bool) -> None:
    """Makes this process one of the run's hosts; to be called before JAX knows its devices.

    If a host is lost later, JAX ends the others (SIGABRT, status 134) within HEARTBEAT_SECONDS.

    Args:
      flags: of the command line, checked.
      ask_cluster: whether Cloud TPU, SLURM or Open MPI may name the place if the flags do not.

    Raises:
      UserError: if the coordinator cannot be reached, or its port cannot be opened.
    """
    if flags.coordinator and flags.num_hosts > 1:
        set_host(flags.host_index)
        place = _place_by_flags(flags)
    elif not flags.coordinator and ask_cluster and _num_tasks() != "1":
        if flags.port:
            os.environ["JAX_COORDINATOR_PORT"] = str(flags.port)
        # JAX assumes one process per device; a machine's only process gets all of its devices.
        place = {"local_device_ids": [] if _has_machine_alone() else None}
    else:
        return
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=flags.timeout,
            heartbeat_timeout_seconds=min(flags.timeout, HEARTBEAT_SECONDS),
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if "coordinator_address" in str(error) and not flags.coordinator:
            return  # there is no cluster
        raise
    except RuntimeError as error:
        raise UserError(f"the hosts could not be joined: {error}") from error
    set_host(jax.process_index())
    if are_several():
        say(f"{jax.process_count()} hosts, {jax.device_count()} devices")


def is_writer() -> bool:
    """Whether this host writes what is written once: logs, records, the last line.

    JAX is asked only on several hosts, since it then takes the devices.
    """
    return not are_several() or jax.process_index() == 0


def are_several() -> bool:
    """Whether this process is one of several hosts."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _place_by_flags(flags: HostFlags) -> dict[str, str | int | None]:
    address = _address(flags)
    place = {
        "coordinator_address": address,
        "num_processes": flags.num_hosts,
        "process_id": flags.host_index,
        "cluster_detection_method": "deactivate",
    }
    say(f"waiting up to {flags.timeout} s for {flags.num_hosts} hosts at {address}")
    if flags.host_index:
        _wait_for_coordinator(address, flags)
        return place
    bound = None if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ else _own_address(address)
    return place | {"coordinator_bind_address": bound}


def _wait_for_coordinator(address: str, flags: HostFlags) -> None:
    """Waits until host 0 listens: JAX would otherwise abort, and name no address."""
    deadline, reason = time.monotonic() + flags.timeout, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection(_host_and_port(address), min(left, 5)).close()
            return
        except OSError as error:
            reason = error.strerror or type(error).__name__
            time.sleep(min(0.2, left))
    raise UserError(
        f"host 0 of {flags.num_hosts} does not answer at {address} within {flags.timeout} s "
        f"({reason}): start it there, or give all hosts its address as --coordinator=HOST:PORT"
    )


def _own_address(address: str) -> str | None:
    """The one address that host 0 listens at; None for every interface, which is JAX's default.

    A machine may map its own name to loopback, which other hosts could not reach: then the
    result is None.

    Raises:
      UserError: if the address is not this machine's, or its port is taken. JAX would crash.
    """
    name, port = _host_and_port(address)
    try:
        family, *_, found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(found[:2], family=family).close()
    except OSError as error:
        raise UserError(
            f"host 0 cannot listen at {address} ({error.strerror}): give all hosts its own "
            "address as --coordinator=HOST:PORT, or another --port"
        ) from error
    is_loopback = found[0].startswith("127.") or found[0] == "::1"
    return None if is_loopback and name not in (found[0], "localhost") else address


def _address(flags: HostFlags) -> str:
    """HOST:PORT of host 0; "" without a coordinator."""
    if not flags.coordinator:
        return ""
    name, colon, port = flags.coordinator.rpartition(":")
    if not colon or flags.coordinator.endswith("]"):  # HOST or [IPv6]
        name, port = flags.coordinator, str(PORT)
    if not name or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UsageError(f"--coordinator={flags.coordinator}: must be HOST or HOST:PORT, of host 0")
    return f"{name}:{flags.port or port}"


def _host_and_port(address: str) -> tuple[str, int]:
    name, _, port = address.rpartition(":")
    return name.strip("[]"), int(port)


def _num_tasks() -> str:
    return os.environ.get("SLURM_NTASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE", "")


def _has_machine_alone() -> bool:
    """Whether SLURM or Open MPI started one process per machine."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE", ""
    )
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
