"""Pages: one HTML file that needs no network, filled in from the templates of this folder."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gsg_jax import __version__
from gsg_jax.report.charts import bar
from gsg_jax.report.embeddings import Confusion
from gsg_jax.report.headline import ENCODERS
from gsg_jax.report.sections import Report
from gsg_jax.run.record import Missing

FOLDER = Path(__file__).parent
MAX_CONFUSION = 30  # classes of a whole confusion matrix; with more, only the commonest confusions
MOST_CONFUSED = 10
# Shown below the title.
ABOUT = {"backbone": "model.backbone", "data": "data.name", "seed": "run.seed"}
# Shown before the other settings.
MAIN_SETTINGS = (
    *("recipe", "method.name", "method.target", "method.predictor", "method.num_views"),
    *("model.backbone", "model.width", "data.name", "data.dir", "data.batch_size", "views.size"),
    *("optim.name", "optim.learning_rate", "optim.weight_decay", "run.num_epochs"),
    *("run.num_steps", "run.seed"),
)


def page(template: str, **content: Any) -> str:
    """Fills in a template.

    Args:
      template: a file of gsg_jax/report/page/.
      **content: the names that it uses.

    Returns:
      The text of an HTML file: style, script, pictures and all.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "style": Markup((FOLDER / "style.css").read_text()),
        "script": Markup((FOLDER / "page.js").read_text()),
        "as_json": as_json,
        "bar": bar,
        "version": __version__,
    }
    text = environment.get_template(template).render(**content) + "\n"
    return text.encode("utf-8", "replace").decode()  # a file's name may not be valid text


def as_json(value: Any) -> Markup:
    """Returns JSON for a script element, which nothing in it can end.

    Raises:
      ValueError: if the value has no JSON, as NaN.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def report_page(report: Report) -> str:
    """Makes the page of a run's report: the text of one HTML file."""
    settings = dict(report.settings)
    map_names = list(report.map["places"]) if report.map else []
    most = max((len(row["neighbours"]) for row in report.gallery), default=0)
    return page(
        "report.html",
        title=report.title,
        about_run=", ".join(
            f"{name} {settings[key]}" for name, key in ABOUT.items() if key in settings
        ),
        report=report,
        few_head=["labelled images", *ENCODERS.values()],
        notes=(notes := _notes(report.missing)),
        sections=_sections(report, notes),
        main_settings=[(key, settings[key]) for key in MAIN_SETTINGS if key in settings],
        map_names=[f"{name} (x, y)" for name in map_names],
        group_rows=[(name, f"{num:,}", *centres) for name, num, centres in report.groups],
        neighbour_head=[f"nearest {n}" for n in range(1, most + 1)],
        neighbour_rows=[
            (row["name"], *(f"{n['name']} {n['similarity']}" for n in row["neighbours"]))
            for row in report.gallery
        ],
        confusion=report.confusion and _of_classes(report.confusion, report.class_names),
    )


def _notes(missing: Sequence[Missing]) -> dict[str, list[str]]:
    """What is missing, by the section that would have it."""
    notes = defaultdict(list)
    for part in missing:
        notes[part.section].append(part.text)
    return notes


def _sections(report: Report, notes: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page has; a note alone is one too."""
    sections = {
        ("curves", "Curves"): report.curves,
        ("map", "Map"): report.map,
        ("neighbours", "Neighbours"): report.gallery,
        ("views", "Views"): report.views,
        ("spectrum", "Spectrum"): report.spectrum,
        ("classes", "Classes"): report.confusion,
        ("evaluations", "Evaluations"): report.evaluation,
        ("settings", "Settings"): report.settings,
    }
    return [section for section, content in sections.items() if content or notes[section[0]]]


def _of_classes(confusion: Confusion, names: tuple[str, ...]) -> dict[str, Any]:
    """What the page shows of a confusion matrix."""
    totals = confusion.totals
    classes = [
        {
            "name": name,
            "num": f"{total:,}",
            "share": float(recall) if total else 0.0,
            "text": f"{100 * recall:.1f} %" if total else "no image",
        }
        for name, total, recall in zip(names, totals, confusion.recall, strict=True)
    ]
    matrix = []
    if len(names) <= MAX_CONFUSION:
        matrix = [
            [{"num": int(n), "share": f"{n / max(1, total):.3f}"} for n in row]
            for row, total in zip(confusion.counts, totals, strict=True)
        ]
    return {
        "k": confusion.k,
        "num_voters": confusion.num_voters,
        "num_asked": len(confusion.label),
        "top1": f"{100 * confusion.top1:.2f} %",
        "classes": classes,
        "matrix": matrix,
        "pairs": [
            (names[i], names[j], f"{num:,}") for i, j, num in confusion.most_confused(MOST_CONFUSED)
        ],
    }
