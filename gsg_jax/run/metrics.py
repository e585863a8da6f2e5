"""What a run logs: metrics.jsonl, throughput.jsonl and TensorBoard events."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gsg_jax.console import UserError, say
from gsg_jax.devices.hosts import is_writer
from gsg_jax.run.files import TIMED, read_lines, write_atomically


class MetricsLog:
    """The logged steps of a workdir, written by the first host and read by all.

    metrics.jsonl holds only what the config and the data decide, so two runs of one config on one
    machine write the same bytes, interrupted or not; throughput.jsonl holds what the clock decides.
    When a run resumes, the lines of steps that will be done again are dropped.

    Attributes:
      past: the lines of metrics.jsonl up to the first step.
      seconds_before: train_seconds of the run's earlier processes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        first_step: int,
        copy: Callable[[int, dict[str, float]], None] | None = None,
        every: int = 0,
    ):
        """Opens the files of DIR, which hold the lines of steps up to `first_step` afterwards.

        Args:
          workdir: DIR.
          first_step: of this process; the steps after it will be done again.
          copy: takes each step that is written and its figures.
          every: steps between two logged ones; missing lines cause a warning.
        """
        self._paths = (workdir / "metrics.jsonl", workdir / "throughput.jsonl")
        self._copy = copy
        self.past, past_clock = (
            [line for line in read_lines(path, names) if line["step"] <= first_step]
            for path, names in zip(self._paths, ((), TIMED), strict=True)
        )
        for path, lines in zip(self._paths, (self.past, past_clock), strict=True):
            due = set(range(every, first_step + 1, every)) if every else set()
            if missing := due - {line["step"] for line in lines}:
                say(
                    f"warning: {path} lacks {len(missing)} logged steps, the first is "
                    f"{min(missing)}: restore it, or its curves have gaps"
                )
        self.seconds_before = past_clock[-1]["train_seconds"] if past_clock else 0.0
        self._files, self._events = (), None
        if is_writer():
            for path, lines in zip(self._paths, (self.past, past_clock), strict=True):
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
            self._files = tuple(path.open("a") for path in self._paths)
            self._events = _open_events(workdir / "tensorboard", first_step)

    def write(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Writes one logged step: what the config and the data decide, and what the clock does."""
        if not self._files:
            return
        figures = values | clock
        summary = [Summary.Value(tag=name, simple_value=x) for name, x in figures.items()]
        with self._named():
            for file, part in zip(self._files, (values, clock), strict=True):
                file.write(json.dumps({"step": step, **part}) + "\n")
                file.flush()  # for those who watch the file
            self._events.write_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=summary))
            )
        if self._copy:
            self._copy(step, figures)

    def flush(self) -> None:
        """Forces what was written onto the disk, since a checkpoint of the same step relies on it.

        Raises:
          UserError: if the files are no longer there.
        """
        if not self._files:
            return
        for path, file in zip(self._paths, self._files, strict=True):
            if not path.exists():
                raise UserError(
                    f"{path} has vanished during the run: bring the workdir back, and the same "
                    "command resumes"
                )
            with self._named():
                os.fsync(file.fileno())
        with self._named():
            self._events.flush()

    def close(self) -> None:
        """Closes the files, all of them even if one cannot be written."""
        with self._named(), contextlib.ExitStack() as files:
            for file in (*self._files, *([self._events] if self._events else [])):
                files.callback(file.close)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the folder to a write error that names no file, as on a full disk."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._paths[0].parent)
            raise


def _open_events(folder: pathlib.Path, first_step: int) -> EventsWriter:
    """TensorBoard events, written at once: SummaryWriter's thread hangs the run on a full disk."""
    folder.mkdir(exist_ok=True)
    is_resumed = first_step or any(folder.iterdir())
    events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    if is_resumed:  # hides the steps that will be done again
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=start))
    return events
