"""Which of several hosts a process is: told by flags, or by the cluster; wrong flags are named."""

import pytest

from gsg_jax.console import UsageError
from gsg_jax.devices import hosts
from tests.runs import call, config


def test_without_flags_or_cluster_there_is_one_host(monkeypatch):
    assert hosts.find_place() is None
    assert hosts.is_writer() and hosts.notes() == {} and not hosts.are_several()
    hosts.leave_note("nobody reads this")
    assert hosts.notes() == {}


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
def test_flags_name_the_place(coordinator, port, address):
    place = hosts.find_place(coordinator, 3, 2, port)
    assert place == hosts.Place(address, 3, 2, None)
    assert hosts.find_place(coordinator, 1, 0, port) is None


SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "node[007-010],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
    ("environment", "port", "place"),
    [
        (SLURM, 0, ("node007:62344", 4, 3, [0])),
        (SLURM, 4321, ("node007:4321", 4, 3, [0])),
        (OPEN_MPI, 4321, ("10.96.0.1:4321", 2, 1, [1])),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, 9, ("node007:9", 4, 3, None)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, 9, ("node007:9", 4, 3, [0])),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 9, ("10.96.0.1:9", 2, 1, None)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 0, None),
    ],
)
def test_slurm_and_open_mpi_tell_the_place(monkeypatch, environment, port, place):
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")  # put back what find_place sets
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.find_place(port=port) == (place and hosts.Place(*place))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_hosts=2"], "--coordinator and --host_index missing"),
        (["--coordinator=a", "--num_hosts=2"], "--host_index missing"),
        (["--coordinator=a", "--num_hosts=2", "--host_index=2"], "--host_index=2: must be from 0"),
        (["--coordinator=a", "--num_hosts=-1", "--host_index=0"], "--num_hosts=-1: must be 1"),
        (["--coordinator=a:b", "--num_hosts=2", "--host_index=0"], "--coordinator=a:b: must be"),
        (["--coordinator=:8", "--num_hosts=2", "--host_index=0"], "--coordinator=:8: must be"),
        (["--port=70000"], "--port=70000: must be from 1 to 65535"),
        (["--host_timeout=0"], "--host_timeout=0: must be 1 s or more"),
    ],
)
def test_wrong_flags_are_named_with_their_limits(flags, said, tmp_path):
    status, out, err = call(config("simsiam"), f"--workdir={tmp_path}", *flags)
    assert (status, out) == (2, "") and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", ["export", "import_torch"])
def test_a_job_of_one_file_is_refused_on_several_hosts(job, tmp_path):
    flags = ["--coordinator=a", "--num_hosts=2", "--host_index=0"]
    status, _, err = call(config(job), f"--workdir={tmp_path}", *flags)
    assert status == 2 and f"the job {job} runs on one host, not 2" in err


def test_a_place_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="--host_index missing"):
        hosts.find_place("a", 2)
