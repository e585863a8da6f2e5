"""A run that hangs says where, leaves its stacks, and ends with a status that has it restarted."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time

import pytest

from tests.runs import start, tiny, write_images

PATIENCE = 12.0  # seconds
SLACK = 60.0  # of a busy machine
FLAGS = (
    "--config.data.crop=host",
    "--config.data.memory_limit_mb=0",
    "--config.eval.knn_every_epochs=0",
    "--config.run.num_steps=1000000",
    "--config.run.log_every_steps=1",
    "--config.run.checkpoint_every_steps=20",
    f"--config.run.watchdog_seconds={PATIENCE}",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def num_logged(workdir):
    with contextlib.suppress(FileNotFoundError):
        return len((workdir / "metrics.jsonl").read_bytes().splitlines())
    return 0


@contextlib.contextmanager
def running(flags, workdir):
    """A run that has done some steps more than before."""
    target = num_logged(workdir) + 3
    run = start(*flags)
    try:
        end = time.monotonic() + 300
        while num_logged(workdir) < target:
            assert run.poll() is None and time.monotonic() < end, run.communicate()
            time.sleep(0.1)
        yield run
    finally:
        run.kill()
        run.communicate()


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """A run that compiles what the others load, with patience for a busy machine."""
    folder = tmp_path_factory.mktemp("compiled")
    flags = tiny("simsiam", write_images(folder / "images"), folder / "run", *FLAGS)
    with running([*flags, "--config.run.watchdog_seconds=0"], folder / "run") as run:
        run.terminate()
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err


def workers_of(run):
    # A worker that took another's place is the child of the thread that started it.
    threads = pathlib.Path(f"/proc/{run.pid}/task").glob("*/children")
    children = [int(pid) for thread in threads for pid in thread.read_text().split()]
    lines = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, line in lines.items() if "spawn_main" in line]


def assert_ends_as_hanging(run, workdir, *said):
    began = time.monotonic()
    _, err = run.communicate(timeout=2 * PATIENCE + SLACK)
    assert run.returncode == 3, err
    assert time.monotonic() - began > PATIENCE
    *before, last = err.splitlines()
    (warning,) = [line for line in before if line.startswith("warning: host 0 has not moved for ")]
    assert last.startswith("error: host 0 has not moved for ") and "with status 3" in last
    for text in ("waiting for a batch", *said):
        assert text in warning and text in last
    assert f"the stacks are in {workdir / 'stacks-0.txt'}" in warning
    stacks = (workdir / "stacks-0.txt").read_text()
    assert stacks.count(f"process {run.pid}, ") == 2 and "in _loop" in stacks
    assert "Traceback" not in err


@pytest.mark.parametrize("num_processes", [0, 2])
def test_an_image_that_cannot_be_read_to_its_end_is_named(tmp_path, tally, num_processes):
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    flags = tiny("simsiam", images, workdir, *FLAGS)
    flags.append(f"--config.data.num_processes={num_processes}")
    image, kept = images / "train" / "even" / "004.png", tmp_path / "kept.png"
    with running(flags, workdir) as run:
        shutil.copy(image, kept)
        os.mkfifo(tmp_path / "pipe")
        os.replace(tmp_path / "pipe", image)  # whoever opens it waits for a writer
        who = "worker process " if num_processes else "thread decode"
        assert_ends_as_hanging(run, workdir, f"has been at {image} for", who)
    os.replace(kept, image)
    with running(flags, workdir) as run:  # the same command goes on
        run.terminate()
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
    tally("an image that hangs", 1, 1)


def test_a_worker_process_that_stands_still_is_named_and_not_left_behind(tmp_path, tally):
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    flags = [*tiny("simsiam", images, workdir, *FLAGS), "--config.data.num_processes=2"]
    with running(flags, workdir) as run:
        workers = workers_of(run)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGSTOP)
        try:
            assert_ends_as_hanging(run, workdir, f"worker process {workers[0]} has been at ")
            end = time.monotonic() + 10
            while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
                assert time.monotonic() < end, "a worker stays"
                time.sleep(0.1)
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    tally("a worker that hangs", 1, 1)


def test_a_worker_process_that_is_killed_is_replaced_and_the_run_goes_on(tmp_path, tally):
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    flags = [*tiny("simsiam", images, workdir, *FLAGS), "--config.data.num_processes=2"]
    with running(flags, workdir) as run:
        for _ in range(2):
            killed = workers_of(run)
            assert len(killed) == 2
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            target, end = num_logged(workdir) + 30, time.monotonic() + 120
            while num_logged(workdir) < target:
                assert run.poll() is None and time.monotonic() < end, run.communicate()
                time.sleep(0.1)
            assert not set(killed) & set(workers_of(run))
        run.terminate()
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert err.count("another one takes its place") == 4, err
    tally("a worker that is killed", 4, 4)
