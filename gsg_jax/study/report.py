"""What a study has found so far: study.json, study.md and its charts."""

import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from gsg_jax.report import charts as report_charts
from gsg_jax.report.charts import HEIGHT, WIDTH, Chart, Line, line_chart
from gsg_jax.run.files import write_atomically
from gsg_jax.study.cells import Cell, Loaded, Study, against
from gsg_jax.study.running import is_finished
from gsg_jax.study.statistics import Interval, interval, paired, verdict

MILLION = 1e6
ORIGINS = ("commits", "machines")
HOURS, SPREAD_UNIT = "processor hours of training", "times the root of the width"
# The style of the run's page: its colours follow light and dark.
_COLOURS = re.match(
    r":root \{.*?\n\}\n",
    pathlib.Path(report_charts.__file__).with_name("page").joinpath("style.css").read_text(),
    re.DOTALL,
)[0]
_STYLE = (
    _COLOURS
    + """text { font: 12px system-ui, sans-serif; fill: var(--faint); }
.ground { fill: var(--ground); } .title { font-weight: 600; fill: var(--ink); }
.y { text-anchor: end; } .x { text-anchor: middle; } .grid { stroke: var(--edge); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.faint { fill: none; stroke-width: 1; opacity: .35; }
"""
)
_LEGEND_COLUMNS, _LEGEND_ROW, _TITLE = 2, 18, 26


class CellResult(NamedTuple):
    """The finished runs of a cell.

    Attributes:
      cell: of the study.
      records: by seed.
      scores: of the metric, by seed.
      score: their mean.
    """

    cell: Cell
    records: dict[int, dict[str, Any]]
    scores: dict[int, float]
    score: Interval

    def mean(self, name: str) -> float | None:
        """The mean of a figure of the records; None if none has it."""
        values = [record[name] for record in self.records.values() if record.get(name) is not None]
        return float(np.mean(values)) if values else None

    def curve(self, name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """A curve over views, the mean of the runs that have each point."""
        points: dict[float, list[float]] = {}
        for record in self.records.values():
            for views, value in record.get(name, ()):
                points.setdefault(views, []).append(scale * value)
        return [(views, float(np.mean(values))) for views, values in sorted(points.items())]


class Comparison(NamedTuple):
    """A cell against another one, over the seeds that both have.

    Attributes:
      cell: its name.
      other: name of the other one.
      difference: of the metric, the cell's less the other's.
      verdict: whether the cell is better.
    """

    cell: str
    other: str
    difference: Interval
    verdict: str


def results_of(study: Study, records: Iterable[dict[str, Any]]) -> list[CellResult]:
    """The results of every cell, in the study's order; a sweep's groups are sorted, best first."""
    done = [record for record in records if is_finished(record)]
    results = []
    for cell in study.cells:
        own = {record["seed"]: record for record in done if record["cell"] == cell.name}
        scores = {seed: record["figures"][study.metric] for seed, record in sorted(own.items())}
        results.append(CellResult(cell, own, scores, interval(list(scores.values()))))
    if study.is_sweep:
        groups = list(dict.fromkeys(cell.group for cell in study.cells))

        def place(result: CellResult) -> tuple[int, float]:
            mean = result.score.mean
            return groups.index(result.cell.group), math.inf if math.isnan(mean) else -mean

        results.sort(key=place)
    return results


def comparisons_of(study: Study, results: Sequence[CellResult]) -> list[Comparison]:
    """Every comparison that a study asks for."""
    by_name = {result.cell.name: result for result in results}
    found = []
    for cell in study.cells:
        for other in against(study, cell):
            difference = paired(by_name[cell.name].scores, by_name[other].scores)
            found.append(Comparison(cell.name, other, difference, verdict(difference)))
    return found


def best_of(results: Sequence[CellResult]) -> dict[str, str]:
    """The best cell of each group of a sweep, by mean."""
    found: dict[str, str] = {}
    for result in results:  # sorted
        if result.scores:
            found.setdefault(result.cell.group, result.cell.name)
    return found


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
    failed = {name: record["error"] for name, record in named.items() if "error" in record}
    hours = sum(record.get("processor_seconds", 0.0) for record in records) / 3600
    about = {
        "job": "study",
        "study": loaded.name,
        "metric": study.metric,
        "num_done": len(named) - len(left),
        "num_left": len(left),
        "processor_hours": round(hours, 2),
    }
    rows = [_as_dict(result) for result in results]
    verdicts = [_finite(c._asdict() | c.difference._asdict()) for c in comparisons]
    whole = about | {"cells": rows, "comparisons": verdicts, "best": best, "left": left}
    whole |= {"failed": failed, "command": command, "runs": [r for r in records if r]}
    write_atomically(folder / "study.json", json.dumps(whole, indent=1) + "\n")
    charts = _charts(study, results)
    for name, chart in charts.items():
        write_atomically(folder / f"{name}.svg", picture(chart))
    text = _page(loaded, results, comparisons, best, charts, whole)
    write_atomically(folder / "study.md", text)
    said = {f"{c.cell} against {c.other}": c.verdict for c in comparisons}
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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
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
    if comparisons:
        head = ("cell", "against", "pairs", "difference, points", "better?")
        rows = [
            (c.cell, c.other, str(c.difference.num), percent(c.difference, "+"), c.verdict)
            for c in comparisons
        ]
        parts += [table(head, rows)]
    head = ("cell", "seeds", f"{study.metric}, %", "rank", "deviation", "M views", "processor h")
    parts += [table(head, map(_row, results))]
    parts += [f"The best of {group or 'all'} is {name}.\n" for group, name in best.items()]
    parts += [f"![{chart.title}]({name}.svg)\n" for name, chart in charts.items()]
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
    levels = _levels(records)
    sentences = [
        "Means over the seeds with their 95 % intervals by Student's t; a difference is that of "
        "the runs of one seed. Rank is the effective rank of a batch's embeddings, deviation that "
        "of its normalised projections times the root of their width (0: collapsed), both of the "
        "last logged step; views and processor hours are those of one run.",
        *(f"k-NN of {name}: {100 * value:.2f} %." for name, value in levels.items()),
        f"Configs: {', '.join(dict.fromkeys(cell.config for cell in study.cells))}; "
        f"seeds {', '.join(map(str, study.seeds))}.",
        *(f"{_capital(name)}: {', '.join(_texts(records, name))}." for name in ORIGINS if records),
        f"{whole['processor_hours']:.1f} processor hours in total, killed attempts aside.",
    ]
    if whole["left"]:
        sentences.append(f"Not finished: {', '.join(whole['left'])}.")
    sentences += [f"{name} failed: {why.rstrip('.')}." for name, why in whole["failed"].items()]
    return "\n".join(sentences) + f"\n\n    {whole['command']}\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _texts(records: Sequence[dict[str, Any]], name: str) -> list[str]:
    return sorted({text or "unknown" for record in records for text in record[name]})


def _levels(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the cells have to beat: the mean of their untrained encoders, and raw pixels."""
    names = {"untrained encoders": "knn_top1_untrained", "raw pixels": "knn_top1_pixels"}
    values = {
        text: [record["figures"][name] for record in records if name in record["figures"]]
        for text, name in names.items()
    }
    return {text: float(np.mean(of)) for text, of in values.items() if of}


def _charts(study: Study, results: Sequence[CellResult]) -> dict[str, Chart]:
    """The charts by the names of their files; those without points are left out.

    A sweep has too many cells for a chart: the best of each group are drawn.
    """
    drawn = best_of(results).values() if study.is_sweep else [r.cell.name for r in results]
    done = [result for result in results if result.records and result.cell.name in drawn]
    levels = _levels([record for result in done for record in result.records.values()])
    lines = [Line(name, [(0.0, 100 * value)], is_level=True) for name, value in levels.items()]

    def over(x_of: Callable[[CellResult], float], figure: str, scale: float = 1.0) -> list[Line]:
        curves = [(r.cell.name, x_of(r), r.curve(figure, scale)) for r in done]
        return [
            Line(name, [(x * views, y) for views, y in points], is_noisy=scale == 1)
            for name, x, points in curves
            if x and points
        ]

    views, share = "million views", "% of the test images"
    wanted = {
        "knn_views": (over(_millions, "knn_curve", 100), "k-NN over views", share, views),
        "knn_work": (over(_hours, "knn_curve", 100), "k-NN over work", share, HOURS),
        "rank": (
            over(_millions, "embedding_rank_curve"),
            "Effective rank of embeddings",
            "directions",
            views,
        ),
        "deviation": (
            over(_millions, "projection_std_curve"),
            "Deviation of projections",
            SPREAD_UNIT,
            views,
        ),
    }
    return {
        name: line_chart(
            title,
            [*of, *(lines if name.startswith("knn") else ())],
            unit=unit,
            x_name=x_name,
            low=None if name.startswith("knn") else 0,
        )
        for name, (of, title, unit, x_name) in wanted.items()
        if of
    }


def _millions(_result: CellResult) -> float:
    return 1 / MILLION


def _hours(result: CellResult) -> float:
    """Processor hours of training a view."""
    return (result.mean("processor_seconds_per_view") or 0.0) / 3600


def picture(chart: Chart) -> str:
    """A chart with its title and legend as an SVG file."""
    rows = -(-len(chart.legend) // _LEGEND_COLUMNS)
    height = _TITLE + HEIGHT + rows * _LEGEND_ROW + 8
    entry = Markup(
        '<path class="line" style="stroke:var(--c{})" stroke-dasharray="{}" d="M{} {}h24"/>'
        '<text x="{}" y="{}">{}</text>'
    )
    entries = []
    for n, (name, colour, dashes) in enumerate(chart.legend):
        row, column = divmod(n, _LEGEND_COLUMNS)
        x, y = 16 + column * WIDTH // _LEGEND_COLUMNS, _TITLE + HEIGHT + 10 + row * _LEGEND_ROW
        entries.append(entry.format(colour, dashes, x, y, x + 32, y + 4, name))
    place = f'y="{_TITLE}" width="{WIDTH}" height="{HEIGHT}"'
    inner = str(chart.svg).replace("<svg ", f"<svg {place} ", 1)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img">\n'
        "<title>{}</title>\n<style>\n{}</style>\n"
        '<rect class="ground" width="100%" height="100%"/>\n'
        '<text class="title" x="16" y="18">{}, {}</text>\n{}\n{}\n</svg>\n'
    ).format(
        *(WIDTH, height, chart.title, Markup(_STYLE), chart.title, chart.unit),
        *(Markup(inner), Markup("\n").join(entries)),
    )
