"""slurm.sbatch: what it submits, what it runs in a job, and when it requeues the job."""

import json
import os
import signal
import time

import pytest

from tests.launch.conftest import ROOT
from tests.launch.test_tpu_vm import AWKWARD

pytestmark = pytest.mark.extended

WORKDIR = {"WORKDIR": "/shared/my run"}
STOPPED = json.dumps({"step": 40, "num_steps": 100}) + "\n"
DONE = json.dumps({"step": 100, "num_steps": 100}) + "\n"


def job(desk, **variables) -> dict[str, str]:
    return WORKDIR | {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(desk.root)} | variables


def spooled(desk) -> str:
    """The copy of the script that SLURM runs in a folder of its own."""
    copy = desk.folder / "slurm_script"
    copy.write_bytes((ROOT / "launch" / "slurm.sbatch").read_bytes())
    return str(copy)


def test_outside_a_job_it_submits_itself(desk):
    options = ("--nodes=4", "--comment=a b")
    for flags, submitted in (
        ((*options, "--", *AWKWARD), [*options, "launch/slurm.sbatch", *AWKWARD]),
        (AWKWARD, ["launch/slurm.sbatch", *AWKWARD]),
        ((*options, "--"), [*options, "launch/slurm.sbatch"]),
        ((), ["launch/slurm.sbatch"]),
    ):
        assert desk.call("slurm.sbatch", *flags, **WORKDIR)[0] == 0
        assert desk.calls[-1] == ["sbatch", *submitted]


def test_in_a_job_srun_starts_one_process_a_node(desk):
    desk.answers({"srun": [DONE]})
    variables = job(desk, CONFIG="configs/byol.py", DATA_DIR="/shared/tfds")
    status, out, _ = desk.call(spooled(desk), *AWKWARD, **variables)
    assert (status, out) == (0, DONE)
    assert desk.calls == [
        [
            *("srun", "--kill-on-bad-exit=0", str(desk.root / ".venv" / "bin" / "python")),
            *("-m", "gsg_jax.main", "--config=configs/byol.py", "--workdir=/shared/my run"),
            *("--config.data.dir=/shared/tfds", *AWKWARD),
        ]
    ]


@pytest.mark.parametrize(
    ("answer", "requeued", "status"),
    [
        ((DONE, 0), False, 0),
        ((STOPPED, 0), True, 0),
        (("", 1), False, 1),
        ((STOPPED, 2), False, 2),
        (("", 137), True, 0),
    ],
)
def test_a_stopped_or_crashed_run_is_requeued_and_no_other(desk, answer, requeued, status):
    desk.answers({"srun": [answer]})
    assert desk.call(spooled(desk), **job(desk))[0] == status
    assert desk.calls[1:] == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_the_requeues_have_a_limit(desk):
    desk.answers({"srun": [STOPPED]})
    variables = job(desk, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    status, _, err = desk.call(spooled(desk), **variables)
    assert status == 75 and "MAX_RESTARTS=3" in err and len(desk.calls) == 1
    desk.call(spooled(desk), **variables | {"MAX_RESTARTS": "4"})
    assert desk.calls[-1] == ["scontrol", "requeue", "77"]


def test_a_cancelled_job_is_not_requeued(desk):
    """scancel sends SIGTERM to this script too; the time limit only to srun's processes."""
    up = desk.folder / "up"
    srun = desk.folder / "bin" / "srun"
    srun.write_text(f"""#!/usr/bin/env bash
save() {{ echo '{STOPPED.strip()}'; exit 0; }}
trap save TERM
touch {up}
while :; do sleep 0.05; done
""")
    process = desk.start(spooled(desk), **job(desk))
    for _ in range(600):
        if up.exists():
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (-signal.SIGTERM, STOPPED)
    assert ["scontrol", "requeue", "77"] not in desk.calls


def test_a_job_from_another_folder_says_so(desk):
    status, _, err = desk.call(spooled(desk), **job(desk, SLURM_SUBMIT_DIR=str(desk.folder)))
    assert status == 2 and "submit the job from there" in err and desk.calls == []


def test_what_the_job_asks_for():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--ntasks-per-node=1", "--open-mode=append"} < set(asked)
    # B: would send it to this script, which would end and leave nobody to requeue.
    assert "--signal=TERM@300" in asked
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first:])  # sbatch reads no further
