"""The features job: embeddings of whole splits, written to files for other uses."""

import contextlib
import pathlib
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.config.evaluations import evaluation
from gsg_jax.console import UsageError, say
from gsg_jax.data.open import Source, open_source
from gsg_jax.evaluation.encoder import Encoder, open_encoder, open_split, read_run
from gsg_jax.evaluation.feature_files import LabelledFeatures, write_features
from gsg_jax.run.identity import identity
from gsg_jax.run.lock import writing


def embed_splits(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Embeds splits of a set of images by a backbone.

    Each split is written to SPLIT.npz (h, label, id); a stopped job resumes there. Of the two
    default splits, test may be missing.

    Returns:
      The job's last line: num_images and width of the embeddings, and the files.

    Raises:
      UserError: if there is no run, no checkpoint, or no such split.
    """
    check_evaluation(config)
    splits = config.splits
    if not isinstance(splits, tuple) or not splits or not all(isinstance(s, str) for s in splits):
        raise UsageError(f"--config.splits={splits}: takes names, such as ('train','test')")
    if len({file_stem(split) for split in splits}) < len(splits) or not all(map(file_stem, splits)):
        raise UsageError(
            f"--config.splits={splits}: these file names are equal or empty: "
            f"{', '.join(map(file_stem, splits))}; give each split its own --workdir"
        )
    run = read_run(config)
    sources = {}
    if splits == evaluation("features").splits:  # the default: train and, if there is one, test
        if (test := open_source(run.data, "test")) is not None:
            sources["test"] = test
        else:
            say(f"{run.data.name!r} has no test split: its training images are embedded")
            splits = ("train",)
    sources = {split: sources.get(split) or open_split(run, split) for split in splits}
    encoder = open_encoder(config, run, sources[splits[0]])
    written = {}
    for split, source in sources.items():
        path = workdir / f"{file_stem(split)}.npz"
        written[path] = features_in_file(path, encoder, source, split, config.eval.batch_size)
    return {
        "job": "features",
        **encoder.about,
        "num_images": sum(len(features.h) for features in written.values()),
        "width": next(iter(written.values())).h.shape[1],
        "files": [str(path) for path in written],
    }


def features_in_file(
    path: pathlib.Path, encoder: Encoder, source: Source, split: str, batch_size: int
) -> LabelledFeatures:
    """Embeddings of a split's images, read from their .npz file or written to it.

    Raises:
      UserError: if the file is of another encoder or of other images.
    """
    about = encoder.about | {
        "backbone_digest": encoder.digest,
        "data": encoder.run.data.name,
        "dir": encoder.run.data.dir,
        "split": encoder.run.data.get(f"{split}_split", split),
        "crop_size": encoder.crop_size,
        **identity({"images": source}, encoder.run.data.dir),
    }
    about |= about.pop("images")
    is_there = path.exists()  # and the folder perhaps read-only
    with contextlib.nullcontext() if is_there else writing(path.parent):
        return write_features(
            path,
            encoder.embed,
            source,
            about=about,
            batch_size=batch_size,
            size=encoder.crop_size,
        )


def file_stem(split: str) -> str:
    """The file name for a split: train[:10%] becomes train_10pct."""
    stem = split.replace("%", "pct")
    return "_".join("".join(c if c.isalnum() or c in "-." else " " for c in stem).split())
