"""Reads the files of a run; missing or damaged parts are named and the rest is used."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from gsg_jax.config.keys import FEW_LABELS
from gsg_jax.console import UserError
from gsg_jax.run.files import read_figures, read_lines
from gsg_jax.run.starts import read_starts
from gsg_jax.run.workdir import read_config

# The files of a run, what a page lacks without each, and the section of the page.
FILES = {
    "config.json": ("the settings, the images and the map", "settings"),
    "metrics.jsonl": ("the curves", "curves"),
    "throughput.jsonl": ("the speed", "curves"),
    "baselines.json": ("the accuracies of the untrained encoder and of raw pixels", "curves"),
}

# The accuracies of a run; few-label accuracies also have a standard error, NAME_error.
SCORES = ("knn_top1", *(f"few_label_{k}" for k in FEW_LABELS))


def baseline_name(name: str, who: str) -> str:
    """The name of a figure of "untrained", of "pixels" or, if who is "", of the run itself.

    For example, few_label_1_error of "pixels" is few_label_1_pixels_error.
    """
    is_error = name.endswith("_error")
    return name.removesuffix("_error") + (f"_{who}" if who else "") + is_error * "_error"


BASELINES = tuple(
    baseline_name(name + suffix, who)
    for who in ("untrained", "pixels")
    for name in SCORES
    for suffix in ("", "_error")
) + ("knn_k",)  # the k that was used


class Missing(NamedTuple):
    """A part that a page lacks.

    Attributes:
      section: of the page.
      text: a sentence.
    """

    section: str
    text: str


class RunRecord(NamedTuple):
    """What the files of a run hold.

    Attributes:
      workdir: DIR.
      config: plain dicts and lists; {} if config.json is missing.
      lines: of metrics.jsonl.
      clock: of throughput.jsonl.
      baselines: figures to beat, some of BASELINES.
      evaluation: figures of evaluation.json; {} if there is none.
      evaluated: the method, encoder and step of these; {} if they are not given.
      starts: of starts.jsonl.
      missing: the parts that are missing or damaged.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    lines: list[dict[str, float]]
    clock: list[dict[str, float]]
    baselines: dict[str, float]
    evaluation: dict[str, Any]
    evaluated: dict[str, Any]
    starts: list[dict[str, Any]]
    missing: tuple[Missing, ...]

    @property
    def name(self) -> str:
        """The method and the recipe, as far as they are known."""
        method = self.config.get("method", {}).get("name")
        recipe = self.config.get("recipe")
        return ", ".join(str(part) for part in (method, recipe) if part) or self.workdir.name


def read_run_record(workdir: pathlib.Path) -> RunRecord:
    """Reads the files of a run; raises UserError if none of them is there."""
    if not any((workdir / name).is_file() for name in FILES):
        raise UserError(
            f"{workdir} holds no run (none of {', '.join(FILES)}): give the --workdir of one"
        )
    missing = []

    def read(name: str, reader: Callable[[], Any], nothing: Any) -> Any:
        what, section = FILES[name]
        if not (workdir / name).is_file():
            text = f"{name} is missing: without it the page lacks {what}."
            missing.append(Missing(section, text))
            return nothing
        try:
            return reader()
        except UserError as error:
            text = f"{str(error).rstrip('.')}. The page lacks {what}."
            missing.append(Missing(section, text))
            return nothing

    config = read("config.json", lambda: read_config(workdir), {})
    lines = read("metrics.jsonl", lambda: read_lines(workdir / "metrics.jsonl"), [])
    clock = read("throughput.jsonl", lambda: read_lines(workdir / "throughput.jsonl"), [])
    baselines = {}
    # Without labels a run has no baselines.
    if (workdir / "baselines.json").is_file() or any("knn_top1" in line for line in lines):
        path = workdir / "baselines.json"
        baselines = read("baselines.json", lambda: read_figures(path, BASELINES), {})
    missing += _not_finite(lines) + _not_finite(clock)
    evaluation, evaluated = _evaluation(workdir / "evaluation.json", missing)
    try:
        starts = read_starts(workdir)
    except UserError as error:
        starts = []
        missing.append(Missing("run", f"{error}. The page lacks the command of the run."))
    return RunRecord(
        *(workdir, config, lines, clock, baselines),
        *(evaluation, evaluated, starts, tuple(missing)),
    )


def _not_finite(lines: list[dict[str, float]]) -> list[Missing]:
    """A sentence for each figure that is not finite at every step."""
    names = {name for line in lines for name in line}
    counts = {
        name: sum(not math.isfinite(line.get(name, 0)) for line in lines) for name in sorted(names)
    }
    where = f"of the {len(lines)} logged steps: its curve has gaps."
    return [
        Missing("curves", f"{name} is not a finite number at {n} {where}")
        for name, n in counts.items()
        if n
    ]


def _evaluation(path: pathlib.Path, missing: list[Missing]) -> tuple[dict, dict]:
    """The figures of every evaluation, and what they are of; {} if none was run."""
    if not path.is_file():
        return {}, {}
    try:
        record = json.loads(path.read_text())
        figures = {n: value for part in record["figures"].values() for n, value in part.items()}
        return figures, dict(record.get("about", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = f"{path.name} is damaged ({error}): the page lacks the evaluations."
        missing.append(Missing("evaluations", text))
        return {}, {}


def last_figures(lines: list[dict[str, Any]], step: int, num_steps: int) -> dict[str, Any]:
    """Returns step, num_steps, the last loss and the newest scores, SCORES and their errors.

    Args:
      lines: of metrics.jsonl.
      step: that the run has reached.
      num_steps: of the whole run, above `step` if it was stopped. The scores of a complete run are
        of its last step, or missing.
    """
    losses = [None, *(line["loss"] for line in lines if "loss" in line)]
    step = int(step)
    figures = {"step": step, "num_steps": num_steps, "loss": losses[-1]}
    scored = [
        line for line in lines if "knn_top1" in line and (step < num_steps or line["step"] == step)
    ]
    names = [name + suffix for name in SCORES for suffix in ("", "_error")]
    return figures | {name: scored[-1][name] for name in names if scored and name in scored[-1]}
