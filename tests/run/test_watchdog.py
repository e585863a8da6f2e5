"""A run that stands still leaves its stacks and is ended; one that moves is left alone."""

import signal
import time

import pytest

from gsg_jax.run import watchdog as watchdogs
from gsg_jax.run.watchdog import Watchdog


class EndedError(Exception):
    """In place of the end of the process."""


def seconds_left():
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_what_stands_still_leaves_its_stacks_and_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdogs, "_DUMP_SECONDS", 0.2)

    def end(*_):
        raise EndedError

    previous = signal.signal(signal.SIGALRM, end)
    try:
        with pytest.raises(EndedError), Watchdog(0.2, tmp_path) as watchdog:
            watchdog.moved()
            time.sleep(60)
    finally:
        signal.signal(signal.SIGALRM, previous)
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "in test_what_stands_still" in stacks and seconds_left() == 0


def test_what_moves_has_its_patience_again_and_compiling_four_times_as_much(tmp_path):
    with Watchdog(1000.0, tmp_path) as watchdog:
        assert 3500 < seconds_left() <= 4010
        watchdog.moved()
        assert 900 < seconds_left() <= 1010
        watchdog.moved(is_compiling=True)
        assert 3500 < seconds_left() <= 4010
    assert seconds_left() == 0 and not list(tmp_path.iterdir())


def test_no_patience_is_no_watchdog(tmp_path):
    with Watchdog(0, tmp_path) as watchdog:
        watchdog.moved()
        assert seconds_left() == 0 and not list(tmp_path.iterdir())


def test_stacks_of_an_earlier_hang_are_kept(tmp_path):
    (tmp_path / "stacks-0.txt").write_text("earlier")
    with Watchdog(1000.0, tmp_path):
        pass
    assert (tmp_path / "stacks-0.txt").read_text() == "earlier"
