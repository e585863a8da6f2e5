"""The report job: what a run has learned, in one HTML file that needs no network."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import UserError, given_path, say
from gsg_jax.data.open import Source, open_source
from gsg_jax.data.source import Subset
from gsg_jax.devices import hosts
from gsg_jax.devices.mesh import wait_for_hosts
from gsg_jax.evaluation.encoder import open_encoder, open_split, read_run
from gsg_jax.evaluation.feature_files import labels_of
from gsg_jax.evaluation.features import embed_source
from gsg_jax.evaluation.labelled import check_finite
from gsg_jax.report.embeddings import EmbeddedImages, check_umap
from gsg_jax.report.page import report_page
from gsg_jax.report.sections import Embedded, run_report
from gsg_jax.run.files import write_atomically
from gsg_jax.run.record import Missing, read_run_record

NAME = "report.html"
LACKS = "the map, the neighbours, the spectrum, the views and the accuracy by class"


class ReportStopped(Exception):
    """The report was asked to stop; nothing was written."""


def write_report(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Writes a run's report; parts that cannot be made are named in it.

    Args:
      config: of configs/report.py.
      workdir: gets report.html.
      stop_requested: asked before each batch of images and each part of the report.

    Returns:
      The job's last line: the file, its bytes, how many images it shows, and what is missing.

    Raises:
      UserError: if the folder holds no run, or UMAP is asked for and not installed; on several
        hosts also if the images cannot be embedded.
      OSError: if report.html cannot be written.
      ReportStopped: if `stop_requested` returned True.
    """

    def check_stop() -> None:
        if stop_requested():
            raise ReportStopped

    check_evaluation(config)
    wait_for_hosts("the run is done")  # all read the same files
    if config.report.umap:
        check_umap()
    start = time.monotonic()
    record = read_run_record(given_path("--config.pretrained", config.pretrained))
    missing = []
    embedded = None
    if record.config:
        try:
            embedded = _embedded(config, check_stop)
        except UserError as error:
            if hosts.are_several():  # the others may wait for this one while it is embedding
                raise
            text = f"{str(error).rstrip('.')}. The page lacks {LACKS}."
            missing.append(Missing("map", text))
    figures = {"job": "report", "file": str(workdir / NAME)}
    if not hosts.is_writer():
        return figures
    report = run_report(record, embedded, config.report, missing, check_stop)
    text = report_page(report)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / NAME, text)
    say(f"the report is in {workdir / NAME}")
    sentences = [part.text for part in report.missing]
    for sentence in sentences:
        say(f"what the report cannot show: {sentence}")
    return figures | {
        "num_images": len(embedded.query.h) if embedded else 0,
        "bytes": len(text.encode()),
        "seconds": round(time.monotonic() - start, 1),
        "missing": sentences,
    }


def _embedded(config: ml_collections.ConfigDict, check_stop: Callable[[], None]) -> Embedded:
    """Embeds the images that a report shows by the run's newest checkpoint."""
    run = read_run(config)
    train = open_split(run, "train")
    test = open_source(run.data, "test")
    encoder = open_encoder(config, run, train)
    limit = config.report.max_images
    # As many images vote as for the run's monitor, so that the accuracy on all test images is the
    # same.
    is_monitored = bool(run.eval.knn_every_epochs and train.class_names)

    embed_images = encoder.embed

    def embed_batch(images: np.ndarray) -> np.ndarray:
        check_stop()
        return embed_images(images)

    def embed(source: Source, limit: int, split: str) -> EmbeddedImages:
        if len(source) > limit:
            rows = np.linspace(0, len(source) - 1, limit).round().astype(np.int64)
            source = Subset(source, rows)
        h = embed_source(
            embed_batch, source, batch_size=config.eval.batch_size, size=encoder.crop_size
        )
        check_finite(h, f"the {split}")
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(h, axis=1, keepdims=True)
        check_finite(lengths, f"the {split}, by their length,")
        return EmbeddedImages(source, h, labels_of(source), split)

    if test is not None and (test.class_names or not train.class_names):
        bank = embed(train, run.eval.max_bank if is_monitored else limit, "training images")
        query = embed(test, limit, "test images")
    else:
        bank = query = embed(train, limit, "training images")
    data = ", ".join(part for part in (run.data.name, run.data.dir) if part)
    is_of_run = not (config.data.name or config.data.dir)
    is_tested = test is not None and test.class_names
    num_known = np.count_nonzero(labels_of(test if is_tested else train) >= 0)
    num_scored = num_known if is_tested else min(num_known, run.eval.max_bank)
    return Embedded(
        *(bank, query, train.class_names, encoder.step, data, is_of_run),
        num_scored if is_monitored and is_of_run else None,
    )
