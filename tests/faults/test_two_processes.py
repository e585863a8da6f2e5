"""Two processes in one workdir: one trains, the other is told so, and readers need no lock."""

import json
import random
import time

import pytest

from gsg_jax.evaluation.image_encoder import open_run
from gsg_jax.run.integrity import damage, saved_steps
from tests.faults.conftest import FULL
from tests.runs import (
    assert_same,
    done,
    figures,
    finish,
    last_step,
    refused,
    start,
    tiny,
    wait_until,
    warnings,
)

FLAGS = (
    "--config.run.num_steps=300",
    "--config.run.checkpoint_every_steps=7",
    "--config.run.log_every_steps=5",
    "--config.run.keep_checkpoints=1",
    "--config.eval.knn_every_epochs=20",
)

pytestmark = pytest.mark.extended  # tests/run/test_lock.py has two processes, too


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that was alone: what makes its flags, its workdir, its last line and its seconds."""
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *FLAGS)

    begin = time.monotonic()
    last, _ = finish(*flags(workdir))
    return flags, workdir, last, time.monotonic() - begin


def test_two_starts_at_a_random_distance_end_as_one(whole, tmp_path, tally):
    flags, reference, wanted, seconds = whole
    rng, num_tries, num_refused = random.Random(0), 20 if FULL else 2, 0
    for number in range(num_tries):
        workdir = tmp_path / str(number)
        runs = [start(*flags(workdir))]
        time.sleep(rng.random() * rng.choice([0.1, 1]) * seconds)
        runs.append(start(*flags(workdir)))
        ended = [(run.pid, *run.communicate(timeout=300), run.returncode) for run in runs]
        winners = [figures(out) for _, out, _, status in ended if status == 0]
        for _, out, err, status in ended:
            if status:
                other = [pid for pid, *_, status in ended if status == 0]
                line = err.splitlines()[-1]
                assert (status, out) == (1, "") and "Traceback" not in err, err
                assert f"{workdir} is written by process {other[0]} on " in line, err
                num_refused += 1
        assert winners, ended
        for last in winners:  # both, if the second began to write after the end of the first
            assert_same(workdir, last, reference, wanted)
        assert json.loads((workdir / "figures.json").read_text()) in winners
        steps = saved_steps(workdir)
        assert steps[-1] == 300 and not any(damage(workdir / "checkpoints" / str(s)) for s in steps)
    assert num_refused or not FULL
    tally("second process in one workdir", num_tries, num_tries)


def test_readers_of_a_run_that_saves_need_no_lock_and_outlive_its_checkpoints(
    whole, tmp_path, tally
):
    flags, *_ = whole
    run = start(*flags(tmp_path), "--config.run.num_steps=100000")
    try:
        wait_until(lambda: last_step(tmp_path) >= 20, run)
        steps = []
        for _ in range(40 if FULL else 5):
            steps.append(open_run(tmp_path).encoder.step)
        knn = ("--config=knn", f"--config.pretrained={tmp_path}", "--config.eval.knn_k=(3,)")
        last, err = done(*knn)
        assert not warnings(err) and last["step"] >= steps[-1]
        assert steps == sorted(steps) and steps[0] < steps[-1]
        assert f"is written by process {run.pid} on " in refused(
            *flags(tmp_path), "--config.run.num_steps=100000"
        )
        assert run.poll() is None
    finally:
        run.kill()
        run.communicate()
    tally("reader of a run that saves", len(steps) + 1, len(steps) + 1)
