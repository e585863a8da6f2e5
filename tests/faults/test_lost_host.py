"""One of two hosts is killed: the other ends soon, names it, and the restart resumes."""

import random
import time

import pytest

from gsg_jax.console import AGAIN
from gsg_jax.devices.line import GRACE_SECONDS
from tests.devices.test_multihost import finish_hosts, start_hosts, wait_for_step
from tests.faults.conftest import FULL
from tests.runs import figures, tiny, write_images

pytestmark = pytest.mark.slow

NUM_STEPS = 48
# Until the other has ended: to notice takes no time, what is left is a loaded machine.
SECONDS = GRACE_SECONDS + 20


def flags(images, workdir):
    return tiny(
        "simsiam_gsg",
        images,
        workdir,
        f"--config.run.num_steps={NUM_STEPS}",
        "--config.run.log_every_steps=1",
        "--config.run.checkpoint_every_steps=10",
        "--config.eval.knn_every_epochs=0",
    )


def finished(images, workdir):
    """Lets two hosts run to the end: the last line, and what host 0 told people."""
    (status, out, err), (other, *_) = finish_hosts(
        start_hosts(flags(images, workdir), num_devices=1)
    )
    assert (status, other) == (0, 0), err
    return figures(out), err


def test_a_killed_host_ends_the_other_with_a_line_and_the_restart_resumes(tmp_path, tally):
    images = write_images(tmp_path / "images")
    rng, survived, workdir = random.Random(0), 0, tmp_path / "parts"
    victims = (1, 0, 1, 0) if FULL else (0,)  # 0 takes JAX's own service down with it
    for number, victim in enumerate(victims):
        hosts = start_hosts(flags(images, workdir), num_devices=1)
        goal = (number + 1) * NUM_STEPS // (len(victims) + 2) + rng.randrange(4)
        wait_for_step(workdir, goal, hosts)
        hosts[victim].kill()
        begin = time.monotonic()
        found = finish_hosts(hosts)
        seconds = time.monotonic() - begin
        status, out, err = found[1 - victim]
        last = err.splitlines()[-1]
        is_told = f"error: host {victim} (127.0.0.1) is lost" in last and "Traceback" not in err
        has_ended = status == AGAIN and "{" not in out and seconds < SECONDS
        if not (is_told and has_ended):
            print(f"host {victim} killed at step {goal}: status {status}, {seconds:.0f} s\n{err}")
        survived += is_told and has_ended
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
