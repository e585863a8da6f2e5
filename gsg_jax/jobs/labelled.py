"""What the jobs that judge embeddings begin with: those of the training and of the test split."""

import pathlib
from typing import Any, NamedTuple

import ml_collections

from gsg_jax.data.sources import Source, open_source
from gsg_jax.errors import UserError
from gsg_jax.evaluation.encoder import Encoder, open_encoder, open_split, read_run
from gsg_jax.evaluation.feature_files import LabelledFeatures, ids_of, labels_of, read_features
from gsg_jax.evaluation.features import embed_source
from gsg_jax.evaluation.splits import check_every_class
from gsg_jax.progress import say


class Labelled(NamedTuple):
    """Embeddings with their labels.

    Attributes:
      train: of the training split; each class has some.
      test: of the test split, or None where there is none.
      class_names: one a label.
      about: the first figures of the job's last line: who made the embeddings.
    """

    train: LabelledFeatures
    test: LabelledFeatures | None
    class_names: tuple[str, ...]
    about: dict[str, Any]


def labelled_features(config: ml_collections.ConfigDict, *, needs_test: bool) -> Labelled:
    """Reads the embeddings that a config names, or makes them.

    Args:
      config: reads `features`, or else `pretrained`, `encoder`, `data` and eval.batch_size.
      needs_test: whether a missing test split is an error.

    Returns:
      The embeddings of both splits.

    Raises:
      UserError: where there are none, no labels, no test split, or no image of a class.
    """
    if config.features:
        labelled = _from_files(pathlib.Path(config.features).expanduser(), needs_test)
        check_bank(config, len(labelled.train.h), has_test=labelled.test is not None)
        return labelled
    run = read_run(config)
    train = open_split(run, "train")
    check_labelled(train)
    test = open_test(run, needs_test)
    check_bank(config, len(train), has_test=test is not None)
    encoder = open_encoder(config, run, train)
    say(f"{encoder.kind} {run.method.name}, step {encoder.step}: {config.pretrained}")
    return Labelled(
        embed_labelled(encoder, train, config.eval.batch_size),
        test and embed_labelled(encoder, test, config.eval.batch_size),
        train.class_names,
        encoder.about,
    )


def check_labelled(source: Source) -> None:
    """Raises UserError where a training set has no labels, or no image of a class."""
    if not source.class_names:
        raise UserError(
            f"{source.name!r} has no labels, by which embeddings are judged: put the images into "
            "class folders, or give another --config.data.name"
        )
    check_every_class(source.labels, source.class_names)


def check_bank(config: ml_collections.ConfigDict, num_images: int, *, has_test: bool) -> None:
    """Raises UserError where more neighbours are asked for than there are images to vote."""
    ks = config.eval.get("knn_k", (0,))
    leave_one_out = not has_test or config.eval.get("leave_one_out", False)
    num_voters = num_images - leave_one_out
    if max(ks) > num_voters:
        raise UserError(
            f"--config.eval.knn_k={ks}: {max(ks)} is larger than the bank, of which {num_voters} "
            f"images can vote: take at most {num_voters}"
        )


def open_test(run: ml_collections.ConfigDict, needs_test: bool) -> Source | None:
    """Opens the test split.

    Args:
      run: of read_run.
      needs_test: whether a missing one is an error.

    Returns:
      The images; None where there are none, or they have no labels.

    Raises:
      UserError: where it is needed.
    """
    test = open_split(run, "test") if needs_test else open_source(run.data, "test")
    if test is not None and test.class_names:
        return test
    if needs_test:
        raise UserError(
            f"the test split of {test.name!r} has no labels: give another --config.data.test_split"
        )
    return None


def embed_labelled(encoder: Encoder, source: Source, batch_size: int) -> LabelledFeatures:
    """Embeds a source in memory; images whose label is not known are left out."""
    h = embed_source(encoder.embed, source, batch_size=batch_size, size=encoder.crop_size)
    return known(LabelledFeatures(h, labels_of(source), ids_of(source)))


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
    """The rows of a file whose label is known."""
    features = known(read_features(path))
    if not len(features.label):
        raise UserError(f"{path} has no labels, by which embeddings are judged: give it some")
    return features


def known(features: LabelledFeatures) -> LabelledFeatures:
    """The rows whose label is known; all of them where an image has several labels."""
    if features.label.ndim > 1:
        return features
    is_known = features.label >= 0
    if is_known.all():
        return features
    return LabelledFeatures(*(part[is_known] for part in features))
