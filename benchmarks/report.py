"""Measures how long a report of many embeddings takes, and how large it is.

    python benchmarks/report.py [--images=10000] [--output=report.html]

The images are the package's own, the encoder is untrained: the cost of a page does not depend on
what was learned. Prints the seconds of each part, and one JSON object as the last line.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np

from gsg_jax.config import evaluations
from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import as_json, load_config, resolve
from gsg_jax.console import say
from gsg_jax.data.open import open_source
from gsg_jax.data.source import ArraySource
from gsg_jax.evaluation.encoder import open_encoder
from gsg_jax.evaluation.features import embed_source
from gsg_jax.report.embeddings import EmbeddedImages
from gsg_jax.report.page import report_page
from gsg_jax.report.sections import Embedded, run_report
from gsg_jax.run.record import read_run_record

ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
    """Makes one report and prints its cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="at most 10,000")
    parser.add_argument("--output", type=pathlib.Path, help="file to keep the page in")
    arguments = parser.parse_args()

    config = load_config(str(ROOT / "configs/simsiam_gsg.py"))
    check_pretraining(config)
    config = resolve(config)
    options = evaluations.evaluation("report")
    options.encoder = "untrained"
    source = all_images(config.data, arguments.images)
    encoder = open_encoder(options, config, source)
    h = embed_source(encoder.embed, source, batch_size=500, size=None)
    images = EmbeddedImages(source, h, source.labels, "images")

    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        (workdir / "config.json").write_text(as_json(config))
        (workdir / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"step": n, "epoch": n / 312, "loss": -n / 5000}) + "\n"
                for n in range(10, 5000, 10)
            )
        )
        begin = time.monotonic()
        embedded = Embedded(images, images, source.class_names, 0, "embedded")
        report = run_report(read_run_record(workdir), embedded, options.report, [])
        gathered = time.monotonic()
        page = report_page(report)
        seconds = time.monotonic() - begin
    if arguments.output:
        arguments.output.write_text(page)
    size = len(page.encode())
    say(
        f"{len(source):,} embeddings of {h.shape[1]} channels: {seconds:.1f} s, {size / 1e6:.2f} MB"
    )
    say(f"figures and pictures {gathered - begin:.1f} s, page {begin + seconds - gathered:.1f} s")
    print(json.dumps({"images": len(source), "seconds": round(seconds, 1), "bytes": size}))


def all_images(data, num: int) -> ArraySource:
    """Both splits of the package's images as one source."""
    parts = [open_source(data, split) for split in ("train", "test")]
    pixels = np.concatenate([part.images for part in parts])[:num]
    labels = np.concatenate([part.labels for part in parts])[:num]
    return ArraySource("embedded", pixels, labels, parts[0].class_names)


if __name__ == "__main__":
    main()
