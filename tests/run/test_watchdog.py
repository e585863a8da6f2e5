"""A run that stands still is reported after its patience, and ended after as long again."""

import io
import os
import threading
import time
from contextlib import redirect_stderr

import pytest

from gsg_jax.data.source import Busy
from gsg_jax.run import watchdog as watchdogs
from gsg_jax.run.watchdog import Watchdog, suspicion

PATIENCE = 0.8


class Watched:
    """A watchdog whose end is noted, and what it has said."""

    def __init__(self, workdir, busy=list, seconds=PATIENCE):
        self.ended, self.status, self.began = threading.Event(), None, time.monotonic()
        self.dog = Watchdog(seconds, workdir, busy, self.end)

    def end(self, status):
        self.status, self.seconds = status, time.monotonic() - self.began
        self.ended.set()


def test_what_stands_still_is_told_once_with_its_readers_and_stacks_and_ended(tmp_path):
    busy = [Busy("worker process 7", "/photos/a.png", 3.2), Busy("thread x", "b.png", 40)]
    watched, err = Watched(tmp_path, lambda: busy), io.StringIO()
    with redirect_stderr(err), watched.dog as dog:
        dog.at(watchdogs.WAITING_FOR_BATCH, 12)
        assert watched.ended.wait(60)
    assert watched.status == 3 and 2 * PATIENCE < watched.seconds
    warning, error = err.getvalue().splitlines()
    place = "at step 12: waiting for a batch; thread x has been at b.png for 40 s, worker process 7"
    assert warning.startswith("warning: host 0 has not moved for 1 s ") and place in warning
    assert "the run ends in 1 s (run.watchdog_seconds)" in warning
    assert error.startswith("error: host 0 has not moved for 2 s ") and place in error
    assert error.endswith("the same command goes on from the newest checkpoint")
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert stacks.count("s at step 12: waiting for a batch\n") == 2
    assert "test_what_stands_still_is_told" in stacks  # the thread that stands still


def test_what_moves_is_left_alone_though_it_stays_in_one_phase(tmp_path, capsys):
    watched = Watched(tmp_path, seconds=3.0)
    with watched.dog as dog:
        for _ in range(70):
            dog.at(watchdogs.MONITORING)
            time.sleep(0.1)
    assert watched.status is None and capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("phase", [watchdogs.STARTING, watchdogs.COMPILING])
def test_compiling_may_take_four_times_as_long(tmp_path, phase):
    watched, err = Watched(tmp_path, seconds=0.4), io.StringIO()
    with redirect_stderr(err), watched.dog as dog:
        dog.at(phase)
        assert watched.ended.wait(60)
    assert watched.seconds > 8 * 0.4 and "waiting" not in err.getvalue()


def test_no_patience_is_no_watchdog(tmp_path, capsys):
    watched = Watched(tmp_path, seconds=0.0)
    with watched.dog as dog:
        dog.at(watchdogs.SAVING, 1)
        assert not [t for t in threading.enumerate() if t.name == "watchdog"]
    assert watched.status is None


def test_stacks_that_cannot_be_written_are_no_reason_to_stay(tmp_path):
    watched, err = Watched(tmp_path / "gone"), io.StringIO()
    with redirect_stderr(err), watched.dog as dog:
        dog.at(watchdogs.SAVING, 1)
        assert watched.ended.wait(60)
    assert watched.status == 3 and "cannot be written (No such file or directory)" in err.getvalue()


def test_a_store_that_hangs_does_not_keep_the_run_from_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdogs, "_DUMP_SECONDS", 0.2)
    os.mkfifo(tmp_path / "stacks-0.txt")  # to open it waits for a reader
    watched, err = Watched(tmp_path), io.StringIO()
    with redirect_stderr(err), watched.dog as dog:
        dog.at(watchdogs.SAVING, 1)
        assert watched.ended.wait(60)
    assert watched.status == 3 and "cannot be written (no end within 0 s)" in err.getvalue()
    os.close(os.open(tmp_path / "stacks-0.txt", os.O_RDONLY | os.O_NONBLOCK))  # ends the threads


def test_the_host_that_others_wait_for_is_named():
    waiting = "step 9: waiting for the devices"
    assert suspicion({0: waiting, 1: waiting}) == "all 2 hosts wait for the devices"
    assert suspicion({0: waiting, 2: "step 8: saving", 1: waiting}) == (
        "2 of 3 hosts wait for the devices, host 2 (step 8: saving) does not"
    )
    assert suspicion({1: "step 8: saving", 0: "step 8: waiting for a batch"}) == (
        "no host waits for the devices: host 0 (step 8: waiting for a batch), "
        "host 1 (step 8: saving)"
    )
