"""The k-NN job: training images vote on test images, or on one another."""

import pathlib
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import UserError, say
from gsg_jax.evaluation.knn import cut_to_bank, knn_scores, knn_top1
from gsg_jax.evaluation.labelled import Labelled, labelled_features
from gsg_jax.evaluation.predictions import write_predictions
from gsg_jax.run.lock import writing


def classify_by_knn(
    config: ml_collections.ConfigDict, workdir: pathlib.Path | None
) -> dict[str, Any]:
    """Scores embeddings by k-NN.

    The bank and the predictions by the first k are written to the workdir, if one is given.

    Returns:
      The job's last line: the figures of score_by_knn.

    Raises:
      UserError: if there is no run, no checkpoint, no image or no label.
    """
    check_evaluation(config)
    labelled = labelled_features(config, needs_test=False)
    if config.eval.leave_one_out:
        labelled = labelled._replace(test=None)
    figures = score_by_knn(labelled, config.eval.knn_k, config.eval.knn_temperature)
    if workdir:
        _write(labelled, figures["knn_k"], config.eval.knn_temperature, workdir)
    return {"job": "knn", **labelled.about, **figures}


def _write(labelled: Labelled, k: int, temperature: float, folder: pathlib.Path) -> None:
    train, test, names = labelled.train, labelled.test or labelled.train, labelled.class_names
    votes = knn_scores(
        train.h,
        train.label,
        test.h,
        k=k,
        temperature=temperature,
        num_classes=len(names),
        leave_one_out=labelled.test is None,
    )
    shares = votes / votes.sum(axis=1, keepdims=True)
    bank = {"h": train.h, "label": train.label, "k": k, "temperature": temperature}
    with writing(folder):
        write_predictions(folder, test.id, test.label, shares, names, bank)


def score_by_knn(labelled: Labelled, ks: tuple[int, ...], temperature: float) -> dict[str, float]:
    """Top-1 accuracy for each number of neighbours.

    Args:
      labelled: the embeddings; without test ones each training image is classified by the others.
      ks: numbers of neighbours; larger ones become the number of images that vote.
      temperature: of the votes.

    Returns:
      knn_top1, of the first k, which is knn_k, and knn_top1_k<k> for each; accuracies in [0, 1].

    Raises:
      UserError: if no image can vote, or an embedding is not finite.
    """
    train, test = labelled.train, labelled.test or labelled.train
    leave_one_out = labelled.test is None
    try:
        ks = cut_to_bank(ks, len(train.h) - leave_one_out)
        top1 = knn_top1(
            train.h,
            train.label,
            test.h,
            test.label,
            ks=ks,
            temperature=temperature,
            leave_one_out=leave_one_out,
        )
    except ValueError as error:  # no voter, or embeddings that are not finite
        raise UserError(f"k-NN: {error}") from error
    whom = "one another" if leave_one_out else f"{len(test.h):,}"
    say(f"k-NN: {len(train.h):,} images vote on {whom}")
    for k, score in zip(ks, top1, strict=True):
        say(f"k-NN top-1, k {k:3}: {score:.4f}")
    by_k = {f"knn_top1_k{k}": score for k, score in zip(ks, top1, strict=True)}
    return {"knn_top1": top1[0], "knn_k": ks[0], **by_k}
