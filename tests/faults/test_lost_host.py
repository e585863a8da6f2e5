"""One of two hosts is killed: the other ends soon, as a crash does, and the restart resumes."""

import random
import time

import pytest

from tests.devices.test_multihost import finish_hosts, start_hosts
from tests.faults.conftest import FULL
from tests.runs import figures, last_step, tiny, wait_until

pytestmark = pytest.mark.extended

NUM_STEPS = 48
HEARTBEAT = 20  # seconds
SECONDS = HEARTBEAT + 60  # of a loaded machine


FLAGS = (
    f"--config.run.num_steps={NUM_STEPS}",
    "--config.run.log_every_steps=1",
    "--config.run.checkpoint_every_steps=10",
    "--config.eval.knn_every_epochs=0",
    f"--host_timeout={HEARTBEAT}",
)


def flags(images, workdir):
    return tiny("simsiam_gsg", images, workdir, *FLAGS)


def finished(images, workdir):
    """Lets two hosts run to the end: the last line, and what host 0 told people."""
    found = finish_hosts(start_hosts(flags(images, workdir), num_devices=1))
    (status, out, err), (other, *_) = found
    assert (status, other) == (0, 0), err
    return figures(out), err


def test_a_killed_host_ends_the_other_and_the_restart_resumes(images, tmp_path, tally):
    rng, survived, workdir = random.Random(0), 0, tmp_path / "parts"
    victims = (1, 0, 1, 0) if FULL else (1, 0)  # 0 takes JAX's own service down with it
    for number, victim in enumerate(victims):
        hosts = start_hosts(flags(images, workdir), num_devices=1)
        goal = (number + 1) * NUM_STEPS // (len(victims) + 2) + rng.randrange(4)
        wait_until(lambda goal=goal: last_step(workdir) >= goal, hosts[0])
        hosts[victim].kill()
        begin = time.monotonic()
        status, out, err = finish_hosts(hosts)[1 - victim]
        seconds = time.monotonic() - begin
        # 1 and 2 would tell who restarts it that the user must fix something first.
        has_ended = status not in (0, 1, 2) and "{" not in out and seconds < SECONDS
        if not has_ended:
            print(f"host {victim} killed at step {goal}: status {status}, {seconds:.0f} s\n{err}")
        survived += has_ended
    last, err = finished(images, workdir)
    tally("one of two hosts killed", len(victims), survived)
    assert "resuming from the checkpoint of step" in err
    assert last["step"] == NUM_STEPS
    if not FULL:
        return
    whole, _ = finished(images, tmp_path / "whole")
    assert last["state_digest"] == whole["state_digest"]
    logs = [(path / "metrics.jsonl").read_bytes() for path in (workdir, tmp_path / "whole")]
    assert logs[0] == logs[1]
