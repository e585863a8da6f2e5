"""Writes what a study has found so far: study.json, study.md and its charts."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from gsg_jax.report.charts import Chart
from gsg_jax.run.files import write_atomically
from gsg_jax.study.cells import Loaded, Study
from gsg_jax.study.charts import charts_of, picture
from gsg_jax.study.results import (
    CellResult,
    Comparison,
    best_of,
    comparisons_of,
    levels,
    results_of,
)
from gsg_jax.study.running import is_finished
from gsg_jax.study.statistics import Interval

ORIGINS = ("commits", "machines")
MOST_NAMED = 6  # runs that are not finished; study.json has all
MILLION = 1e6


def write_report(
    loaded: Loaded, records: Sequence[dict[str, Any]], folder: pathlib.Path, command: str
) -> dict[str, Any]:
    """Writes study.json, study.md and the charts of what is finished; returns the last line.

    Args:
      loaded: the study.
      records: of all of its runs, {} of those that have not begun.
      folder: DIR.
      command: that runs the study.
    """
    study = loaded.study
    results = results_of(study, records)
    comparisons = comparisons_of(study, results)
    best = best_of(results) if study.is_sweep else {}
    named = {run.name: record for run, record in zip(loaded.runs, records, strict=True)}
    left = [name for name, record in named.items() if not is_finished(record)]
    asked = {run.name for run in loaded.asked}
    failed = {name: record["error"] for name, record in named.items() if "error" in record}
    hours = sum(record.get("processor_seconds", 0.0) for record in records) / 3600
    about = {
        "job": "study",
        "study": loaded.name,
        "metric": study.metric,
        "num_done": len(asked.difference(left)),
        "num_left": len(asked.intersection(left)),
        "processor_hours": round(hours, 2),
    }
    rows = [_as_dict(result) for result in results]
    verdicts = [_finite(c._asdict() | c.difference._asdict()) for c in comparisons]
    whole = about | {"cells": rows, "comparisons": verdicts, "best": best, "left": left}
    whole |= {"failed": failed, "command": command, "runs": [r for r in records if r]}
    write_atomically(folder / "study.json", json.dumps(whole) + "\n")
    charts = charts_of(study, results)
    for name, chart in charts.items():
        write_atomically(folder / f"{name}.svg", picture(chart))
    text = _page(loaded, results, comparisons, best, charts, whole)
    write_atomically(folder / "study.md", text)
    said = {f"{c.cell} against {c.other}": c.verdict for c in comparisons if c.difference.num}
    return about | {"verdicts": said, "best": best, "failed": failed}


def _as_dict(result: CellResult) -> dict[str, Any]:
    means = ("embedding_rank", "projection_std", "views", "seconds", "processor_seconds")
    return _finite(
        {"cell": result.cell.name, "group": result.cell.group, "scores": result.scores}
        | result.score._asdict()
        | {name: result.mean(name) for name in means}
    )


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    figures.pop("difference", None)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def percent(of: Interval, sign: str = "") -> str:
    """An interval of shares in percent, for a table."""
    if math.isnan(of.mean):
        return "-"
    half = "" if math.isnan(of.half) else f" ± {100 * of.half:.2f}"
    return f"{100 * of.mean:{sign}.2f}{half}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; "" if it has no rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _page(
    loaded: Loaded,
    results: Sequence[CellResult],
    comparisons: Sequence[Comparison],
    best: dict[str, str],
    charts: dict[str, Chart],
    whole: dict[str, Any],
) -> str:
    """The text of study.md."""
    study, (title, _, text) = loaded.study, loaded.text.partition("\n")
    parts = [f"# {title.rstrip('.')}\n", text.strip("\n") + "\n"]
    rows = [
        (c.cell, c.other, str(c.difference.num), percent(c.difference, "+"), c.verdict)
        for c in comparisons
        if c.difference.num
    ]
    parts += [table(("cell", "against", "pairs", "difference, points", "better?"), rows)]
    head = ("cell", "seeds", f"{study.metric}, %", "rank", "deviation", "M views", "processor h")
    parts += [table(head, [_row(result) for result in results if result.scores])]
    parts += [f"The best of {group or 'all'} is {name}.\n" for group, name in best.items()]
    for name, chart in charts.items():
        parts += [f"![{chart.title}]({name}.svg)\n", f"{chart.note}\n" if chart.note else ""]
    parts += [_origin(study, results, whole)]
    return "\n".join(part for part in parts if part.strip())


def _row(result: CellResult) -> tuple[str, ...]:
    columns = (
        ("embedding_rank", 1, 1),
        ("projection_std", 1, 2),
        ("views", MILLION, 2),
        ("processor_seconds", 3600, 2),
    )
    values = [(result.mean(name), scale, digits) for name, scale, digits in columns]
    return (
        *(result.cell.name, str(result.score.num), percent(result.score)),
        *("-" if value is None else f"{value / scale:.{n}f}" for value, scale, n in values),
    )


def _origin(study: Study, results: Sequence[CellResult], whole: dict[str, Any]) -> str:
    """How the page was made, and what it lacks."""
    records = [record for result in results for record in result.records.values()]
    beaten = levels(records)
    sentences = [
        "Means over the seeds with their 95 % intervals by Student's t; a difference is that of "
        "the runs of one seed. Rank is the effective rank of a batch's embeddings, deviation that "
        "of its normalised projections times the root of their width (0: collapsed), both of the "
        "last logged step; views and processor hours are those of one run, the hours with "
        "compilation, scoring and evaluations.",
        *(f"k-NN of {name}: {100 * value:.2f} %." for name, value in beaten.items()),
        f"Configs: {', '.join(dict.fromkeys(r.cell.config for r in results if r.scores))}; "
        f"seeds {', '.join(map(str, study.seeds))}.",
        *(f"{_capital(name)}: {', '.join(_texts(records, name))}." for name in ORIGINS if records),
        f"{whole['processor_hours']:.1f} processor hours in total, killed attempts aside.",
    ]
    if left := whole["left"]:
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        sentences.append(f"Not finished: {', '.join(left[:MOST_NAMED])}{more}.")
    sentences += [f"{name} failed: {why.rstrip('.')}." for name, why in whole["failed"].items()]
    return "\n".join(sentences) + f"\n\n    {whole['command']}\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _texts(records: Sequence[dict[str, Any]], name: str) -> list[str]:
    return sorted({text or "unknown" for record in records for text in record[name]})
