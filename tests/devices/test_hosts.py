"""Which of several hosts a process is: named by flags or the cluster; wrong flags are reported."""

import socket

import jax
import pytest

from gsg_jax import console, main
from gsg_jax.console import UserError
from gsg_jax.devices import hosts
from gsg_jax.devices.hosts import HostFlags, are_several, is_writer, join_hosts
from tests.runs import config, refused

TIMEOUTS = (
    "initialization_timeout",
    "heartbeat_timeout_seconds",
    "shutdown_timeout_seconds",
)


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked for in place of joining."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: asked.update(how))
    yield asked
    console.set_host(0)


def test_a_process_without_flags_or_cluster_is_alone(monkeypatch):
    join_hosts(HostFlags(), ask_cluster=False)
    assert is_writer() and not are_several()

    def find_no_cluster(**_):
        raise ValueError("coordinator_address should be defined.")  # as JAX does

    monkeypatch.setattr(jax.distributed, "initialize", find_no_cluster)
    join_hosts(HostFlags(), ask_cluster=True)
    with pytest.raises(ValueError, match="coordinator_address"):
        join_hosts(HostFlags(f"127.0.0.1:{free_port()}", 2, 0), ask_cluster=True)
    assert not are_several()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_host_0_listens_at_the_coordinators_address_alone(joined):
    address = f"127.0.0.1:{free_port()}"
    join_hosts(HostFlags(address, 3, 0, timeout=90), ask_cluster=True)
    place = {"coordinator_address": address, "coordinator_bind_address": address}
    place |= {"num_processes": 3, "process_id": 0, "cluster_detection_method": "deactivate"}
    assert joined == place | dict(zip(TIMEOUTS, (90, 60, 3600), strict=True))


def test_a_name_that_its_own_machine_maps_to_loopback_is_not_listened_at_alone(joined, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    for name, is_alone in (("first-host", False), ("localhost", True)):
        join_hosts(HostFlags(name, 2, 0), ask_cluster=False)
        bound = joined["coordinator_bind_address"]
        assert bound == (f"{name}:{hosts.PORT}" if is_alone else None)


@pytest.mark.parametrize("timeout", [7, 1000])
def test_a_short_wait_shortens_the_heartbeat_too(joined, timeout):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        join_hosts(HostFlags("127.0.0.1:9", 2, 1, port, timeout), ask_cluster=False)
    assert joined["coordinator_address"] == f"127.0.0.1:{port}"
    assert joined["heartbeat_timeout_seconds"] == min(timeout, 60)
    assert "coordinator_bind_address" not in joined


@pytest.mark.parametrize("port", [0, 4321])
@pytest.mark.parametrize(
    ("environment", "local_devices"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, []),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({}, None),
    ],
)
def test_jax_asks_the_cluster_and_one_process_a_machine_has_all_its_devices(
    joined, monkeypatch, environment, local_devices, port
):
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")  # put back what join_hosts sets
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_hosts(HostFlags(port=port), ask_cluster=True)
    assert joined.pop("local_device_ids") == local_devices
    assert set(joined) == set(TIMEOUTS)
    assert hosts.os.environ["JAX_COORDINATOR_PORT"] == (str(port) if port else "")


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_one_task_of_a_cluster_is_alone(joined, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    join_hosts(HostFlags(), ask_cluster=True)
    assert not joined


def test_a_coordinator_that_does_not_answer_or_listen_gets_one_line(joined):
    with pytest.raises(UserError, match=r"host 0 of 2 does not answer at 127.0.0.1:\d+ within 1 s"):
        join_hosts(HostFlags(f"127.0.0.1:{free_port()}", 2, 1, timeout=1), ask_cluster=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"host 0 cannot listen at {address} .*another --port"):
            join_hosts(HostFlags(address, 2, 0), ask_cluster=False)
    assert not joined


@pytest.mark.parametrize(
    ("coordinator", "port", "address"),
    [
        ("ten:1234", 0, "ten:1234"),
        ("ten", 0, f"ten:{hosts.PORT}"),
        ("ten", 99, "ten:99"),
        ("ten:1234", 99, "ten:99"),
        ("[::1]:1234", 0, "[::1]:1234"),
        ("[::1]", 7, "[::1]:7"),
    ],
)
def test_the_port_is_the_flags_the_coordinators_or_our_own(
    joined, monkeypatch, coordinator, port, address
):
    monkeypatch.setattr(hosts, "_wait_for_coordinator", lambda *_: None)
    join_hosts(HostFlags(coordinator, 3, 2, port), ask_cluster=False)
    assert joined["coordinator_address"] == address


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_hosts=2"], "--coordinator and --host_index missing"),
        (["--coordinator=a", "--num_hosts=2", "--host_index=2"], "--host_index=2: must be from 0"),
        (["--coordinator=a", "--num_hosts=-1", "--host_index=0"], "--num_hosts=-1: must be 1"),
        (["--coordinator=a:b", "--num_hosts=2", "--host_index=0"], "--coordinator=a:b: must be"),
        (["--coordinator=:8", "--num_hosts=2", "--host_index=0"], "--coordinator=:8: must be"),
        (["--port=70000"], "--port=70000: must be from 1 to 65535"),
        (["--host_timeout=0"], "--host_timeout=0: must be 1 s or more"),
    ],
)
def test_wrong_flags_are_named_with_their_limits(flags, said, tmp_path):
    assert said in refused(config("simsiam"), f"--workdir={tmp_path}", *flags, status=2)
    assert not list(tmp_path.iterdir())


def test_a_job_of_one_file_is_refused_on_several_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "are_several", lambda: True)
    said = refused(config("export"), f"--workdir={tmp_path}", status=2)
    assert "the job export runs on one host, not on several" in said
