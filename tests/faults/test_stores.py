"""A disk that fills up, and a workdir that is not there for a while, cost no checkpoint."""

import contextlib
import os
import random
import subprocess

import pytest

from gsg_jax.run.integrity import saved_steps
from tests.faults.conftest import FULL
from tests.runs import (
    assert_same,
    finish,
    last_step,
    start,
    tiny,
    wait_until,
    write_images,
)

pytestmark = pytest.mark.slow
NUM_STEPS = 120
DISK_BYTES = 24 << 20
FLAGS = (
    f"--config.run.num_steps={NUM_STEPS}",
    "--config.run.checkpoint_every_steps=7",
    "--config.run.log_every_steps=3",
    "--config.eval.knn_every_epochs=20",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its flags, its workdir and its last line."""
    images = write_images(tmp_path_factory.mktemp("images"))
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("simsiam", images, workdir, *FLAGS)

    return flags, workdir, finish(*flags(workdir))[0]


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
@pytest.mark.parametrize("left", [0, 1 << 16, 1_000_000])
def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(
    whole, disk, tally, left
):
    flags, reference, wanted = whole
    workdir = disk / "run"
    rng = random.Random(left)
    num_tries = 4 if FULL else 1
    for goal in sorted(rng.randrange(NUM_STEPS - 30) for _ in range(num_tries)):
        run = start(*flags(workdir))
        wait_until(lambda g=goal: last_step(workdir) >= g, run)
        fill(disk, left)
        out, err = run.communicate(timeout=300)
        assert (run.returncode, out) == (1, ""), err
        told = [line for line in err.splitlines() if line.startswith(("error", "Trace", " "))]
        assert len(told) == 1 and told[0].startswith("error: ") and "goes on" in told[0], err
        assert err.splitlines()[-1] == told[0]
        steps = saved_steps(workdir)
        (disk / "filler").unlink()
    last, err = finish(*flags(workdir))
    if steps:
        assert f"resuming from the checkpoint of step {steps[-1]} " in err
    assert "damaged" not in err
    assert_same(workdir, last, reference, wanted)
    tally("disk that fills up", num_tries, num_tries)


def test_a_workdir_that_does_not_come_back_ends_the_run_in_one_line(whole, tmp_path, tally):
    flags, reference, wanted = whole
    workdir, away = tmp_path / "run", tmp_path / "away"
    run = start(*flags(workdir))
    wait_until(lambda: last_step(workdir) >= 40, run)
    workdir.rename(away)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ") and "bring it back" in err.splitlines()[-1]
    assert saved_steps(away) and not workdir.exists()
    away.rename(workdir)
    last, err = finish(*flags(workdir))
    assert_same(workdir, last, reference, wanted)
    tally("workdir that does not come back", 1, 1)
