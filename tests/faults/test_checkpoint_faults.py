"""Damaged checkpoint files of each kind are reported and kept, and the one before is used."""

import contextlib
import io
import pathlib
import random
import shutil

import numpy as np
import pytest

from gsg_jax.run.checkpoint import Checkpoints, state_digest
from tests.faults.conftest import FULL
from tests.run.test_checkpoint import flip, halve, state_of
from tests.runs import assert_same, done, hashes, tiny

pytestmark = [
    pytest.mark.extended,
    # Orbax abandons the other reads if one has failed; the failure is reported.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <coroutine:pytest.PytestUnraisableExceptionWarning"
    ),
]
# Orbax writes these when it renames the whole, and nothing reads them.
NOT_READ = ("_CHECKPOINT_METADATA", "commit_success.txt")
DAMAGES = {
    "truncated": halve,
    "emptied": lambda path: path.write_bytes(b""),
    "one bit flipped": flip,
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(700)),
    "removed": pathlib.Path.unlink,
}


def files_of(checkpoint):
    """The files of a checkpoint that are read."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return [path.relative_to(checkpoint) for path in paths if path.name not in NOT_READ]


def said(action, *args, **kwargs):
    """What an action returns, and the lines that it prints."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        result = action(*args, **kwargs)
    return result, err.getvalue().splitlines()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints with their scores."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, 3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_of(step), step / 10)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_of_a_checkpoint_may_be_damaged(saved, tmp_path, tally, damage):
    files = files_of(saved / "checkpoints" / "3")
    tries = files if FULL else random.Random(0).sample(files, 4)
    for number, name in enumerate(tries):
        workdir = shutil.copytree(saved, tmp_path / str(number))
        DAMAGES[damage](workdir / "checkpoints" / "3" / name)
        contents = hashes(workdir / "checkpoints" / "3")
        checkpoints, told = said(Checkpoints, workdir, 3)
        with checkpoints:
            newest = checkpoints.newest_step()
            assert newest == 2 and len(told) == 1
            back = checkpoints.restore(newest, state_of(0))
            assert state_digest(back) == state_digest(state_of(newest)), name
            for step in range(newest + 1, 5):
                checkpoints.save(state_of(step), None)
        assert told[0].startswith("warning: the checkpoint of step 3 is damaged (")
        assert hashes(workdir / "damaged" / "3") == contents, "a file was lost"
        checkpoints, told = said(Checkpoints, workdir, 3)
        with checkpoints:
            assert (checkpoints.newest_step(), told) == (4, [])
    tally(f"checkpoint file {damage}", len(tries))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nobody disturbed: its flags, its workdir and its last line."""
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("simsiam", images, workdir, "--config.run.checkpoint_every_steps=3")

    return flags, workdir, done(*flags(workdir))[0]


def test_a_run_with_a_damaged_or_half_written_newest_checkpoint_ends_with_the_same_bits(
    whole, tmp_path, tally
):
    flags, reference, wanted = whole
    newest = files_of(reference / "checkpoints" / "10")
    files = [name for name in newest if name.name != "digests.json"]
    rng = random.Random(1)
    num_tries = 12 if FULL else 2
    for number in range(num_tries):
        workdir = shutil.copytree(reference, tmp_path / str(number))
        newest = workdir / "checkpoints" / "10"
        if number % 2:
            for name in files[rng.randrange(len(files)) :]:
                (newest / name).unlink()
            newest.rename(newest.with_name("10.orbax-checkpoint-tmp"))
        else:
            DAMAGES[rng.choice([*DAMAGES])](newest / rng.choice(files))
        last, err = done(*flags(workdir))
        how = "only half written: step 9 is used" if number % 2 else "damaged ("
        assert f"\nwarning: the checkpoint of step 10 is {how}" in err
        assert "resuming from the checkpoint of step 9 " in err
        assert_same(workdir, last, reference, wanted)
        assert newest.is_dir() and not list((workdir / "checkpoints").glob("*tmp*"))
    tally("run whose newest checkpoint is damaged", num_tries)
