"""gke_xpk.sh with its Dockerfile, and skypilot.sh with its yaml."""

import pytest
import yaml

from tests.launch.conftest import ROOT
from tests.launch.test_launch_arguments import BUCKET, GKE
from tests.launch.test_tpu_vm import AWKWARD

pytestmark = pytest.mark.extended

SKYPILOT = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
# sky cannot pass on a line break.
FLAGS = tuple(flag for flag in AWKWARD if "\n" not in flag)


def workload(desk, source: list[str], **others: str) -> list[str]:
    """The call of xpk without the command."""
    return [
        *("xpk", "workload", "create", "--cluster=blue", "--workload=one", "--project=lab"),
        *("--zone=us-west4-a", "--tpu-type=v5litepod-16"),
        *(f"--num-slices={others.get('slices', '1')}", *source, "--storage=runs"),
        *(f"--max-restarts={others.get('restarts', '20')}", "--restart-on-exit-codes=3-126"),
        "--termination-grace-period-seconds=300",
    ]


def test_an_image_is_built_pushed_and_run(desk):
    assert desk.call("gke_xpk.sh", **GKE)[0] == 0
    dockerfile = desk.root / "launch" / "Dockerfile"
    assert desk.calls[:2] == [
        [
            *("docker", "build", "--platform=linux/amd64", "--tag=gcr.io/lab/gsg_jax"),
            *(f"--file={dockerfile}", str(desk.root)),
        ],
        ["docker", "push", "gcr.io/lab/gsg_jax"],
    ]
    *call, command = desk.calls[2]
    assert call == workload(desk, ["--docker-image=gcr.io/lab/gsg_jax"])
    assert command == (
        "--command=exec /app/launch/run_status.sh python -m gsg_jax.main "
        "--config=configs/simsiam_gsg.py --workdir=/gcs/lab-runs/one"
    )
    done = len(desk.calls)
    desk.answers({"docker build": [("", 1)]})
    assert desk.call("gke_xpk.sh", **GKE)[0] == 1 and len(desk.calls) == done + 1


def test_a_base_image_needs_no_docker(desk):
    variables = {name: value for name, value in GKE.items() if name != "IMAGE"}
    variables |= {"BASE_IMAGE": "gcr.io/lab/base", "NUM_SLICES": "2", "MAX_RESTARTS": "5"}
    assert desk.call("gke_xpk.sh", **variables)[0] == 0
    ((*call, _),) = desk.calls
    source = ["--base-docker-image=gcr.io/lab/base", f"--script-dir={desk.root}"]
    assert call == workload(desk, source, slices="2", restarts="5")


def test_flags_reach_the_container_as_they_were_given(desk):
    data = {"DATA_DIR": "gs://lab-runs/tfds"}
    desk.call("gke_xpk.sh", *AWKWARD, **GKE | data)
    command = desk.calls[-1][-1].removeprefix("--command=")
    # xpk puts it into the container's shell as one line.
    assert "\n" not in command
    line = f"({command.replace('/app/launch/run_status.sh', 'sky')}) & PID=$!\nwait $PID\n"
    assert desk.remote(line)[0] == 0
    assert desk.calls[-1] == [
        *("sky", "python", "-m", "gsg_jax.main", "--config=configs/simsiam_gsg.py"),
        *("--workdir=/gcs/lab-runs/one", "--config.data.dir=/gcs/lab-runs/tfds", *AWKWARD),
    ]


def test_a_managed_spot_job_is_launched(desk):
    data = {"CONFIG": "configs/byol.py", "DATA_DIR": "gs://lab-runs/tfds"}
    flags = ("--gpus=tpu-v6e-16", "--name=a b", "--", *FLAGS)
    assert desk.call("skypilot.sh", *flags, **BUCKET, **data)[0] == 0
    lines = "".join(f"{flag}\n" for flag in ("--config.data.dir=/gcs/lab-runs/tfds", *FLAGS))
    assert desk.calls == [
        [
            *("sky", "jobs", "launch", "--yes", "--detach-run", "--env=BUCKET=lab-runs"),
            *("--env=WORKDIR=/gcs/lab-runs/one", "--env=CONFIG=configs/byol.py"),
            *(f"--env=FLAGS={lines}", "--gpus=tpu-v6e-16", "--name=a b", "launch/skypilot.yaml"),
        ]
    ]
    status, _, err = desk.call("skypilot.sh", "--config.n=a\nb", **BUCKET)
    assert status == 2 and "line break" in err and len(desk.calls) == 1


def test_the_job_asks_for_spot_capacity_the_scripts_variables_and_the_bucket(desk):
    resources = SKYPILOT["resources"]
    assert resources["use_spot"] is True and resources["accelerators"].startswith("tpu-")
    again = resources["job_recovery"]["recover_on_exit_codes"]
    # Stopped and saved; aborted, killed, segmentation fault, stood still.
    assert again == [75, 134, 137, 139, 142]
    assert SKYPILOT["num_nodes"] == 1 and SKYPILOT["workdir"] == "."
    desk.call("skypilot.sh", **BUCKET)
    given = {word.split("=")[1] for word in desk.calls[0] if word.startswith("--env=")}
    assert given == set(SKYPILOT["envs"]) and set(SKYPILOT["envs"].values()) == {None}
    (mount,) = SKYPILOT["file_mounts"].items()
    assert mount == ("/gcs/${BUCKET}", {"source": "gs://${BUCKET}", "mode": "MOUNT"})


def test_the_job_sets_up_and_runs_with_the_flags_as_they_were_given(desk):
    assert desk.remote(SKYPILOT["setup"], "gsg_jax")[0] == 0
    assert [call[0] for call in desk.calls] == ["make", "pip"]
    for flags in (FLAGS, ()):
        variables = {"CONFIG": "configs/byol.py", "WORKDIR": "/gcs/lab-runs/my run"}
        variables["FLAGS"] = "".join(f"{flag}\n" for flag in flags)
        assert desk.remote(SKYPILOT["run"], "gsg_jax", **variables)[0] == 0
        assert desk.calls[-1] == [
            *("python", "-m", "gsg_jax.main", "--config=configs/byol.py"),
            *("--workdir=/gcs/lab-runs/my run", *flags),
        ]
