"""`gsg-jax study --study=NAME`: runs the cells of a study by several seeds, and judges its claims.

What people read goes to standard error; the last line of standard output is one JSON object. Exit
status: 0 done, or stopped and saved; 1 if a cell failed; 2 wrong usage. The same command resumes.
"""

import argparse
import pathlib
import re
import shlex
from typing import Any

from gsg_jax.config.load import setting_of
from gsg_jax.console import (
    Parser,
    argument_path,
    exit_status,
    last_line,
    say,
)
from gsg_jax.run.lock import not_writable
from gsg_jax.study.cells import Loaded, load_study
from gsg_jax.study.report import percent, write_report
from gsg_jax.study.results import results_of
from gsg_jax.study.running import Stop, duration, read_record, run_all, seconds_left

PROGRAM = "gsg-jax study"
_SETTING = re.compile(r"--config\.[^=]+=")


def main(argv: list[str]) -> int:
    """Runs a study by its command line; returns the exit status."""
    arguments = parse(argv)
    return exit_status(lambda: _main(arguments, argv))


def _main(arguments: argparse.Namespace, argv: list[str]) -> int:
    loaded = load_study(
        arguments.study,
        images=str(arguments.images or ""),
        seeds=arguments.seeds,
        cells=arguments.cells,
        is_toy=arguments.toy,
        changes=arguments.changes,
        length=arguments.epochs,
    )
    folder = arguments.workdir or pathlib.Path("runs") / _default_name(arguments, loaded)
    command = f"{PROGRAM} {shlex.join(argv)}"
    last, failed = _study(loaded, folder, command, arguments)
    status = last_line(last)
    for name, reason in failed.items():
        say(f"error: {name} failed: {reason}")
    return 1 if failed else status


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line; ends the program with status 2 if it is wrong."""
    parser = Parser(
        prog=PROGRAM,
        description="Runs the cells of a study by several seeds, and judges its claims.",
        epilog="--config.KEY=VALUE changes a key in every cell. "
        f"Example: {PROGRAM} --study=gain --images=cifar10 --workdir=runs/gain",
    )
    add = parser.add_argument
    add("--study", required=True, metavar="NAME[:RECIPE]", help="a study's name or file")
    add(
        "--workdir",
        type=argument_path,
        metavar="DIR",
        help="of its runs and results (runs/study-NAME); "
        "several processes and machines may share it",
    )
    add("--images", type=argument_path, metavar="DIR", help="folder of the images")
    add("--seeds", type=_seeds, default=(), metavar="0,1", help="in place of the study's own")
    add("--cells", type=_words, default=(), metavar="A,B*", help="names or patterns of cells")
    add("--toy", action="store_true", help="a tiny network and the embedded images, to try it out")
    add("--epochs", type=_factor, default=1.0, metavar="0.1", help="times those of every cell")
    add("--dry_run", action="store_true", help="list the runs and end")
    add("--report_only", action="store_true", help="write the report of what there is and end")
    arguments, rest = parser.parse_known_args(argv)
    if wrong := [word for word in rest if not _SETTING.match(word)]:
        parser.error(f"unrecognized argument: {wrong[0]}")
    arguments.changes = dict(setting_of(word.removeprefix("--config.")) for word in rest)
    images = arguments.images
    if images and not (arguments.report_only or images.is_dir()):
        parser.error(f"argument --images: {images}: there is no such folder")
    return arguments


def _default_name(arguments: argparse.Namespace, loaded: Loaded) -> str:
    return f"study-{loaded.name}{'-toy' if arguments.toy else ''}"


def _study(
    loaded: Loaded, folder: pathlib.Path, command: str, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """Does what the flags ask for; returns the last line, and why runs failed."""
    if arguments.dry_run:
        _list([(run, read_record(folder, run)) for run in loaded.asked])
        return {"job": "study", "study": loaded.name, "num_runs": len(loaded.asked)}, {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from error

    def report() -> dict[str, Any]:
        records = [read_record(folder, run) for run in loaded.runs]
        return write_report(loaded, records, folder, command)

    last, failed, stop = report(), {}, Stop()
    if not arguments.report_only:
        say(f"study {loaded.name}: {len(loaded.asked)} runs in {folder}")
        with stop.on_signals():
            failed = run_all(loaded.asked, folder, stop=stop, when_run=report)
        last = report()
    for result in results_of(loaded.study, [read_record(folder, run) for run in loaded.runs]):
        if result.scores:
            say(f"{result.cell.name}: {percent(result.score)} %, seeds: {result.score.num}")
    say(*(f"{name}: {verdict}" for name, verdict in last["verdicts"].items()))
    say(*(f"the best of {group or 'all'} is {name}" for group, name in last["best"].items()))
    say(f"the report is {folder / 'study.md'}")
    if stop.is_requested:
        say("stopped: the same command resumes the study")
    return last, failed


def _list(records: list[tuple[Any, dict[str, Any]]]) -> None:
    """Prints every run, its work and whether it is finished."""
    for run, record in records:
        state = "done" if "figures" in record else "failed" if "error" in record else "to do"
        unsaid = ("run.report", "eval.knn_pixels")
        changes = {key: value for key, value in run.overrides.items() if key not in unsaid}
        values = ", ".join(f"{key}={value}" for key, value in changes.items())
        say(f"{run.name}: {state}; {run.view_epochs:g} views an image; {run.cell.config}, {values}")
    total = sum(run.view_epochs for run, _ in records)
    left = seconds_left(records)
    rest = "" if left is None else f", about {duration(left)} left for one process"
    say(f"{len(records)} runs, {total:g} views an image in total{rest}")


def _words(text: str) -> tuple[str, ...]:
    if not (words := tuple(filter(None, text.split(",")))):
        raise argparse.ArgumentTypeError("is empty: give some, or leave the flag out")
    return words


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e4:
        raise argparse.ArgumentTypeError(f"{text}: takes a number above 0, such as 0.1")
    return factor


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(map(int, _words(text)))
    except ValueError:
        seeds = (-1,)
    if min(seeds, default=-1) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text}: takes whole numbers, each once, such as 0,1,2")
    return seeds
