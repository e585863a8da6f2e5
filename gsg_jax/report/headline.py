"""The first screen of a report: the verdict, the figures behind it, and where the run is from."""

import math
from typing import Any, NamedTuple

import ml_collections

from gsg_jax.config.keys import FEW_LABELS
from gsg_jax.config.load import is_number
from gsg_jax.report.charts import figure
from gsg_jax.report.embeddings import Confusion
from gsg_jax.run.record import RunRecord, baseline_name
from gsg_jax.train.guards import CollapseWatch, Patience

Z = 1.959964  # of a 95 % interval
ENCODERS = {"": "this run", "untrained": "untrained encoder", "pixels": "raw pixels"}


class Score(NamedTuple):
    """A k-NN accuracy.

    Attributes:
      top1: share in [0, 1].
      num: images that were classified; None if unknown.
      name: how it was scored.
    """

    top1: float
    num: int | None
    name: str = "k-NN"


class Headline(NamedTuple):
    """The first screen.

    Attributes:
      verdict: one sentence.
      note: how sure it is, or "".
      cards: (name, figure).
      few_labels: rows of the few-label table, the number of labels first; [] without figures.
      origin: (name, text) of the run's command, date, commit and machine.
      load: Python that loads the run.
    """

    verdict: str
    note: str
    cards: list[tuple[str, str]]
    few_labels: list[tuple[str, ...]]
    origin: list[tuple[str, str]]
    load: str


def headline(
    record: RunRecord,
    config: ml_collections.ConfigDict | None,
    confusion: Confusion | None,
    num_scored: int | None,
    is_of_run: bool,
    step: int | None,
) -> Headline:
    """Makes the first screen.

    Args:
      record: the run's files.
      config: of the run, if it is known.
      confusion: of the images of the report, if they have labels.
      num_scored: images that the run's monitor classifies, if they are known.
      is_of_run: whether the report's images are the run's.
      step: of the checkpoint, if there is one.
    """
    last = {name: value for line in record.lines for name, value in line.items()}
    score = None
    if confusion and not is_of_run:
        score = Score(confusion.top1, len(confusion.label), "k-NN on these images")
    elif _is_some(last.get("knn_top1")):
        score = Score(last["knn_top1"], num_scored)
    elif confusion:
        score = Score(confusion.top1, len(confusion.label))
    path = str(record.workdir.resolve())
    return Headline(
        _verdict(record, config, score, last),
        _interval_note(score),
        _cards(record, score, last, step),
        _few_labels({**record.evaluation, **record.baselines, **last}),
        _origin(record),
        f"import gsg_jax\nencoder = gsg_jax.load({path!r})\nh = encoder.embed(['photo.jpg'])",
    )


def interval(share: float, num: int) -> tuple[float, float]:
    """The 95 % interval of a share of `num` images, by Wilson's score.

    Source: Wilson, Journal of the American Statistical Association 22, 1927.
    """
    centre = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + (Z / (2 * num)) ** 2)
    return centre - half, centre + half


def _verdict(
    record: RunRecord,
    config: ml_collections.ConfigDict | None,
    score: Score | None,
    last: dict[str, float],
) -> str:
    parts = []
    if score:
        text = f"{score.name} {100 * score.top1:.1f} %"
        if score.num:
            low, high = interval(score.top1, score.num)
            text += f" ± {50 * (high - low):.1f}"
        baselines = {"raw pixels": "knn_top1_pixels", "the untrained encoder": "knn_top1_untrained"}
        gaps = [
            _gap(100 * (score.top1 - record.baselines[name]), what)
            for what, name in baselines.items()
            if name in record.baselines and score.name == "k-NN"
        ]
        first, points, rest = ", ".join(gaps).partition(" points")  # the unit once
        text += f": {first}{points}{rest.replace(points, '')}" if gaps else ""
        parts.append(text)
    elif record.lines:
        parts.append("No labels, so no accuracy")
    parts += _collapse(record, config, last)
    if config and (reached := _unfinished(config, last)):
        reason = Patience(config, record.lines).reason
        parts.append(f"{f'ended early, as {reason}' if reason else 'not finished'}, {reached}")
    return "; ".join(parts)


def _unfinished(config: ml_collections.ConfigDict, last: dict[str, float]) -> str:
    """How far an unfinished run has come; "" if it is finished or has not begun."""
    if num_steps := config.run.num_steps:
        step = last.get("step", num_steps)
        return f"step {step:,} of {num_steps:,}" if step < num_steps else ""
    epoch, epochs = last.get("epoch"), config.run.num_epochs
    return f"epoch {epoch:.3g} of {epochs}" if epoch and epoch < epochs - 1e-6 else ""


def _gap(points: float, what: str) -> str:
    if abs(points) < 0.05:
        return f"level with {what}"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {what}"


def _collapse(
    record: RunRecord, config: ml_collections.ConfigDict | None, last: dict[str, float]
) -> list[str]:
    """Whether the last logged figures show a collapse, as the training would warn."""
    if not config or not all(_is_some(last.get(x)) for x in ("projection_std", "embedding_rank")):
        return []
    if signs := CollapseWatch(config, record.lines).signs(last):
        return [f"collapsed: {', '.join(signs)}"]
    return ["no collapse"]


def _interval_note(score: Score | None) -> str:
    if not score or not score.num:
        return ""
    low, high = interval(score.top1, score.num)
    return (
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %: binomial (Wilson), for the "
        f"{score.num:,} images that were classified. Other seeds differ too."
    )


def _cards(
    record: RunRecord, score: Score | None, last: dict[str, float], step: int | None
) -> list[tuple[str, str]]:
    shares = {
        score.name if score else "k-NN": score and score.top1,
        "untrained": record.baselines.get("knn_top1_untrained"),
        "raw pixels": record.baselines.get("knn_top1_pixels"),
    }
    cards = [(name, f"{100 * value:.2f} %") for name, value in shares.items() if _is_some(value)]
    if step := record.lines[-1]["step"] if record.lines else step:
        cards.append(("step", f"{step:,}"))
    names = {
        "loss": "loss",
        "projection_std": "spread (batch)",
        "embedding_rank": "effective rank (batch)",
    }
    for name, text in names.items():
        if _is_some(value := last.get(name)):
            cards.append((text, figure(value)))
    seconds = record.clock[-1].get("train_seconds") if record.clock else None
    if seconds and math.isfinite(seconds):
        text = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
        cards.append(("training", text))
    return cards


def _few_labels(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each number of labels: the accuracy of this run and of what it is to beat."""

    def cell(num: int, who: str) -> str:
        if not _is_some(value := figures.get(baseline_name(f"few_label_{num}", who))):
            return ""
        error = figures.get(baseline_name(f"few_label_{num}_error", who))
        return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if _is_some(error) else "")

    return [
        (f"{num} a class", *(cell(num, who) for who in ENCODERS))
        for num in FEW_LABELS
        if _is_some(figures.get(f"few_label_{num}"))
    ]


def _origin(record: RunRecord) -> list[tuple[str, str]]:
    """The first start of the run, and how often it was resumed."""
    if not record.starts:
        return []
    first, *others = record.starts
    date = first["date"].replace("T", " ")
    if others:
        last = others[-1]["date"].replace("T", " ")
        date += f"; resumed {len(others)} times, last {last}" if others[1:] else f"; resumed {last}"
    commits = dict.fromkeys(start["commit"] for start in record.starts if start["commit"])
    version = f"gsg_jax {first['version']}"
    return [
        ("command", first["command"]),
        ("date", date),
        ("version", f"{version}, commit {', '.join(commits)}" if commits else version),
        ("machine", "; ".join(dict.fromkeys(start["machine"] for start in record.starts))),
    ]


def _is_some(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
