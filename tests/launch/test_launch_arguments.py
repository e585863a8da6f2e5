"""How every script that a person starts reads its arguments."""

import pytest

from tests.launch.conftest import ROOT

pytestmark = pytest.mark.extended

TPU_VM = {"PROJECT": "lab", "ZONE": "us-west4-a", "TPU_NAME": "pod"}
KIND = {"ACCELERATOR_TYPE": "v5litepod-16", "RUNTIME_VERSION": "v2-alpha-tpuv5-lite"}
BUCKET = {"WORKDIR": "gs://lab-runs/one"}
GKE = {"PROJECT": "lab", "ZONE": "us-west4-a", "CLUSTER": "blue", "WORKLOAD": "one"}
GKE |= {"TPU_TYPE": "v5litepod-16", "STORAGE": "runs", "IMAGE": "gcr.io/lab/gsg_jax"} | BUCKET

NEEDED = {
    "tpu_vm_create.sh": TPU_VM | KIND,
    "tpu_vm_setup.sh": TPU_VM,
    "tpu_vm_run.sh": TPU_VM | BUCKET,
    "tpu_vm_status.sh": TPU_VM,
    "tpu_vm_delete.sh": TPU_VM,
    "queued_resource.sh": TPU_VM | KIND | BUCKET,
    "gke_xpk.sh": GKE,
    "slurm.sbatch": {"WORKDIR": "/shared/one"},
    "skypilot.sh": BUCKET,
    "prepare_data.sh": {"NAME": "cifar10", "DATA_DIR": "gs://lab-runs/tfds"},
}
TAKE_FLAGS = ("tpu_vm_run.sh", "queued_resource.sh", "gke_xpk.sh", "slurm.sbatch", "skypilot.sh")


def test_every_script_that_a_person_starts_is_tested_here():
    started_by_others = {"local.sh", "local_multihost.sh", "worker_setup.sh", "detached.sh"}
    started_by_others |= {"run_status.sh"}
    sourced = {"commands.sh", "buckets.sh", "tpu_vm.sh"}
    scripts = {path.name for path in (ROOT / "launch").iterdir() if path.suffix != ".yaml"}
    assert scripts - {"Dockerfile"} - started_by_others - sourced == set(NEEDED)
    assert all((ROOT / "launch" / name).stat().st_mode & 0o100 for name in NEEDED)


@pytest.mark.parametrize("script", NEEDED)
def test_a_dry_run_says_what_it_would_run_and_runs_nothing(desk, script):
    before = sorted(desk.root.rglob("*"))
    status, out, err = desk.call(script, "--dry-run", **NEEDED[script])
    assert (status, err) == (0, "") and out
    assert desk.calls == []
    assert sorted(desk.root.rglob("*")) == before


@pytest.mark.parametrize("script", NEEDED)
def test_all_missing_variables_are_named_and_help_says_what_they_are(desk, script):
    status, out, err = desk.call(script)
    assert (status, out) == (2, "")
    named = err.removeprefix("error: not set: ").split(";")[0].split(", ")
    assert sorted(named) == sorted(NEEDED[script]) and err.count("\n") == 1
    status, out, err = desk.call(script, "--help")
    assert (status, err) == (0, "") and f"launch/{script}" in out
    assert all(name in out for name in NEEDED[script]) and "--dry-run" in out
    assert "#" not in out and desk.calls == []


@pytest.mark.parametrize(
    ("script", "name", "value"),
    [
        ("queued_resource.sh", "WORKDIR", "/home/me/run"),
        ("queued_resource.sh", "WORKDIR", "gs://lab-runs"),
        ("queued_resource.sh", "MAX_RESTARTS", "many"),
        ("queued_resource.sh", "POLL_SECONDS", "soon"),
        ("gke_xpk.sh", "WORKDIR", "/home/me/run"),
        ("gke_xpk.sh", "BASE_IMAGE", "gcr.io/lab/base"),
        ("skypilot.sh", "WORKDIR", "runs/one"),
        ("skypilot.sh", "DATA_DIR", "gs://lab-data/tfds"),
        ("slurm.sbatch", "WORKDIR", "gs://lab-runs/one"),
        ("prepare_data.sh", "NAME", "../cifar10"),
    ],
)
def test_an_impossible_value_is_refused_by_name(desk, script, name, value):
    status, out, err = desk.call(script, **NEEDED[script] | {name: value})
    assert (status, out) == (2, "") and desk.calls == []
    assert err.startswith("error: ") and name in err and err.count("\n") == 1


def test_a_dry_run_is_one_wherever_its_flag_stands_and_a_flag_that_would_be_dropped_is_refused(
    desk,
):
    for script in sorted(set(NEEDED) - {"prepare_data.sh"}):
        flags = ("--config.run.seed=1", "--dry-run")
        status, out, err = desk.call(script, *flags, **NEEDED[script])
        assert status == (0 if script in TAKE_FLAGS else 2)
        told = out if script in TAKE_FLAGS else err
        assert "--config.run.seed=1" in told and "--dry-run" not in out
    variables = NEEDED["tpu_vm_run.sh"] | {"ZONE": ""}
    status, out, err = desk.call("tpu_vm_run.sh", "--dry-run", **variables)
    assert (status, out) == (2, "") and err.startswith("error: not set: ZONE; ")
    assert desk.calls == []


@pytest.mark.parametrize("script", NEEDED)
def test_no_variable_of_the_environment_is_read_as_shell(desk, tmp_path, script):
    touch = f"touch${{IFS}}{tmp_path / 'trap'}"  # without spaces: the name of a resource has none
    trap = f"$({touch})`{touch}`;{touch};"
    folder = trap if script == "slurm.sbatch" else f"gs://lab-runs/{trap}"
    variables = dict.fromkeys(NEEDED[script], trap) | {"CONFIG": trap, "TFDS_DIR": trap}
    variables |= dict.fromkeys(("NETWORK", "SUBNETWORK", "SERVICE_ACCOUNT", "SPOT"), trap)
    variables |= {"WORKDIR": folder, "DATA_DIR": folder, "NAME": "cifar10", "POLL_SECONDS": "0"}
    variables |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(desk.root)}  # srun, not sbatch
    listed = ["", f"{trap}\tACTIVE\n"]
    states = ["state: none\n", "state: done\n"]
    desk.answers({"queued-resources list": listed, "detached.sh state": states})
    status, _, err = desk.call(script, **variables)
    assert status == 0 and desk.calls, err
    assert not (tmp_path / "trap").exists()
    for call in desk.calls:
        for argument in call:
            if argument.startswith("--command="):
                desk.remote(argument.removeprefix("--command="))
    assert not (tmp_path / "trap").exists()
