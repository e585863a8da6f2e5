"""What a run writes down: metrics.jsonl, throughput.jsonl and TensorBoard events."""

import json
import os
import pathlib

from tensorboardX import SummaryWriter


class MetricsWriter:
    """Writes the logged steps of a workdir.

    metrics.jsonl holds only what the config and the data decide, so that two runs of one config
    on one machine write the same bytes, interrupted or not; throughput.jsonl holds what the clock
    decides. When a run resumes, the lines of steps that will be done again are dropped.

    Attributes:
      past: the lines of metrics.jsonl up to the first step.
      seconds_before: train_seconds of the run's earlier processes.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int):
        """Opens the files of DIR, which hold the lines of steps up to `first_step` afterwards."""
        self._metrics_path = workdir / "metrics.jsonl"
        self._throughput_path = workdir / "throughput.jsonl"
        self.past = _keep_steps(self._metrics_path, first_step)
        past_clock = _keep_steps(self._throughput_path, first_step)
        self.seconds_before = past_clock[-1]["train_seconds"] if past_clock else 0.0
        self._metrics = self._metrics_path.open("a")
        self._throughput = self._throughput_path.open("a")
        purge = first_step + 1 if first_step else None
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: dict[str, float], clock: dict[str, float]) -> None:
        """Writes one logged step.

        Args:
          step: steps done.
          values: what the config and the data decide; epoch, loss and so on.
          clock: what the clock decides; views_per_second and so on.
        """
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._throughput.write(json.dumps({"step": step, **clock}) + "\n")
        for name, value in {**values, **clock}.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings what was written to the disk, as a checkpoint of the same step will rely on it."""
        for file in (self._metrics, self._throughput):
            file.flush()
            os.fsync(file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        self._metrics.close()
        self._throughput.close()
        self._events.close()


def read_lines(path: pathlib.Path) -> list[dict]:
    """The objects of a .jsonl file, [] where there is none; half a last line is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old text or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _keep_steps(path: pathlib.Path, last_step: int) -> list[dict]:
    kept = [line for line in read_lines(path) if line["step"] <= last_step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
