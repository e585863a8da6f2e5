"""The report job: what was learned, in one HTML file that needs no network."""

import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import say
from gsg_jax.data.open import Source, open_source
from gsg_jax.data.source import Subset
from gsg_jax.devices import hosts
from gsg_jax.devices import mesh as meshes
from gsg_jax.evaluation.encoder import open_encoder, open_split, read_run
from gsg_jax.evaluation.feature_files import labels_of
from gsg_jax.evaluation.features import embed_source
from gsg_jax.evaluation.labelled import check_finite
from gsg_jax.report.embeddings import EmbeddedImages, check_umap
from gsg_jax.report.report_page import report_page
from gsg_jax.report.sections import Embedded, attempt, run_report
from gsg_jax.run.metrics import write_atomically
from gsg_jax.run.record import read_run_record

NAME = "report.html"
LACKS = "the map, the neighbours, the spectrum, the views and the accuracy by class"


def write_report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes a run's report.

    What the run's folder lacks, the report says; the rest is there.

    Args:
      config: of configs/report.py.
      workdir: gets report.html.

    Returns:
      The job's last line: the file, its bytes, how many images it shows, and what is missing.

    Raises:
      UserError: where the folder holds nothing of a run, or UMAP is asked for and not installed.
      OSError: where report.html cannot be written.
    """
    check_evaluation(config)
    meshes.wait_for_hosts("the run is done")  # all read the same files
    if config.report.umap:
        check_umap()
    start = time.monotonic()
    record = read_run_record(pathlib.Path(config.pretrained).expanduser())
    missing = []
    embedded = None
    if record.config:
        embedded = attempt(lambda: _embedded(config), missing, LACKS)
    figures = {"job": "report", "file": str(workdir / NAME)}
    if not hosts.is_writer():
        return figures
    report = run_report(record, embedded, config.report, missing)
    text = report_page(report)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / NAME, text)
    say(f"the report is in {workdir / NAME}")
    for sentence in report.missing:
        say(f"the report lacks something: {sentence}")
    return figures | {
        "num_images": len(embedded.query.h) if embedded else 0,
        "bytes": len(text.encode()),
        "seconds": round(time.monotonic() - start, 1),
        "missing": report.missing,
    }


def _embedded(config: ml_collections.ConfigDict) -> Embedded:
    """The images that a report shows, embedded by the run's newest checkpoint."""
    run = read_run(config)
    train = open_split(run, "train")
    test = open_source(run.data, "test")
    encoder = open_encoder(config, run, train)
    limit = config.report.max_images
    # As many vote as for the monitor: where all test images are asked, the accuracy is the same.
    is_monitored = bool(run.eval.knn_every_epochs and train.class_names)

    def embed(source: Source, limit: int, split: str) -> EmbeddedImages:
        if len(source) > limit:
            rows = np.linspace(0, len(source) - 1, limit).round().astype(np.int64)
            source = Subset(source, rows)
        h = embed_source(
            encoder.embed, source, batch_size=config.eval.batch_size, size=encoder.crop_size
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
    return Embedded(bank, query, train.class_names, encoder.step, data, is_of_run)
