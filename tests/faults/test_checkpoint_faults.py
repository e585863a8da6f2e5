"""Damaged checkpoint files, each of its kinds: told of, kept, and the checkpoint before is used."""

import contextlib
import io
import json
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

from gsg_jax.run.checkpoint import Checkpoints, state_digest
from gsg_jax.train.state import TrainState
from tests.faults.conftest import FULL
from tests.runs import ROOT, assert_same, call, figures, hashes, tiny, write_images

# What Orbax writes when it renames the whole, and nothing reads.
NOT_READ = ("_CHECKPOINT_METADATA", "commit_success.txt")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "truncated": halve,
    "emptied": empty,
    "one bit flipped": flip,
    "removed": pathlib.Path.unlink,
}


# Orbax abandons the other reads where one has failed; the failure is told.
LATE_ERRORS = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <coroutine:pytest.PytestUnraisableExceptionWarning"
)


def state_of(step):
    """A small state, whose arrays differ from step to step."""
    rng = np.random.default_rng(step)
    empty_groups = dict.fromkeys(("batch_stats", "target_params", "target_batch_stats"), {})
    params = {"backbone": {"kernel": rng.normal(size=(40, 50)).astype(np.float32)}}
    state = TrainState(
        step=np.int32(step), params=params, opt_state=(params,), memory={}, **empty_groups
    )
    return jax.device_put(state)


def files_of(checkpoint):
    """The files of a checkpoint, but for those that a fault in does no harm."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return [path.relative_to(checkpoint) for path in paths if path.name not in NOT_READ]


def said(action, *args, **kwargs):
    """What an action gives back, and the lines that it says."""
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


# Checkpoints of an earlier version have no digests: a flipped bit in their arrays is past telling.
EARLIER = " of an earlier version"


@LATE_ERRORS
@pytest.mark.parametrize(
    ("damage", "version"),
    [*((name, "") for name in DAMAGES)]
    + [(name, EARLIER) for name in DAMAGES if name != "one bit flipped"],
)
def test_every_file_of_a_checkpoint_may_be_damaged(saved, tmp_path, tally, damage, version):
    """In an earlier version's checkpoint what Orbax does not read need not be noticed."""
    base = shutil.copytree(saved, tmp_path / "base")
    if version:
        for path in base.glob("checkpoints/*/default/digests.json"):
            path.unlink()
    files = files_of(base / "checkpoints" / "3")
    tries = files if FULL else random.Random(0).sample(files, 4)
    survived = 0
    for number, name in enumerate(tries):
        workdir = shutil.copytree(base, tmp_path / str(number))
        hurt = workdir / "checkpoints" / "3" / name
        DAMAGES[damage](hurt)
        contents = hashes(workdir / "checkpoints" / "3")
        judged, told = said(Checkpoints, workdir, read_only=True)
        assert hashes(workdir / "checkpoints" / "3") == contents
        checkpoints, told_again = said(Checkpoints, workdir, 3)
        with checkpoints:
            newest = checkpoints.newest_step()
            assert judged.newest_step() == newest
            assert len(told) == len(told_again) == (newest == 2)
            back = checkpoints.restore(newest, state_of(0))
            assert state_digest(back) == state_digest(state_of(newest)), name
            for step in range(newest + 1, 5):
                checkpoints.save(state_of(step), None)
        if newest == 2:
            assert told_again[0].startswith("warning: the checkpoint of step 3 is damaged (")
            assert hashes(workdir / "damaged" / "3") == contents, "a file was lost"
        else:
            assert version or name.name == "digests.json"
        checkpoints, told = said(Checkpoints, workdir, 3)
        with checkpoints:
            assert (checkpoints.newest_step(), told) == (4, [])
        survived += 1
        shutil.rmtree(workdir)
    tally(f"checkpoint file {damage}{version}", len(tries), survived)


@pytest.mark.parametrize("name", NOT_READ)
def test_damage_to_what_nothing_reads_does_no_harm(saved, tmp_path, tally, name):
    for damage, hurt in DAMAGES.items():
        workdir = shutil.copytree(saved, tmp_path / damage)
        for path in sorted((workdir / "checkpoints" / "3").rglob(name)):
            hurt(path)
        checkpoints, told = said(Checkpoints, workdir)
        with checkpoints:
            assert (checkpoints.newest_step(), told) == (3, [])
            assert state_digest(checkpoints.restore(3, state_of(0))) == state_digest(state_of(3))
    tally(f"{name} damaged", len(DAMAGES), len(DAMAGES))


@LATE_ERRORS
def test_checkpoints_of_random_bytes_are_told_and_the_whole_one_is_used(saved, tmp_path, tally):
    """Files of noise, of any length, whatever they replace; digests that list them included."""
    rng = np.random.default_rng(0)
    num_tries = 60 if FULL else 6
    for number in range(num_tries):
        workdir = shutil.copytree(saved, tmp_path / str(number))
        for step in (2, 3):
            checkpoint = workdir / "checkpoints" / str(step)
            files = files_of(checkpoint)
            name = files[rng.integers(len(files))]
            if number % 2:  # also where there is no digest to tell by
                (checkpoint / "default" / "digests.json").unlink(missing_ok=True)
                name = pathlib.Path("default", rng.choice(["_METADATA", "manifest.ocdbt"]))
            (checkpoint / name).write_bytes(rng.bytes(rng.integers(1, 2000)))
        checkpoints, told = said(Checkpoints, workdir, 3)
        with checkpoints:
            assert checkpoints.newest_step() == 1
            assert state_digest(checkpoints.restore(1, state_of(0))) == state_digest(state_of(1))
        assert len(told) == 2 and all(line.startswith("warning: ") for line in told)
        assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2", "3"]
        shutil.rmtree(workdir)
    tally("checkpoints with files of noise", num_tries, num_tries)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its flags, its workdir and its last line."""
    images = write_images(tmp_path_factory.mktemp("images"))
    workdir = tmp_path_factory.mktemp("whole")

    def flags(workdir):
        return tiny("simsiam", images, workdir, "--config.run.checkpoint_every_steps=3")

    status, out, _ = call(*flags(workdir))
    assert status == 0
    return flags, workdir, figures(out)


@pytest.mark.slow
def test_a_run_with_a_damaged_newest_checkpoint_ends_with_the_same_bits(whole, tmp_path, tally):
    flags, reference, wanted = whole
    files = files_of(reference / "checkpoints" / "10")
    rng = random.Random(1)
    num_tries = 12 if FULL else 2
    for number in range(num_tries):
        workdir = shutil.copytree(reference, tmp_path / str(number))
        name, damage = (
            rng.choice([x for x in files if x.name != "digests.json"]),
            rng.choice([*DAMAGES]),
        )
        DAMAGES[damage](workdir / "checkpoints" / "10" / name)
        status, out, err = call(*flags(workdir))
        assert status == 0, err
        assert err.startswith("warning: the checkpoint of step 10 is damaged (")
        assert "resuming from the checkpoint of step 9 " in err
        assert_same(workdir, figures(out), reference, wanted)
        assert (workdir / "damaged" / "10").is_dir() and (workdir / "checkpoints" / "10").is_dir()
    tally("run whose newest checkpoint is damaged", num_tries, num_tries)


@pytest.mark.slow
def test_a_run_with_a_half_written_newest_checkpoint_ends_with_the_same_bits(
    whole, tmp_path, tally
):
    flags, reference, wanted = whole
    files = files_of(reference / "checkpoints" / "10")
    for number, num_written in enumerate((0, len(files) // 2)):
        workdir = shutil.copytree(reference, tmp_path / str(number))
        newest = workdir / "checkpoints" / "10"
        for name in files[num_written:]:
            (newest / name).unlink()
        newest.rename(newest.with_name("10.orbax-checkpoint-tmp"))
        status, out, err = call(*flags(workdir))
        assert status == 0, err
        assert err.startswith("warning: the checkpoint of step 10 is only half written: that of ")
        assert_same(workdir, figures(out), reference, wanted)
        assert not list((workdir / "checkpoints").glob("*tmp*"))
    tally("run whose newest checkpoint is half written", 2, 2)


@pytest.mark.slow
def test_without_a_whole_checkpoint_a_run_says_so_and_touches_nothing(whole, tmp_path, tally):
    flags, reference, _ = whole
    workdir = shutil.copytree(reference, tmp_path / "run")
    for path in workdir.glob("checkpoints/*/default/manifest.ocdbt"):
        empty(path)
    before = hashes(workdir / "checkpoints") | hashes(workdir / "tensorboard")
    for _ in range(2):
        status, out, err = call(*flags(workdir))
        assert (status, out) == (1, "") and err.count("\n") == 1
        assert err.startswith("error: none of the ") and "is whole" in err
        assert hashes(workdir / "checkpoints") | hashes(workdir / "tensorboard") == before
    assert (workdir / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    tally("run none of whose checkpoints is whole", 1, 1)


@pytest.mark.slow
def test_an_evaluation_takes_the_newest_whole_checkpoint_and_moves_nothing(whole, tmp_path, tally):
    _, reference, _ = whole
    workdir = shutil.copytree(reference, tmp_path / "run")
    flip(workdir / "checkpoints" / "10" / "default" / "manifest.ocdbt")
    before = hashes(workdir / "checkpoints")
    status, out, err = call(
        f"--config={ROOT / 'configs' / 'knn.py'}",
        f"--config.pretrained={workdir}",
        "--config.eval.knn_k=(3,)",
    )
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["step"] == 9
    told = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "step 10 is damaged" in told[0] and "step 9 is used" in told[0]
    assert hashes(workdir / "checkpoints") == before and not (workdir / "damaged").exists()
    tally("evaluation whose newest checkpoint is damaged", 1, 1)
