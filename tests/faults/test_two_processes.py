"""Many processes in one workdir: one trains, the others are told so, and readers need no lock."""

import collections
import json
import random
import signal
import time

import pytest

from gsg_jax.evaluation.image_encoder import open_run
from gsg_jax.run.integrity import damage, saved_steps
from gsg_jax.run.lock import LOCK
from tests.faults.conftest import FULL
from tests.faults.forks import fork
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

NUM_STARTS = 100 if FULL else 20
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
    """A run that was alone: what makes its flags, its workdir and its last line."""
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *FLAGS)

    return flags, workdir, finish(*flags(workdir))[0]


def test_starts_at_random_distances_in_one_workdir_end_as_one_run(whole, tmp_path, tally):
    """After every third, one of them is killed."""
    flags, reference, wanted = whole
    workdir, rng, newest = tmp_path / "run", random.Random(0), 0
    starts = []
    for number in range(NUM_STARTS):
        files = [tmp_path / f"{number}.{name}" for name in ("out", "err")]
        starts.append((fork(flags(workdir), *files), *files))
        time.sleep(rng.choice([0, 0.05, 0.5, 2]) * rng.random())
        if number % 3 == 2:
            rng.choice([process for process, *_ in starts]).kill()
        steps = saved_steps(workdir)
        assert max(steps, default=0) >= newest, "a checkpoint is lost"
        newest = max(steps, default=0)
    ends = collections.Counter()
    for process, out, err in starts:
        process.join(120)
        assert process.exitcode is not None, f"a process hangs: {err.read_text()}"
        ends[process.exitcode] += 1
        out, err = (path.read_text() if path.exists() else "" for path in (out, err))
        assert "Traceback" not in err, err
        if process.exitcode == 1:
            assert not out and f"error: {workdir} is written by " in err.splitlines()[-1], err
        elif process.exitcode == 0:
            assert_same(workdir, figures(out), reference, wanted)
        else:
            assert process.exitcode == -signal.SIGKILL, err
    last, _ = finish(*flags(workdir))
    assert_same(workdir, last, reference, wanted)
    assert json.loads((workdir / "figures.json").read_text()) == last
    steps = saved_steps(workdir)
    assert steps[-1] == 300 and not any(damage(workdir / "checkpoints" / str(s)) for s in steps)
    assert ends[1] and ends[-signal.SIGKILL] and not (workdir / LOCK).read_bytes(), ends
    tally("start in a workdir that others write", NUM_STARTS)


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
    tally("reader of a run that saves", len(steps) + 1)
