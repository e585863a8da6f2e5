"""Runs a study: each run is a process of its own, claimed by a lock; a finished run is a file.

For a run in DIR, DIR/CELL-SEED is the workdir, DIR/CELL-SEED.json the record of this module,
DIR/CELL-SEED.log the run's messages, and DIR/CELL-SEED.lock is held while a process runs it.
"""

import contextlib
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from filelock import FileLock, Timeout

from gsg_jax.config.load import FOLDERS
from gsg_jax.console import UserError, say
from gsg_jax.run.files import read_object, write_atomically
from gsg_jax.run.record import RunRecord, read_run_record
from gsg_jax.study.cells import Run

LOOK_AGAIN_SECONDS = 5.0  # at runs that other processes have claimed
# Keys in which a record may differ: they change no score by more than rounding.
FREE = (*FOLDERS, "eval.knn_pixels", "eval.inspect_gradients")


class Stop:
    """Whether a signal has asked to stop, and the process that it is passed on to."""

    def __init__(self):
        self.is_requested = False
        self._process: subprocess.Popen | None = None

    def request(self, *_signal) -> None:
        """Stops the running process, which saves; the study ends after it."""
        self.is_requested = True
        if self._process:
            self._process.terminate()

    def wait_for(self, process: subprocess.Popen) -> str:
        """Waits for the end of a process; returns what it has written to standard output."""
        self._process = process
        if self.is_requested:
            process.terminate()
        out, _ = process.communicate()
        self._process = None
        return out

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """In its block SIGTERM, SIGHUP and Ctrl-C request the stop; nohup keeps SIGHUP ignored."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self.request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_all(
    runs: Sequence[Run],
    folder: pathlib.Path,
    *,
    stop: Stop,
    when_run: Callable[[], None],
) -> dict[str, str]:
    """Runs what is not finished, one after another; waits for what other processes have claimed.

    Args:
      runs: in this order.
      folder: DIR.
      stop: ends the loop.
      when_run: called after every run.

    Returns:
      {name: the reason} of the runs that failed.
    """
    failed: dict[str, str] = {}
    start, todo, is_waiting = time.monotonic(), list(runs), False
    while todo and not stop.is_requested:
        num_before = len(todo)
        for run in list(todo):
            if stop.is_requested:
                break
            if not is_finished(read_record(folder, run)):
                with claim(folder / f"{run.name}.lock") as held:
                    if held is None:
                        continue
                    if not is_finished(read_record(folder, run)):
                        say(f"{run.name}: begins; its log is {folder / run.name}.log")
                        record = attempt(run, folder, held, stop)
                        if "error" in record:
                            failed[run.name] = record["error"]
                        say(_line(run, record, runs, folder, time.monotonic() - start))
                        when_run()
            todo.remove(run)
        if len(todo) == num_before and not stop.is_requested:
            if not is_waiting:
                say(f"waiting for {', '.join(run.name for run in todo)}: other processes run them")
            is_waiting = True
            time.sleep(LOOK_AGAIN_SECONDS)
    return failed


@contextlib.contextmanager
def claim(path: pathlib.Path) -> Iterator[int | None]:
    """Holds a lock of the operating system; yields its descriptor, or None if another holds it.

    A run inherits the descriptor, and so holds its lock even if the study is killed meanwhile.
    """
    held: list[int] = []
    lock = FileLock(path, timeout=0, fallback_to_soft=False, on_acquired=held.append)
    try:
        lock.acquire()
    except Timeout:
        yield None
        return
    except OSError as error:
        raise UserError(
            f"--workdir={path.parent} cannot be locked ({error.strerror}): give a folder on a file "
            "system with locks, on which the runs of a study rely"
        ) from error
    try:
        yield held[0]
    finally:
        lock.release()


def read_record(folder: pathlib.Path, run: Run) -> dict[str, Any]:
    """What is known of a run; {} before its first attempt has ended.

    It has figures if the run is complete, with the metric and the evaluations that are asked for.

    Raises:
      UserError: if the folder holds another run of this name.
    """
    path = folder / f"{run.name}.json"
    if not path.exists():
        return {}
    record, ours = read_object(path), _definition(run)
    there = {"config": record.get("config"), **record.get("overrides", {})}
    here = {"config": ours["config"], **ours["overrides"]}
    if "config_digest" in record:
        there["the text of the config"] = record["config_digest"]
        here["the text of the config"] = ours.get("config_digest", "")
    differing = [
        f"{key} ({there.get(key)} there, {here.get(key)} here)"
        for key in {**there, **here}
        if key not in FREE and there.get(key) != here.get(key)
    ]
    if differing:
        raise UserError(
            f"{path} is of another {run.name}, which differs in {'; '.join(differing[:5])}: give "
            "another --workdir, or another name to the cell"
        )
    evaluated = set(run.evaluations) <= set(record.get("evaluations", ()))
    if not evaluated or run.metric not in record.get("figures", {}):
        record.pop("figures", None)
    return record


def is_finished(record: dict[str, Any]) -> bool:
    """Whether a record of read_record is of a run that is complete, with its evaluations."""
    return "figures" in record


def attempt(run: Run, folder: pathlib.Path, held: int, stop: Stop) -> dict[str, Any]:
    """Runs or resumes a run and evaluates it; returns its record, which is written before."""
    record = {"seconds": 0.0, "processor_seconds": 0.0, "attempts": 0} | read_record(folder, run)
    record = {key: value for key, value in record.items() if key != "error"} | _definition(run)
    start, processor_start, workdir = time.monotonic(), _processor_seconds(), folder / run.name
    with (folder / f"{run.name}.log").open("a+") as log:
        try:
            figures = _call(command(run, workdir), log, held, stop)
            if figures["step"] < figures["num_steps"]:
                raise UserError(f"stopped at step {figures['step']} of {figures['num_steps']}")
            for name in run.evaluations:
                figures = _call([name, f"--config.pretrained={workdir}"], log, held, stop) | figures
            if run.metric not in figures:
                raise UserError(f"it ends without the figure {run.metric}")
            record |= _results(read_run_record(workdir)) | {"figures": figures}
            record["evaluations"] = list(run.evaluations)
        except UserError as error:
            record |= {} if stop.is_requested else {"error": str(error)}
    record["seconds"] += time.monotonic() - start
    record["processor_seconds"] += _processor_seconds() - processor_start
    record["attempts"] += 1
    write_atomically(folder / f"{run.name}.json", json.dumps(record) + "\n")
    return record


def command(run: Run, workdir: pathlib.Path) -> list[str]:
    """The words after `gsg-jax` that run a run."""
    flags = [f"--config.{key}={value}" for key, value in run.overrides.items()]
    return [run.cell.config, f"--workdir={workdir}", *flags]


def _call(words: list[str], log: IO[str], held: int, stop: Stop) -> dict[str, Any]:
    """Runs `gsg-jax` in a process; returns its last line, or raises UserError with its error."""
    begin = log.seek(0, 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "gsg_jax", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        pass_fds=(held,),
    )
    out = stop.wait_for(process)
    if process.returncode:
        log.seek(begin)
        said = [line for line in log if line.startswith("error: ")] or [""]
        reason = said[-1].removeprefix("error: ").strip()
        raise UserError(reason or f"ended with status {process.returncode}; see {log.name}")
    return json.loads(out.splitlines()[-1])


def _processor_seconds() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _definition(run: Run) -> dict[str, Any]:
    """What tells a run from another one of its name, as JSON."""
    made = {"cell": run.cell.name, "seed": run.seed, "config": run.cell.config}
    made |= {"config_digest": run.config_digest} if run.config_digest else {}
    return json.loads(json.dumps(made | {"overrides": run.overrides}))


def _results(of: RunRecord) -> dict[str, Any]:
    """What a study keeps of a run's files: its curves over views, its costs, and its origin."""
    views = of.config["method"]["num_views"] + of.config["views"]["num_local"]
    views *= of.config["data"]["batch_size"]  # of a step
    timed_views = sum(line["views_per_second"] * line["interval_seconds"] for line in of.clock)
    timed = sum(line["interval_processor_seconds"] for line in of.clock)

    def curve_of(name: str) -> list[tuple[int, float]]:
        return [(line["step"] * views, round(line[name], 4)) for line in of.lines if name in line]

    curve = curve_of("knn_top1")
    if "knn_top1_untrained" in of.baselines:
        curve = [(0, of.baselines["knn_top1_untrained"]), *curve]
    spread = {name: curve_of(name) for name in ("embedding_rank", "projection_std")}
    return {
        "knn_curve": curve,
        **{f"{name}_curve": points for name, points in spread.items()},
        **{name: points[-1][1] for name, points in spread.items() if points},
        "views": of.lines[-1]["step"] * views,
        "processor_seconds_per_view": timed / timed_views if timed_views else None,
        "commits": sorted({start["commit"] for start in of.starts}),
        "machines": sorted({start["machine"] for start in of.starts}),
    }


def _line(
    run: Run, record: dict[str, Any], runs: Sequence[Run], folder: pathlib.Path, elapsed: float
) -> str:
    """A line about an attempt: its end, and how much of the study is done."""
    if not is_finished(record):
        end = f"not finished: {record.get('error', 'stopped and saved')}"
    else:
        knn = record["figures"].get("knn_top1")
        score = "" if knn is None else f"k-NN {100 * knn:.2f} %, "
        end = f"{score}{duration(record['seconds'])}"
    records = [(run, read_record(folder, run)) for run in runs]
    num_done = sum(is_finished(record) for _, record in records)
    left = seconds_left(records)
    rest = f", about {duration(left)} left" if left else ""
    return (
        f"{run.name}: {end}; {num_done} of {len(runs)} runs are done, "
        f"{duration(elapsed)} elapsed{rest}"
    )


def seconds_left(records: Sequence[tuple[Run, dict[str, Any]]]) -> float | None:
    """Seconds that the unfinished runs take one process; None if none is finished to judge by.

    A run takes as long as those of its cell, or else, per view, as the others.
    """
    done = [(run, record["seconds"]) for run, record in records if is_finished(record)]
    if not done:
        return None
    pace = sum(seconds for _, seconds in done) / sum(run.view_epochs for run, _ in done)

    def expected(run: Run) -> float:
        same = [seconds for other, seconds in done if other.cell.name == run.cell.name]
        return sum(same) / len(same) if same else pace * run.view_epochs

    return sum(expected(run) for run, record in records if not is_finished(record))


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
