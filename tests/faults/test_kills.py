"""A run that is killed, whose disk fills up or whose workdir vanishes ends with the same bits."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from gsg_jax.run.integrity import saved_steps
from tests.faults.conftest import FULL
from tests.runs import (
    assert_same,
    finish,
    is_saving,
    last_step,
    start,
    tiny,
    wait_until,
)

NUM_STEPS = 1000 if FULL else 120
LAST_GOAL = NUM_STEPS * 7 // 10  # later ones would find the run at its end before they stop it
DISK_BYTES = 24 << 20
FLAGS = (
    f"--config.run.num_steps={NUM_STEPS}",
    "--config.run.checkpoint_every_steps=15",
    "--config.run.log_every_steps=5",
    "--config.run.keep_checkpoints=1",
    "--config.eval.knn_every_epochs=20",
)

pytestmark = pytest.mark.extended  # tests/train/test_resume.py kills a run once


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nobody disturbed: what makes its flags, its workdir and its last line."""
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("byol_gsg", images, workdir, *FLAGS)

    return flags, workdir, finish(*flags(workdir))[0]


def test_kills_at_random_moments_and_while_saving_leave_no_trace(whole, tmp_path, tally):
    flags, reference, wanted = whole
    rng = random.Random(0)
    num_kills, num_saving = 50 if FULL else 3, 0
    for number, goal in enumerate(sorted(rng.randrange(15, LAST_GOAL) for _ in range(num_kills))):
        begin, run = time.time(), start(*flags(tmp_path))
        wait_until(lambda g=goal: last_step(tmp_path) >= g, run)
        if number % 2:
            time.sleep(rng.random() * rng.choice([0.2, 2]))  # while it starts, too
        else:
            wait_until(lambda b=begin: is_saving(tmp_path, b), run)
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL, "the run had ended before it was killed"
        num_saving += is_saving(tmp_path, begin)
    assert num_saving or not FULL, "no kill hit a save"
    last, err = finish(*flags(tmp_path))
    assert "resuming from the checkpoint of step" in err
    assert_same(tmp_path, last, reference, wanted)
    assert not is_saving(tmp_path), "a half-written checkpoint was left behind"
    tally("SIGKILL at a random moment", num_kills - num_saving)
    tally("SIGKILL while a checkpoint is saved", num_saving)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, left):
    """Fills a disk but for so many bytes."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (free := os.statvfs(disk).f_bavail * 4096 - left) > 0:
            file.write(bytes(min(free, 1 << 20)))


# What is left of the disk, bytes: nothing, room for some lines, and less than a save asks for.
@pytest.mark.parametrize("left", [0, 1 << 16, 1_000_000] if FULL else [0, 1_000_000])
def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_resumes(
    whole, disk, tally, left
):
    flags, reference, wanted = whole
    workdir = disk / "run"
    run = start(*flags(workdir))
    wait_until(lambda: last_step(workdir) >= random.Random(left).randrange(20, LAST_GOAL), run)
    fill(disk, left)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, ""), err
    told = [line for line in err.splitlines() if line.startswith(("error", "Trace", " "))]
    assert len(told) == 1 and told[0].startswith("error: ") and "same command" in told[0], err
    steps = saved_steps(workdir)
    (disk / "filler").unlink()
    last, err = finish(*flags(workdir))
    assert f"resuming from the checkpoint of step {steps[-1]} " in err and "damaged" not in err
    assert_same(workdir, last, reference, wanted)
    tally("disk that fills up", 1)


def test_a_workdir_that_vanishes_ends_the_run_in_one_line_and_it_resumes_once_it_is_back(
    whole, tmp_path, tally
):
    flags, reference, wanted = whole
    workdir, away = tmp_path / "run", tmp_path / "away"
    run = start(*flags(workdir))
    wait_until(lambda: last_step(workdir) >= 40, run)
    workdir.rename(away)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ") and "resumes" in err.splitlines()[-1], err
    assert saved_steps(away)
    shutil.rmtree(workdir, ignore_errors=True)  # what a save under way has made anew
    away.rename(workdir)
    last, err = finish(*flags(workdir))
    assert_same(workdir, last, reference, wanted)
    tally("workdir that vanishes", 1)
