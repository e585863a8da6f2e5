"""What a run writes down: metrics.jsonl, throughput.jsonl and TensorBoard events."""

import json
import os
import pathlib
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gsg_jax.console import UserError
from gsg_jax.devices import hosts

# Of a line of throughput.jsonl, what is read again.
TIMED = ("views_per_second", "interval_seconds", "train_seconds")


class Copy(Protocol):
    """Where the logged steps go besides the files of DIR."""

    def catch_up(self, lines: Iterable[dict[str, float]]) -> None:
        """Takes the steps that were logged before, each with its step among its figures."""

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Takes one logged step."""


class MetricsWriter:
    """Writes the logged steps of a workdir.

    metrics.jsonl holds only what the config and the data decide, so that two runs of one config
    on one machine write the same bytes, interrupted or not; throughput.jsonl holds what the clock
    decides. When a run resumes, the lines of steps that will be done again are dropped.

    Attributes:
      past: the lines of metrics.jsonl up to the first step.
      seconds_before: train_seconds of the run's earlier processes.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, copy: Copy | None = None):
        """Opens the files of DIR, which hold the lines of steps up to `first_step` afterwards.

        Args:
          workdir: DIR.
          first_step: of this process; the steps after it will be done again.
          copy: gets all that is written, and what was written before and it lacks.
        """
        self._metrics_path = workdir / "metrics.jsonl"
        self._throughput_path = workdir / "throughput.jsonl"
        self.past = _keep_steps(self._metrics_path, first_step)
        past_clock = _keep_steps(self._throughput_path, first_step, TIMED)
        self.seconds_before = past_clock[-1]["train_seconds"] if past_clock else 0.0
        self._metrics = self._metrics_path.open("a")
        self._throughput = self._throughput_path.open("a")
        self._events = _Events(workdir / "tensorboard", first_step)
        self._copy = copy
        if copy:
            clock = {line["step"]: line for line in past_clock}
            copy.catch_up(line | clock.get(line["step"], {}) for line in self.past)

    def write(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Writes one logged step.

        Args:
          step: steps done.
          values: what the config and the data decide; epoch, loss and so on.
          clock: what the clock decides; views_per_second and so on.
        """
        for file, figures in ((self._metrics, values), (self._throughput, clock)):
            file.write(json.dumps({"step": step, **figures}) + "\n")
            file.flush()  # for those who watch the file
        self._events.write(step, values | clock)
        if self._copy:
            self._copy.write(step, values | clock)

    def flush(self) -> None:
        """Brings what was written to the disk, as a checkpoint of the same step will rely on it.

        Raises:
          UserError: where the files are no longer there.
        """
        for path in (self._metrics_path, self._throughput_path):
            if not path.exists():
                raise UserError(
                    f"{path} has vanished during the run: bring the workdir back, and the same "
                    "command resumes"
                )
        for file in (self._metrics, self._throughput):
            os.fsync(file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._throughput.close()
        self._events.close()


class MetricsReader:
    """The same to look at, for a host that leaves the writing to another."""

    def __init__(self, workdir: pathlib.Path, first_step: int):
        """Reads what was logged up to `first_step`."""
        self.past = _up_to(workdir / "metrics.jsonl", first_step)
        past_clock = _up_to(workdir / "throughput.jsonl", first_step, TIMED)
        self.seconds_before = past_clock[-1]["train_seconds"] if past_clock else 0.0

    def write(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Writes nothing."""

    def flush(self) -> None:
        """Has nothing to bring to the disk."""

    def close(self) -> None:
        """Has nothing open."""


MetricsLog = MetricsWriter | MetricsReader


def open_metrics(workdir: pathlib.Path, first_step: int, copy: Copy | None = None) -> MetricsLog:
    """Opens the logs of DIR, on the one host that writes them to be written, and copied."""
    if hosts.is_writer():
        return MetricsWriter(workdir, first_step, copy)
    return MetricsReader(workdir, first_step)


class _Events:
    """TensorBoard events, written at once: SummaryWriter's thread hangs the run on a full disk."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if first_step:  # hides the steps that will be done again
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=first_step + 1, session_log=start)
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        figures = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._file.write_event(
            Event(wall_time=time.time(), step=step, summary=Summary(value=figures))
        )

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: pathlib.Path, names: Collection[str] = ()) -> list[dict]:
    """Reads a .jsonl file of logged steps.

    Args:
      path: of the file.
      names: figures that each line has, among others.

    Returns:
      Its objects, [] where there is no file; half a last line is left out.

    Raises:
      UserError: where another line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(json.loads(line))
            is_whole = _is_logged_step(objects[-1]) and objects[-1].keys() >= set(names)
        except (ValueError, RecursionError):
            is_whole = False
        if not is_whole:
            raise UserError(
                f"{path}, line {number} is damaged: remove that line, or give another --workdir"
            )
    return objects


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_logged_step(line: object) -> bool:
    """Whether a line is an object of numbers, of a whole step."""
    is_object = isinstance(line, dict) and all(map(is_number, line.values()))
    return is_object and isinstance(line.get("step"), int)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old text or the new, never a part.

    Of several hosts, which all call this with the same text, the first writes.
    """
    if not hosts.is_writer():
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _keep_steps(path: pathlib.Path, last_step: int, names: Collection[str] = ()) -> list[dict]:
    kept = _up_to(path, last_step, names)
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _up_to(path: pathlib.Path, last_step: int, names: Collection[str] = ()) -> list[dict]:
    return [line for line in read_lines(path, names) if line["step"] <= last_step]
