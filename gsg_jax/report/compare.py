"""`gsg-jax compare DIR DIR ...`: runs side by side, on a terminal and in a page.

The last line of standard output is one JSON object of the runs' last figures. Exit status: 0 done,
1 failed with one clear line, 2 wrong usage.
"""

import argparse
import itertools
import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gsg_jax.config.load import flat, is_number
from gsg_jax.console import (
    Parser,
    argument_path,
    exit_status,
    last_line,
    say,
    shown,
    standard_error,
)
from gsg_jax.report.charts import figure
from gsg_jax.report.curves import curves_of_several
from gsg_jax.report.page import page
from gsg_jax.run.files import write_atomically
from gsg_jax.run.metrics import TIMED
from gsg_jax.run.record import Missing, RunRecord, read_run_record
from gsg_jax.train.timer import mean_views_per_second

PROGRAM = "gsg-jax compare"
# Figures that come first if a run has them.
FIRST = (
    *("step", "knn_top1", "knn_top1_untrained", "knn_top1_pixels", "knn_k", "loss"),
    *("projection_std", "embedding_rank", "rankme", "lidar", "views_per_second", "train_seconds"),
)
NONE = "none"  # a key that a run does not have
BEST = "★"
# Endings of figures whose highest value is the best, and of those whose lowest is.
HIGHER = ("top1", "top5", "mean_per_class", "mean_ap", "views_per_second")
LOWER = ("train_seconds",)
SECTIONS = {"settings": "differences", "curves": "curves"}  # of missing parts; else figures


class Comparison(NamedTuple):
    """Several runs side by side.

    Attributes:
      names: of the runs, all different.
      differences: {key: a text for each run} where the configs differ.
      figures: {name: a value for each run, None if it has none}.
      lengths: a sentence if the runs were not trained equally long, else "".
      missing: what the runs lack; each text begins with the run's name.
    """

    names: list[str]
    differences: dict[str, list[str]]
    figures: dict[str, list[float | None]]
    lengths: str
    missing: list[Missing]


def main(argv: list[str]) -> int:
    """Compares the runs of a command line; returns the exit status."""
    arguments = parse(argv)
    return exit_status(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> int:
    records = [read_run_record(folder) for folder in arguments.workdirs]
    comparison = compare(records)
    show(comparison)
    output = arguments.output or arguments.workdirs[0] / "compare.html"
    _write_page(output, comparison, records)
    figures = {
        name: {what: _as_json(values[n]) for what, values in comparison.figures.items()}
        for n, name in enumerate(comparison.names)
    }
    last = {"job": "compare", "page": str(output), "runs": figures}
    return last_line(last | {"differences": comparison.differences})


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line; ends the program with status 2 if it is wrong."""
    parser = Parser(
        prog=PROGRAM,
        description=__doc__.splitlines()[0].split(": ", 1)[1].capitalize(),
        epilog=f"example: {PROGRAM} runs/simsiam_gsg-default runs/simsiam-default",
    )
    parser.add_argument("workdirs", nargs="+", type=argument_path, metavar="DIR", help="of runs")
    parser.add_argument(
        "--output",
        type=argument_path,
        metavar="FILE",
        help="the page (compare.html in the first DIR)",
    )
    arguments = parser.parse_args(argv)
    if len(arguments.workdirs) < 2:
        parser.error(f"one run, {arguments.workdirs[0]}, cannot be compared: give two or more")
    if len({folder.resolve() for folder in arguments.workdirs}) < len(arguments.workdirs):
        parser.error("a run is given twice: give each once")
    if arguments.output and arguments.output.is_dir():
        parser.error(f"--output={arguments.output}: is a folder; give the name of a file")
    return arguments


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Compares the figures and the configs of two or more runs."""
    configs = [flat(record.config) for record in records]
    keys = dict.fromkeys(key for config in configs for key in config)
    differences = {}
    for key in keys:
        values = [_as_text(config.get(key, NONE)) for config in configs]
        if len(set(values)) > 1:
            differences[key] = values
    figures = [_figures(record) for record in records]
    logged = dict.fromkeys(name for of in figures for name in of)
    known = dict.fromkeys([name for name in FIRST if name in logged]) | logged
    names = run_names([record.workdir for record in records])
    return Comparison(
        names,
        differences,
        {name: [of.get(name) for of in figures] for name in known},
        _lengths(names, records),
        [
            part._replace(text=f"{name}: {part.text}")
            for name, record in zip(names, records, strict=True)
            for part in record.missing
        ],
    )


def _lengths(names: Sequence[str], records: Sequence[RunRecord]) -> str:
    """Says how long the runs were trained if that differs."""
    last = [record.lines[-1] if record.lines else {"step": 0} for record in records]
    lengths = [(line["step"], line.get("epoch")) for line in last]
    if len(set(lengths)) == 1:
        return ""
    texts = [
        f"{name} {_count(step, 'step')}" + (f" ({_count(epoch, 'epoch')})" if epoch else "")
        for name, (step, epoch) in zip(names, lengths, strict=True)
    ]
    return f"The runs were not trained equally long: {', '.join(texts)}."


def _count(num: float, what: str) -> str:
    return f"{num:,.6g} {what}{'' if num == 1 else 's'}"


def run_names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Shortens paths of folders to the ends that tell them apart.

    Args:
      folders: all different.

    Returns:
      A name for each, all different.
    """
    parts = [folder.resolve().parts for folder in folders]
    ends = (["/".join(of[-length:]) for of in parts] for length in itertools.count(1))
    return next(names for names in ends if len(set(names)) == len(names))


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the comparison on a terminal, by default on standard error."""
    console = console or standard_error(soft_wrap=False)
    names = [escape(shown(name)) for name in comparison.names]
    if comparison.differences:
        table = Table("key", *names, title="Where the configs differ")
        for key, values in comparison.differences.items():
            table.add_row(*map(_cell, (key, *values)))
        console.print(table)
    else:
        console.print("The configs are the same.")
    title = f"Last figures of the runs; {BEST} marks the best"
    table = Table("figure", *names, title=title)
    for row in _rows(comparison):
        table.add_row(*map(_cell, row))
    console.print(table)
    for sentence in (comparison.lengths, *(part.text for part in comparison.missing)):
        if sentence:
            console.print(_cell(sentence), soft_wrap=True)  # a name in it begins no line


def _cell(text: str) -> Text:
    return Text(shown(text))


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    rows = []
    for name, values in comparison.figures.items():
        best = _best(name, values)
        cells = ["" if value is None else figure(value) for value in values]
        marks = [f"{BEST} " if best is not None and value == best else "" for value in values]
        rows.append((name, *map("".join, zip(marks, cells, strict=True))))
    return rows


def _best(name: str, values: Sequence[float | None]) -> float | None:
    """The best value of a figure; None if all are equal, or if none is known to be better."""
    finite = {value for value in values if value is not None and math.isfinite(value)}
    is_few = name.startswith("few_label_") and name.rpartition("_")[2].isdecimal()
    if len(finite) < 2 or not (is_few or name.endswith((*HIGHER, *LOWER))):
        return None
    return min(finite) if name.endswith(LOWER) else max(finite)


def _write_page(path: pathlib.Path, comparison: Comparison, records: Sequence[RunRecord]) -> None:
    """Writes the comparison as one HTML file that needs no network."""
    charts = curves_of_several(records, comparison.names)
    notes = defaultdict(list)
    for part in comparison.missing:
        notes[SECTIONS.get(part.section, "figures")].append(part.text)
    sections = {
        ("differences", "Differences"): True,
        ("figures", "Figures"): comparison.figures or notes["figures"],
        ("curves", "Curves"): charts or notes["curves"],
    }
    text = page(
        "compare.html",
        title=f"{len(records)} runs",
        names=comparison.names,
        sections=[section for section, content in sections.items() if content],
        notes=notes,
        lengths=comparison.lengths,
        differences=[(key, *values) for key, values in comparison.differences.items()],
        figures=_rows(comparison),
        best=BEST,
        charts=charts,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    say(f"the page is {path}")


def _figures(record: RunRecord) -> dict[str, Any]:
    """The last logged figure of each name, the baselines and the evaluations."""
    logged: dict[str, Any] = {}
    for line in (*record.clock, *record.lines):
        logged |= line
    for name in ("interval_seconds", "interval_processor_seconds"):
        logged.pop(name, None)
    if record.clock and all(line.keys() >= set(TIMED) for line in record.clock):
        logged["views_per_second"] = mean_views_per_second(record.clock)
    encoder = record.evaluated.get("encoder", "an encoder")
    judged = {
        f"evaluation of {encoder}: {name}": value
        for name, value in record.evaluation.items()
        if is_number(value)
    }
    return logged | record.baselines | judged


def _as_json(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
