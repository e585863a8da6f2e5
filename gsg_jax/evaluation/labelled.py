"""Labelled embeddings of the training and the test split: the input of the evaluation jobs."""

import pathlib
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from gsg_jax.console import UserError, given_path, say
from gsg_jax.data.open import Source, open_source
from gsg_jax.data.source import known_images
from gsg_jax.evaluation.encoder import Encoder, open_encoder, open_split, read_run
from gsg_jax.evaluation.feature_files import LabelledFeatures, ids_of, labels_of, read_features
from gsg_jax.evaluation.features import embed_source
from gsg_jax.evaluation.splits import check_every_class


class Labelled(NamedTuple):
    """Embeddings with their labels.

    Attributes:
      train: of the training split, with images of every class.
      test: of the test split, or None.
      class_names: one per label.
      about: the first figures of the job's last line: which encoder made the embeddings.
    """

    train: LabelledFeatures
    test: LabelledFeatures | None
    class_names: tuple[str, ...]
    about: dict[str, Any]


def labelled_features(config: ml_collections.ConfigDict, *, needs_test: bool) -> Labelled:
    """Reads the embeddings that a config names, or computes them.

    Args:
      config: reads `features`, or else `pretrained`, `encoder`, `data` and eval.batch_size.
      needs_test: whether a missing test split is an error.

    Raises:
      UserError: if there are no embeddings, no labels, no test split, or no image of a class.
    """
    if config.features:
        return _from_files(given_path("--config.features", config.features), needs_test)
    run = read_run(config)
    train = open_train(run)
    is_unused = config.eval.get("leave_one_out", False)
    test = None if is_unused else open_test(run, needs_test)
    encoder = open_encoder(config, run, train)
    say(f"{encoder.kind} {run.method.name}, step {encoder.step}: {config.pretrained}")
    return Labelled(
        embed_labelled(encoder, train, config.eval.batch_size),
        test and embed_labelled(encoder, test, config.eval.batch_size),
        train.class_names,
        encoder.about,
    )


def open_train(run: ml_collections.ConfigDict) -> Source:
    """Opens the labelled images of a run's training split.

    Raises:
      UserError: if there are no labels, or no image of a class.
    """
    source = open_split(run, "train")
    if not source.class_names:
        raise UserError(
            f"{source.name!r} has no labels, by which embeddings are judged: put the images into "
            "class folders, or give another --config.data.name; --config=features needs no labels"
        )
    source = known_images(source)
    check_every_class(source.labels, source.class_names)
    return source


def open_test(run: ml_collections.ConfigDict, needs_test: bool) -> Source | None:
    """Opens the labelled images of a run's test split, or returns None.

    Raises:
      UserError: if they are needed and missing.
    """
    test = open_split(run, "test") if needs_test else open_source(run.data, "test")
    if test is not None and test.class_names and len(known_test := known_images(test)):
        return known_test
    if needs_test:
        raise UserError(
            f"the test split of {test.name!r} has no labels: give another --config.data.test_split"
        )
    return None


def embed_labelled(encoder: Encoder, source: Source, batch_size: int) -> LabelledFeatures:
    """Embeds a source in memory; raises UserError if an embedding is not finite."""
    h = embed_source(encoder.embed, source, batch_size=batch_size, size=encoder.crop_size)
    check_finite(h, source.name)
    return LabelledFeatures(h, labels_of(source), ids_of(source))


def check_finite(h: np.ndarray, whose: str) -> None:
    """Raises UserError if an embedding holds NaN or infinity."""
    blocks = (h[start : start + 4096] for start in range(0, len(h), 4096))
    if num_bad := sum(int((~np.isfinite(block)).any(axis=1).sum()) for block in blocks):
        raise UserError(
            f"{num_bad} of the {len(h)} embeddings of {whose} hold NaN or infinity: has the "
            "encoder diverged? Take another checkpoint"
        )


def _from_files(folder: pathlib.Path, needs_test: bool) -> Labelled:
    """Embeddings of train.npz and test.npz in a folder."""
    train = _with_labels(folder / "train.npz")
    is_there = needs_test or (folder / "test.npz").exists()
    test = _with_labels(folder / "test.npz") if is_there else None
    if test and test.h.shape[1] != train.h.shape[1]:
        raise UserError(
            f"{folder}: test.npz is {test.h.shape[1]} wide, train.npz {train.h.shape[1]}: give "
            "embeddings of one network"
        )
    num_classes = 1 + max(part.label.max() for part in (train, test) if part)
    class_names = tuple(map(str, range(num_classes)))
    check_every_class(train.label, class_names)
    say(f"{folder}: {len(train.h):,} embeddings of {train.h.shape[1]} features, with labels")
    return Labelled(train, test, class_names, {"features": str(folder)})


def _with_labels(path: pathlib.Path) -> LabelledFeatures:
    """The labelled rows of a file."""
    features = read_features(path)
    is_known = features.label >= 0
    if not is_known.any():
        raise UserError(f"{path} has no labels, by which embeddings are judged: give it some")
    if not is_known.all():
        features = LabelledFeatures(*(part[is_known] for part in features))
    check_finite(features.h, str(path))
    return features
