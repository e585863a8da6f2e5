"""A run that was killed or stopped, and started again, ends as if nothing had happened."""

import contextlib
import json
import os
import random
import signal
import time

import pytest

from gsg_jax import train
from tests.runs import call, figures, hashes, start, tiny, write_images

pytestmark = pytest.mark.slow
LONG = (
    "--config.run.num_steps=400",
    "--config.run.checkpoint_every_steps=7",
    "--config.run.log_every_steps=3",
    "--config.eval.knn_every_epochs=9",
    "--config.run.keep_checkpoints=1",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


def finish(*flags):
    """Runs to the end in a process of its own: its last line and standard error."""
    run = start(*flags)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return figures(out), err


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nobody interrupted: what makes its flags, its workdir and last line."""

    def flags(workdir, *more):
        return tiny("byol_gsg", images, workdir, *LONG, *more)

    workdir = tmp_path_factory.mktemp("whole")
    return flags, workdir, finish(*flags(workdir))[0]


def steps_logged(workdir):
    with contextlib.suppress(FileNotFoundError):
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def wait_until(condition, run, seconds=200):
    """Waits for a condition, or the end of the run."""
    deadline = time.monotonic() + seconds
    while not condition() and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_same(workdir, last, whole):
    """What does not depend on the clock is the same as in the run that nobody interrupted."""
    _, reference, reference_last = whole
    assert last["state_digest"] == reference_last["state_digest"]
    for name in ("metrics.jsonl", "baselines.json", "config.json"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes()
    clock = {"views_per_second", "train_seconds"}
    same = {key: value for key, value in last.items() if key not in clock}
    assert same == {key: value for key, value in reference_last.items() if key not in clock}


def test_kills_at_random_moments_leave_no_trace(whole, tmp_path):
    flags, reference, _ = whole
    num_lines = steps_logged(reference)
    rng = random.Random(0)
    for kill in range(5):
        run = start(*flags(tmp_path))
        goal = steps_logged(tmp_path) % num_lines + rng.randint(0, num_lines // 4)
        before = hashes(tmp_path).get("metrics.jsonl")
        wait_until(lambda b=before: hashes(tmp_path).get("metrics.jsonl") != b, run)
        wait_until(lambda g=goal: steps_logged(tmp_path) >= g, run)
        time.sleep(rng.random() / 20)
        run.kill()
        run.communicate()
        assert kill or run.returncode == -signal.SIGKILL
    last, err = finish(*flags(tmp_path))
    assert_same(tmp_path, last, whole)
    assert "resuming from the checkpoint of step" in err


def test_kills_while_a_checkpoint_is_saved_leave_no_trace(whole, tmp_path):
    flags, _, _ = whole
    num_caught = 0
    for _ in range(4):
        run = start(*flags(tmp_path, "--config.run.checkpoint_every_steps=7"))
        seen = (
            set(os.listdir(tmp_path / "checkpoints"))
            if (tmp_path / "checkpoints").exists()
            else set()
        )

        def is_saving(seen=seen):
            with contextlib.suppress(FileNotFoundError):
                names = set(os.listdir(tmp_path / "checkpoints")) - seen
                return len(names) > 2 and any("tmp" in name for name in names)
            return False

        wait_until(is_saving, run)
        run.kill()
        run.communicate()
        num_caught += any("tmp" in name for name in os.listdir(tmp_path / "checkpoints"))
    last, _ = finish(*flags(tmp_path))
    assert num_caught, "no kill came while a checkpoint was being saved"
    assert_same(tmp_path, last, whole)
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if "tmp" in name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_says_so_and_goes_on_as_if_nothing_were(
    whole, tmp_path, number
):
    flags, _, _ = whole
    stopped = []
    for goal in (10, 60):
        run = start(*flags(tmp_path))
        wait_until(lambda g=goal: steps_logged(tmp_path) >= g, run)
        run.send_signal(number)
        out, err = run.communicate(timeout=100)
        assert run.returncode == 0 and "Traceback" not in err
        last = figures(out)
        stopped.append(last["step"])
        assert last["num_steps"] == 400 and "pretrained" not in err
        assert f"stopped at step {last['step']} and saved: the same command goes on" in err
        assert (tmp_path / "checkpoints" / str(last["step"])).is_dir()
    assert 0 < stopped[0] < stopped[1] < 400
    last, err = finish(*flags(tmp_path))
    assert f"resuming from the checkpoint of step {stopped[1]} " in err
    assert_same(tmp_path, last, whole)


def test_a_run_killed_before_its_first_step_begins_again(whole, tmp_path):
    flags, _, _ = whole
    for name in ("config.json", "baselines.json"):
        run = start(*flags(tmp_path))
        wait_until(lambda n=name: (tmp_path / n).exists(), run)
        run.kill()
        run.communicate()
    last, _ = finish(*flags(tmp_path))
    assert_same(tmp_path, last, whole)


@pytest.mark.parametrize("name", ["simsiam", "byol", "simsiam_gsg"])
def test_each_method_goes_on_bit_for_bit(images, tmp_path, name, monkeypatch):
    """In this process, on eight devices, stopped after every third step."""
    short = ["--config.run.num_steps=11", "--config.optim.warmup_epochs=2"]
    status, out, _ = call(*tiny(name, images, tmp_path / "whole", *short))
    assert status == 0
    monkeypatch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(every_third()))
    steps = []
    for _ in range(4):
        status, again, _ = call(*tiny(name, images, tmp_path / "parts", *short))
        steps.append(figures(again)["step"])
    assert steps == [3, 6, 9, 11]
    assert figures(again)["state_digest"] == figures(out)["state_digest"]
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [json.loads(x)["step"] for x in metrics[0].splitlines()][-1] == 11


def every_third():
    """A stop signal that comes when it has been asked for three times."""
    asked = []

    def told_to_stop():
        asked.append(1)
        return len(asked) > 3

    return told_to_stop
