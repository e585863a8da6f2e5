"""What the finished runs of a study amount to: scores, differences and verdicts."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gsg_jax.study.cells import Cell, Study, against
from gsg_jax.study.running import is_finished
from gsg_jax.study.statistics import Interval, interval, paired, verdict


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


def levels(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the cells have to beat: the mean of their untrained encoders, and raw pixels."""
    names = {"untrained encoders": "knn_top1_untrained", "raw pixels": "knn_top1_pixels"}
    values = {
        text: [record["figures"][name] for record in records if name in record["figures"]]
        for text, name in names.items()
    }
    return {text: float(np.mean(of)) for text, of in values.items() if of}
