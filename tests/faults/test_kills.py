"""A run killed again and again, at random moments and while it saves, ends with the same bits."""

import random
import signal
import time

import pytest

from tests.faults.conftest import FULL
from tests.runs import (
    assert_same,
    finish,
    is_saving,
    last_step,
    start,
    tiny,
    wait_until,
    write_images,
)

pytestmark = pytest.mark.slow
NUM_KILLS = 50 if FULL else 3
NUM_STEPS = 1000 if FULL else 120
LAST_GOAL = NUM_STEPS * 7 // 10  # later ones would find the run at its end before they kill it
FLAGS = (
    f"--config.run.num_steps={NUM_STEPS}",
    "--config.run.checkpoint_every_steps=15",
    "--config.run.log_every_steps=5",
    "--config.run.keep_checkpoints=1",
    "--config.eval.knn_every_epochs=20",
)


def test_kills_at_random_moments_and_while_saving_leave_no_trace(tmp_path, tally):
    images = write_images(tmp_path / "images")

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *FLAGS)

    reference, workdir = tmp_path / "whole", tmp_path / "killed"
    wanted, _ = finish(*flags(reference))
    rng = random.Random(0)
    goals = sorted(rng.randrange(LAST_GOAL) for _ in range(NUM_KILLS))
    num_saving, num_others = 0, 0
    for number, goal in enumerate(goals):
        begin, run = time.time(), start(*flags(workdir))
        wait_until(lambda g=goal: last_step(workdir) >= g, run)
        if number % 2:
            wait_until(lambda b=begin: is_saving(workdir, b), run)
        else:
            time.sleep(rng.random() * rng.choice([0.2, 2]))  # while it starts, too
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL, "the run had ended before it was killed"
        was_saving = is_saving(workdir, begin)
        num_saving, num_others = num_saving + was_saving, num_others + (not was_saving)
    last, err = finish(*flags(workdir))
    assert "resuming from the checkpoint of step" in err
    assert_same(workdir, last, reference, wanted)
    assert num_saving, "no kill came while a checkpoint was being saved"
    assert not is_saving(workdir), "a half-written checkpoint was left behind"
    tally("SIGKILL at a random moment", num_others, num_others)
    tally("SIGKILL while a checkpoint is saved", num_saving, num_saving)
