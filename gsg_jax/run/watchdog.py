"""Notices that a run stands still, says where, and ends it, so that it can be started again."""

import datetime
import faulthandler
import multiprocessing
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from gsg_jax.console import AGAIN, say_everywhere
from gsg_jax.data.source import Busy
from gsg_jax.devices import hosts

# Where a run may be; what a host says of itself to the others.
STARTING = "starting"
COMPILING = "compiling the step"
STEPPING = "handing the step to the devices"
WAITING_FOR_BATCH = "waiting for a batch"
WAITING_FOR_DEVICES = "waiting for the devices"
SAVING = "saving"
MONITORING = "the k-NN monitor"

# A large network compiles for many minutes, and nothing moves meanwhile.
_COMPILES = (STARTING, COMPILING)
_LONGER = 4
# Between two looks, at most; the hosts tell one another where they are as often.
_LOOK_SECONDS = 5.0
_NAMED_IMAGES = 4
_DUMP_SECONDS = 10.0


class Place(NamedTuple):
    """Where a run is: after how many steps, and at what."""

    step: int
    phase: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.phase}"


class Watchdog:
    """Looks now and then where the run is; a context manager.

    What has not moved for `seconds` is said in one line, with the stacks of all threads in
    DIR/stacks-HOST.txt; after as long again the process ends with the status AGAIN. Starting and
    compiling may take four times as long. Nothing is looked at or told by the run's own thread.
    """

    def __init__(
        self,
        seconds: float,
        workdir: pathlib.Path,
        busy: Callable[[], list[Busy]] = list,
        end: Callable[[int], None] = os._exit,
    ):
        """Prepares the thread; it starts with the block.

        Args:
          seconds: of patience; 0 for no watchdog.
          workdir: DIR.
          busy: says which images are being read.
          end: ends the process with a status.
        """
        self._seconds, self._workdir, self._busy, self._end = seconds, workdir, busy, end
        self._place = Place(0, STARTING)
        self._host = jax.process_index()
        self._note = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        if self._seconds:
            self._thread.join(_LOOK_SECONDS)

    def at(self, phase: str, step: int | None = None) -> None:
        """Notes that the run has come to a phase, or once more to the same one: it moves.

        Args:
          phase: one of this module's names.
          step: steps done before; None for the same as at the last note.
        """
        self._place = Place(
            self._place.step if step is None else step, phase
        )  # a new one: it moves

    def _watch(self) -> None:
        look = min(_LOOK_SECONDS, self._seconds / 8)
        place, still, is_told, last = None, 0.0, False, time.monotonic()
        while not self._is_over.wait(look):
            now = time.monotonic()
            still += min(now - last, 2 * look)  # a process that was stopped itself does not hang
            last = now
            if place is not self._place:
                place, still, is_told = self._place, 0.0, False
            self._leave_note(str(place))
            allowed = self._seconds * (_LONGER if place.phase in _COMPILES else 1)
            if still > 2 * allowed:
                self._give_up(place, still)
            elif still > allowed and not is_told:
                is_told = True
                self._report(place, still, allowed)

    def _leave_note(self, note: str) -> None:
        if note != self._note:
            hosts.leave_note(note)
            self._note = note

    def _report(self, place: Place, still: float, allowed: float) -> None:
        stacks = self._dump_stacks(place, still)
        say_everywhere(
            f"warning: {self._where(place, still)}; {stacks}; "
            f"if nothing moves, the run ends in {allowed:.0f} s (run.watchdog_seconds)"
        )

    def _give_up(self, place: Place, still: float) -> None:
        self._dump_stacks(place, still)
        for child in multiprocessing.active_children():  # one that is stopped cannot end itself
            child.kill()
        say_everywhere(
            f"error: {self._where(place, still)}: the run hangs and is ended, with status {AGAIN}; "
            "the same command goes on from the newest checkpoint"
        )
        sys.stderr.flush()
        self._end(AGAIN)
        self._is_over.set()

    def _where(self, place: Place, still: float) -> str:
        """Which host stands still, at what, and who is to blame, as far as it can be told."""
        parts = [f"host {self._host} has not moved for {still:.0f} s at {place}"]
        if place.phase == WAITING_FOR_BATCH:
            parts.append(_readers(self._busy()))
        if notes := hosts.notes():
            parts.append(suspicion(notes))
        return "; ".join(parts)

    def _dump_stacks(self, place: Place, still: float) -> str:
        """Adds the stacks to their file; says where they are, or why they are not."""
        path = self._workdir / f"stacks-{self._host}.txt"
        outcome = [f"{path} cannot be written (no end within {_DUMP_SECONDS:.0f} s)"]

        def dump():
            try:
                with path.open("a") as file:
                    now = datetime.datetime.now().isoformat(" ", "seconds")
                    file.write(f"\n{now}, process {os.getpid()}, {still:.0f} s at {place}\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
            except OSError as error:
                outcome.append(f"{path} cannot be written ({error.strerror})")
            else:
                outcome.append(f"the stacks are in {path}")

        # In a thread of its own: a store that hangs may be why the run does.
        thread = threading.Thread(target=dump, name="stacks", daemon=True)
        thread.start()
        thread.join(_DUMP_SECONDS)
        return outcome[-1]


def suspicion(notes: dict[int, str]) -> str:
    """Says which hosts the others wait for.

    Args:
      notes: what each host has told last, {host: str(Place)}.

    Returns:
      One clause: the hosts that do not wait for the devices, as those do that wait for a host.
    """
    waiting = [host for host, note in notes.items() if note.endswith(WAITING_FOR_DEVICES)]
    others = [
        f"host {host} ({note})" for host, note in sorted(notes.items()) if host not in waiting
    ]
    if not others:
        return f"all {len(notes)} hosts wait for the devices"
    if not waiting:
        return f"no host waits for the devices: {', '.join(others)}"
    return (
        f"{len(waiting)} of {len(notes)} hosts wait for the devices, {', '.join(others)} does not"
    )


def _readers(busy: list[Busy]) -> str:
    if not busy:
        return "no image is being read"
    longest = sorted(busy, key=lambda one: -one.seconds)
    said = [f"{one.who} has been at {one.image} for {one.seconds:.0f} s" for one in longest]
    more = ", ..." if len(said) > _NAMED_IMAGES else ""
    return ", ".join(said[:_NAMED_IMAGES]) + more
