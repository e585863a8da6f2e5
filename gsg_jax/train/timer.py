"""Measures where a run's time goes: steps, waiting for data, everything else."""

import contextlib
import time
from collections.abc import Iterator


class Timer:
    """Measures views per second and the share of time spent waiting for data.

    A process's first step (which compiles), monitors and checkpoints count in train_seconds, not in
    views_per_second.
    """

    def __init__(self, views_per_step: int, seconds_before: float = 0.0):
        """Starts the timer; `seconds_before` were spent by earlier processes of the run."""
        self._views_per_step = views_per_step
        self._start = time.monotonic() - seconds_before
        self._is_first_step = True
        self._restart_interval()

    def _restart_interval(self) -> None:
        self._interval_start, self._processor_start = time.monotonic(), time.process_time()
        self._interval_steps, self._waited = 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts its block as time spent waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def stepped(self) -> None:
        """Counts a step."""
        self._interval_steps += 1
        if self._is_first_step:
            self._is_first_step = False
            self._restart_interval()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Ends an interval of steps; its block belongs to no interval."""
        yield
        self._restart_interval()

    def figures(self) -> dict[str, float]:
        """Returns the current interval's figures, its seconds, and train_seconds.

        Its processor seconds are those of all threads of this process.
        """
        seconds = max(time.monotonic() - self._interval_start, 1e-9)
        return {
            "views_per_second": self._interval_steps * self._views_per_step / seconds,
            "data_wait_share": min(self._waited / seconds, 1.0),
            "interval_seconds": seconds,
            "interval_processor_seconds": time.process_time() - self._processor_start,
            "train_seconds": self.train_seconds(),
        }

    def train_seconds(self) -> float:
        """Seconds that all processes of the run have taken so far."""
        return time.monotonic() - self._start


def mean_views_per_second(intervals: list[dict[str, float]]) -> float:
    """Mean over a run's intervals, each a dict of Timer.figures; 0 if there is none."""
    views = sum(line["views_per_second"] * line["interval_seconds"] for line in intervals)
    return views / max(sum(line["interval_seconds"] for line in intervals), 1e-9)
