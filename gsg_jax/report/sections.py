"""The sections of a report: their figures and pictures, before they become a page."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from gsg_jax.config.load import flat, from_record
from gsg_jax.data.source import first_image
from gsg_jax.evaluation.scores import shares_with_intervals
from gsg_jax.report import embeddings, pictures
from gsg_jax.report.charts import Chart, Line, line_chart
from gsg_jax.report.curves import curves
from gsg_jax.report.embeddings import EmbeddedImages
from gsg_jax.report.headline import Headline, headline
from gsg_jax.run.record import Missing, RunRecord

NUM_NEAR = 5  # neighbours of a point that the map shows
LONGEST_NAME = 60  # characters of an image's name; longer names lose their beginning
COORDINATES = 4095  # a map's coordinates are whole numbers from 0 to this one


class Embedded(NamedTuple):
    """The images of a run, embedded.

    Attributes:
      bank: the images among which neighbours are searched.
      query: the images that are shown; the same object as `bank` if there are no test images.
      class_names: one for each label, or empty.
      step: of the checkpoint.
      data: where the images come from, for the reader.
      is_of_run: whether the run was trained on this set.
      num_scored: images that the run's monitor classifies; None if it does not.
    """

    bank: EmbeddedImages
    query: EmbeddedImages
    class_names: tuple[str, ...]
    step: int
    data: str
    is_of_run: bool = True
    num_scored: int | None = None


class Report(NamedTuple):
    """Everything that a page shows.

    Attributes:
      title: of the run.
      headline: the first screen.
      missing: the parts that are missing.
      settings: (key, value) of the config.
      curves: charts of the logged figures.
      evaluation: (figure, %, 95 % interval) of evaluation.json.
      evaluated: the encoder that these figures are about.
      views: the augmentation sheet.
      map: the data of the page's map, for JSON; None without embeddings.
      groups: (name, number of images, centre on each map) of the map's classes or clusters.
      gallery: rows of neighbours.
      spectrum: chart of the eigenvalues.
      confusion: of k-NN, or None.
      class_names: one for each label.
      about: (name, text) of the embedded images.
      is_pixelated: whether the images are so small that their pixels are shown.
    """

    title: str
    headline: Headline
    missing: list[Missing]
    settings: list[tuple[str, str]]
    curves: list[Chart]
    evaluation: list[tuple[str, str, str]]
    evaluated: str
    views: list[pictures.View]
    map: dict[str, Any] | None
    groups: list[tuple[str, int, list[str]]]
    gallery: list[dict[str, Any]]
    spectrum: Chart | None
    confusion: embeddings.Confusion | None
    class_names: tuple[str, ...]
    about: list[tuple[str, str]]
    is_pixelated: bool


def run_report(
    record: RunRecord,
    embedded: Embedded | None,
    options: ml_collections.ConfigDict,
    missing: list[Missing],
    between_parts: Callable[[], None] = lambda: None,
) -> Report:
    """Gathers everything that a page shows of a run.

    Args:
      record: the run's files.
      embedded: its images, embedded by its newest checkpoint, or None.
      options: config.report of configs/report.py.
      missing: parts that are known to be missing.
      between_parts: called before each part that takes long; may raise to stop the report.

    Returns:
      The report.
    """
    missing = [*record.missing, *missing]
    config = from_record(record.config) if record.config else None
    charts = curves(record)
    if not charts and record.lines:
        missing.append(Missing("curves", "None of the logged figures can be drawn."))
    parts: dict[str, Any] = {"map": None, "groups": [], "gallery": [], "spectrum": None}
    parts |= {"confusion": None, "views": [], "about": [], "class_names": ()}
    parts["is_pixelated"] = False
    if embedded:
        parts |= _embedded_parts(embedded, config, options, missing, between_parts)
    return Report(
        title=record.name,
        headline=headline(
            record,
            config,
            parts["confusion"],
            num_scored=embedded and embedded.num_scored,
            is_of_run=not embedded or embedded.is_of_run,
            step=embedded and embedded.step,
        ),
        missing=missing,
        settings=[(key, _as_text(value)) for key, value in flat(record.config).items()],
        curves=charts,
        evaluation=shares_with_intervals(record.evaluation),
        evaluated=_as_text(record.evaluated),
        **parts,
    )


def _embedded_parts(
    embedded: Embedded,
    config: ml_collections.ConfigDict,
    options: ml_collections.ConfigDict,
    missing: list[Missing],
    between_parts: Callable[[], None],
) -> dict[str, Any]:
    bank, query = embedded.bank, embedded.query
    has_labels = bool(embedded.class_names) and bool((query.label >= 0).any())
    names = embedded.class_names if has_labels else ()
    about = [
        ("images", embedded.data),
        ("map, spectrum", f"{len(query.h):,} {query.split}"),
        ("neighbours from", f"{len(bank.h):,} {bank.split}"),
        ("embedding", f"{query.h.shape[1]} channels, checkpoint of step {embedded.step:,}"),
    ]
    parts: dict[str, Any] = {"about": about, "class_names": names}
    if not has_labels:
        text = (
            "The images have no labels: the map is coloured by cluster, and the k-NN accuracy, the "
            "accuracies by class and the confusion matrix are missing."
        )
        missing.append(Missing("classes", text))
    between_parts()
    parts["is_pixelated"] = pictures.shortest_side(query.source) < pictures.SMALL_SIDE
    parts["views"] = pictures.augmentation_sheet(first_image(query.source), config)
    between_parts()
    if len(query.h) < embeddings.FEWEST:
        num, least = len(query.h), embeddings.FEWEST
        text = f"There are {num} images; a map, clusters and a spectrum need at least {least}."
        missing.append(Missing("map", text))
    else:
        if embeddings.is_collapsed(query.h):
            text = "All embeddings point in one direction: the run has collapsed."
            missing.append(Missing("map", text))
        parts |= _map_parts(query, names, config, options, missing)
        parts["spectrum"] = _spectrum(query)
    between_parts()
    parts["gallery"] = _gallery(bank, query, names, options)
    if len(bank.h) == 1:
        text = "There is only one image: it has no neighbours."
        missing.append(Missing("neighbours", text))
    if has_labels:
        if (bank.label >= 0).sum() > (bank is query):
            parts["confusion"] = embeddings.confusion(
                bank,
                query,
                k=config.eval.knn_k,
                temperature=config.eval.knn_temperature,
                num_classes=len(names),
            )
        else:
            missing.append(Missing("classes", "Too few images have a label for k-NN."))
    return parts


def _map_parts(
    query: EmbeddedImages,
    class_names: tuple[str, ...],
    config: ml_collections.ConfigDict,
    options: ml_collections.ConfigDict,
    missing: list[Missing],
) -> dict[str, Any]:
    seed = config.run.seed
    maps = embeddings.embedding_maps(query.h, seed=seed, umap=options.umap)
    if class_names:
        group = query.label
    else:
        group = embeddings.clusters(query.h, seed=seed)
    num_groups = int(group.max()) + 1
    names = list(class_names) or [f"cluster {n + 1}" for n in range(num_groups)]
    sheets = pictures.thumbnail_sheets(query.source)
    if sheets.num < len(query.h):
        text = (
            f"{len(query.h) - sheets.num:,} of the {len(query.h):,} images have no thumbnail on "
            "the map, or the page would be too large: lower --config.report.max_images."
        )
        missing.append(Missing("map", text))
    near = min(NUM_NEAR, len(query.h) - 1)
    _, index = embeddings.neighbours(query.h, query.h, near, leave_one_out=True)
    placed = {name: _whole_numbers(place) for name, place in maps.items()}
    data = {
        "places": {name: place.ravel().tolist() for name, place in placed.items()},
        "extent": COORDINATES,
        "group": group.tolist(),
        "groups": names,
        "names": image_names(query),
        "near": index.ravel().tolist(),
        "numNear": near,
        "sheets": sheets.uris,
        "columns": pictures.COLUMNS,
        "rows": pictures.ROWS,
        "side": sheets.side,
        "numThumbnails": sheets.num,
    }
    groups = []
    for number in np.unique(group):
        of = group == number
        centres = ["{:.0f}, {:.0f}".format(*placed[name][of].mean(axis=0)) for name in placed]
        name = names[number] if number >= 0 else "unknown"
        groups.append((name, int(of.sum()), centres))
    return {"map": data, "groups": groups}


def _whole_numbers(place: np.ndarray) -> np.ndarray:
    """Scales coordinates [N, 2] into the map's square and keeps their proportions."""
    low, high = place.min(axis=0), place.max(axis=0)
    extent = max(float((high - low).max()), 1e-12)
    centred = (place - (low + high)[None] / 2) / extent + 0.5
    return np.round(COORDINATES * centred).astype(int)


def image_names(images: EmbeddedImages) -> list[str]:
    """Names of images for the reader: the ends of their paths, or their numbers."""
    paths = images.source.paths
    if not paths:
        return [f"image {n}" for n in range(len(images.h))]
    names = ("/".join(pathlib.Path(path).parts[-2:]) for path in paths)
    return [n if len(n) <= LONGEST_NAME else f"…{n[1 - LONGEST_NAME :]}" for n in names]


def _gallery(
    bank: EmbeddedImages,
    query: EmbeddedImages,
    class_names: tuple[str, ...],
    options: ml_collections.ConfigDict,
) -> list[dict[str, Any]]:
    found = embeddings.gallery(
        bank, query, num_queries=options.num_queries, k=options.num_neighbours
    )
    of_query = pictures.image_uris(query.source, [row.query for row in found])
    of_bank = pictures.image_uris(bank.source, [n for row in found for n in row.rows])
    query_names, bank_names = image_names(query), image_names(bank)

    def name_of(label: int) -> str:
        return class_names[label] if class_names and label >= 0 else ""

    def mark(of_query: int, of_bank: int) -> str:
        labels = query.label[of_query], bank.label[of_bank]
        if not class_names or min(labels) < 0:
            return ""
        return "✓" if labels[0] == labels[1] else "✗"

    return [
        {
            "uri": of_query[row.query],
            "name": query_names[row.query],
            "label": name_of(query.label[row.query]),
            "neighbours": [
                {
                    "uri": of_bank[int(n)],
                    "name": bank_names[n],
                    "label": name_of(bank.label[n]),
                    "similarity": f"{similarity:.3f}",
                    "mark": mark(row.query, n),
                }
                for n, similarity in zip(row.rows, row.similarity, strict=True)
            ],
        }
        for row in found
    ]


def _spectrum(images: EmbeddedImages) -> Chart | None:
    shares = embeddings.spectrum(images.h)
    shares = shares[shares > 1e-9]
    if not len(shares):
        return None
    num_most = int(np.searchsorted(np.cumsum(shares), 0.9)) + 1
    note = (
        f"{num_most} of {images.h.shape[1]} directions hold 90 % of the variance. The effective "
        f"rank of the set is {embeddings.effective_rank(shares):.1f}; that of a batch, among the "
        "curves, is of fewer images and so lower. A steep fall means that many channels carry the "
        "same information."
    )
    points = [(float(n), float(100 * share)) for n, share in enumerate(shares, 1)]
    return line_chart(
        f"Variance by direction of the {len(images.h):,} {images.split}",
        [Line("share of the variance", points)],
        unit="% of the variance",
        x_name="direction",
        note=note,
        log_y=True,
    )


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_as_text(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_as_text(part) for part in value) or "none"
    return "''" if value == "" else str(value)
