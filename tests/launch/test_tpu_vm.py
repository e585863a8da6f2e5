"""The commands of tpu_vm_*.sh, and what they do on the workers."""

import subprocess
import tarfile

import pytest

from tests.launch.test_launch_arguments import KIND, TPU_VM

pytestmark = pytest.mark.extended

WHERE = ["--project=lab", "--zone=us-west4-a"]
TPUS = ["gcloud", "compute", "tpus"]
# What a shell would split or expand without quotes.
AWKWARD = ("--config.data.dir=a  b", "--config.x=it's", '--config.y="q"', "--config.z=$HOME;`x`")
AWKWARD += ("--config.views.blur_probability=(0.0,)", "--config.e=", "*", "--config.n=a\nb")


def test_create_makes_one_call_and_ends_with_its_status(desk):
    more = {"SPOT": "1", "NETWORK": "n", "SUBNETWORK": "s", "SERVICE_ACCOUNT": "a@b"}
    desk.answers({"--spot": [("", 3)]})
    assert desk.call("tpu_vm_create.sh", **TPU_VM, **KIND)[0] == 0
    assert desk.call("tpu_vm_create.sh", **TPU_VM, **KIND, **more)[0] == 3
    kind = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
    asked = ["--network=n", "--subnetwork=s", "--service-account=a@b", "--spot"]
    create = [*TPUS, "tpu-vm", "create", "pod", *kind]
    assert desk.calls == [[*create, *WHERE], [*create, *asked, *WHERE]]


def test_setup_copies_installs_and_mounts_each_bucket_once(desk):
    folders = {"WORKDIR": "gs://lab-runs/one", "DATA_DIR": "gs://lab-data/tfds"}
    assert desk.call("tpu_vm_setup.sh", **TPU_VM, **folders)[0] == 0
    archive = str(desk.root / "runs" / "pod.tar.gz")
    git = ["git", "-C", str(desk.root)]
    remote = (
        "mkdir -p gsg_jax && tar -xzf gsg_jax.tar.gz -C gsg_jax && cd gsg_jax && "
        "launch/worker_setup.sh tpu lab-runs lab-data"
    )
    assert desk.calls == [
        [*git, "status", "--porcelain"],
        [*git, "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        [*TPUS, "tpu-vm", "scp", archive, "pod:gsg_jax.tar.gz", "--worker=all", *WHERE],
        [*TPUS, "tpu-vm", "ssh", "pod", "--worker=all", f"--command={remote}", *WHERE],
    ]
    desk.call("tpu_vm_setup.sh", **TPU_VM, **folders | {"DATA_DIR": "gs://lab-runs/tfds"})
    assert any(word.endswith("worker_setup.sh tpu lab-runs") for word in desk.calls[-1])
    desk.call("tpu_vm_setup.sh", **TPU_VM, WORKDIR="/shared/one")
    assert any(word.endswith("worker_setup.sh tpu") for word in desk.calls[-1])


def test_what_is_committed_reaches_the_workers_and_is_installed(desk):
    (desk.folder / "bin" / "git").unlink()
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "launch"], [*identity, "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", desk.root, *arguments], check=True)
    (desk.root / "launch" / "new.sh").touch()
    status, _, err = desk.call("tpu_vm_setup.sh", **TPU_VM, WORKDIR="gs://lab-runs/one")
    assert status == 0 and "warning: uncommitted changes" in err and "launch/new.sh" in err
    assert not list((desk.root / "runs").iterdir())
    with tarfile.open(desk.folder / "copied.tar.gz") as archive:
        names = archive.getnames()
    assert "launch/worker_setup.sh" in names and "launch/new.sh" not in names

    (remote,) = [word for word in desk.calls[-1] if word.startswith("--command=")]
    (desk.folder / "copied.tar.gz").rename(desk.folder / "gsg_jax.tar.gz")
    desk.answers({"mountpoint": [("", 1)]})
    done = len(desk.calls)
    status, _, err = desk.remote(remote.removeprefix("--command="))
    assert status == 0, err
    calls = desk.calls[done:]
    assert calls[:2] == [
        ["make", "setup", "PYTHON=python3"],
        ["pip", "install", "-q", "-e", ".[tpu]"],
    ]
    assert calls[2] == ["mountpoint", "-q", "/gcs/lab-runs"]
    assert ["sudo", "mkdir", "-p", "/gcs/lab-runs"] in calls
    assert calls[-1][0] == "gcsfuse" and calls[-1][-2:] == ["lab-runs", "/gcs/lab-runs"]
    # gcsfuse renames no folder by default, and a rename commits a checkpoint.
    assert "--rename-dir-limit=200000" in calls[-1]
    desk.answers({})  # it is mounted
    done = len(desk.calls)
    assert desk.call("worker_setup.sh", "tpu", "lab-runs")[0] == 0
    assert [call[0] for call in desk.calls[done:]] == ["make", "pip", "mountpoint"]


def test_flags_reach_the_workers_as_they_were_given(desk):
    variables = TPU_VM | {"CONFIG": "configs/byol.py:imagenet", "DATA_DIR": "gs://lab-data/tfds"}
    status, _, _ = desk.call("tpu_vm_run.sh", *AWKWARD, **variables, WORKDIR="gs://lab-runs/my run")
    assert status == 0 and len(desk.calls) == 1
    *call, command, project, zone = desk.calls[0]
    assert call == [*TPUS, "tpu-vm", "ssh", "pod", "--worker=all"] and [project, zone] == WHERE
    # Instead of the real one, which starts a process.
    stand_in = (desk.folder / "bin" / "sky").read_text()
    (desk.root / "launch" / "detached.sh").write_text(stand_in)
    status, _, err = desk.remote(command.removeprefix("--command="))
    assert status == 0, err
    assert desk.calls[-1] == [
        *("detached.sh", "start", ".venv/bin/python", "-m", "gsg_jax.main"),
        *("--config=configs/byol.py:imagenet", "--workdir=/gcs/lab-runs/my run"),
        *("--config.data.dir=/gcs/lab-data/tfds", *AWKWARD),
    ]


def test_a_dry_run_prints_a_line_that_calls_the_same(desk):
    variables = TPU_VM | {"WORKDIR": "gs://lab-runs/my run"}
    _, line, _ = desk.call("tpu_vm_run.sh", "--dry-run", *AWKWARD, **variables)
    desk.call("tpu_vm_run.sh", *AWKWARD, **variables)
    assert desk.remote(line)[0] == 0
    assert len(desk.calls) == 2 and desk.calls[0] == desk.calls[1]


def test_status_asks_for_the_machine_all_runs_and_one_log(desk):
    desk.answers(
        {"describe": ["READY\tHEALTHY\n"], " state": ["state: running\n"], " log": ["x\n"]}
    )
    status, out, _ = desk.call("tpu_vm_status.sh", **TPU_VM, LINES_OF_LOG="5")
    assert (status, out) == (0, "READY\tHEALTHY\nstate: running\nx\n")
    state = "if [ -x gsg_jax/launch/detached.sh ]; then gsg_jax/launch/detached.sh state; "
    state += "else echo state: none; fi"
    ssh = [*TPUS, "tpu-vm", "ssh", "pod"]
    assert desk.calls == [
        [*TPUS, "tpu-vm", "describe", "pod", "--format=value(state,health)", *WHERE],
        [*ssh, "--worker=all", f"--command={state}", *WHERE],
        [*ssh, "--worker=0", "--command=gsg_jax/launch/detached.sh log 5", *WHERE],
    ]
    assert desk.remote(state)[1] == "state: none\n"
    (desk.root / "launch" / "detached.sh").unlink()
    assert desk.remote(state)[1] == "state: none\n"


def test_delete_asks_nobody_and_takes_a_queued_resource_with_it(desk):
    desk.call("tpu_vm_delete.sh", **TPU_VM)
    desk.call("tpu_vm_delete.sh", "--queued", **TPU_VM)
    assert desk.calls == [
        [*TPUS, "tpu-vm", "delete", "pod", "--quiet", *WHERE],
        [*TPUS, "queued-resources", "delete", "pod", "--force", "--quiet", *WHERE],
    ]


def test_prepared_data_goes_to_the_bucket_after_it_is_whole(desk):
    variables = {"NAME": "cifar10", "DATA_DIR": "gs://lab-data/tfds/", "TFDS_DIR": "/data/my sets"}
    assert desk.call("prepare_data.sh", "--manual_dir=/m n", **variables)[0] == 0
    assert desk.calls == [
        [
            *("python", "-m", "gsg_jax", "prepare", "cifar10"),
            *("--data_dir=/data/my sets", "--manual_dir=/m n"),
        ],
        [
            *("gcloud", "storage", "rsync", "--recursive"),
            *("/data/my sets/cifar10", "gs://lab-data/tfds/cifar10"),
        ],
    ]
    desk.answers({"gsg_jax prepare": [("", 1)]})
    assert desk.call("prepare_data.sh", **variables)[0] == 1
    assert len(desk.calls) == 3  # nothing was copied
