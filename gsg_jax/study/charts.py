"""The charts of a study as SVG files, whose colours follow light and dark."""

import pathlib
import re
from collections.abc import Callable, Sequence

from markupsafe import Markup

from gsg_jax.report import charts as report_charts
from gsg_jax.report.charts import HEIGHT, WIDTH, Chart, Line, line_chart
from gsg_jax.study.cells import Study
from gsg_jax.study.results import CellResult, best_of, levels

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


def charts_of(study: Study, results: Sequence[CellResult]) -> dict[str, Chart]:
    """The charts by the names of their files; those without points are left out.

    A sweep has too many cells for a chart: the best of each group are drawn.
    """
    drawn = best_of(results).values() if study.is_sweep else [r.cell.name for r in results]
    done = [result for result in results if result.records and result.cell.name in drawn]
    beaten_scores = levels([record for result in done for record in result.records.values()])
    beaten = [
        Line(name, [(0.0, 100 * value)], is_level=True) for name, value in beaten_scores.items()
    ]

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
            [*of, *(beaten if name.startswith("knn") else ())],
            unit=unit,
            x_name=x_name,
            low=None if name.startswith("knn") else 0,
        )
        for name, (of, title, unit, x_name) in wanted.items()
        if of
    }


def _millions(_result: CellResult) -> float:
    return 1e-6


def _hours(result: CellResult) -> float:
    """Processor hours of training per view."""
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
