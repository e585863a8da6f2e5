"""The linear job: how well a linear classifier tells the classes apart."""

import pathlib
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import UsageError, UserError, say
from gsg_jax.data.open import Source
from gsg_jax.evaluation import logistic
from gsg_jax.evaluation.encoder import open_encoder, read_run
from gsg_jax.evaluation.feature_files import LabelledFeatures, ids_of, labels_of
from gsg_jax.evaluation.features import standardization, standardize
from gsg_jax.evaluation.labelled import Labelled, labelled_features, open_test, open_train
from gsg_jax.evaluation.predictions import write_predictions
from gsg_jax.evaluation.probe import ChosenProbe, fit_probe
from gsg_jax.evaluation.scores import Metric, classification_figures, top_k_accuracy
from gsg_jax.evaluation.splits import split_held_out
from gsg_jax.run.identity import identity
from gsg_jax.run.lock import writing
from gsg_jax.run.workdir import claimed_for_evaluation
from gsg_jax.train.supervised import ClassifierRun, ClassifierState

TOP1 = partial(top_k_accuracy, k=1)


def classify_linearly(
    config: ml_collections.ConfigDict, workdir: pathlib.Path | None
) -> dict[str, Any]:
    """Scores embeddings, or a frozen backbone, by a linear classifier.

    The predictions and the classifier are written to the workdir, and checkpoints if protocol is
    "images". Only that protocol has a default workdir.

    Returns:
      The job's last line: linear_top1, linear_top5 and linear_mean_per_class, each with the
      95 % interval of a bootstrap over the test images, and the chosen regularisation.

    Raises:
      UserError: if there is no run, no checkpoint, no label, no test split, or a class has no
        training image.
    """
    check_evaluation(config)
    if config.protocol == "images":
        return {"job": "linear", "protocol": "images", **_on_images(config, workdir)}
    labelled = labelled_features(config, needs_test=True)
    score = score_by_probe if config.protocol == "probe" else score_by_lbfgs
    figures = score(labelled, config, "linear", workdir)
    return {"job": "linear", "protocol": config.protocol, **labelled.about, **figures}


def score_by_probe(
    labelled: Labelled,
    config: ml_collections.ConfigDict,
    prefix: str,
    folder: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Trains a grid of probes on the embeddings and scores the best on held-out images.

    Args:
      labelled: with test embeddings.
      config: reads probe and run.seed.
      prefix: of the figures' names.
      folder: for predictions and classifier, or None.

    Returns:
      Accuracies with their intervals; the chosen learning rate and weight decay.

    Raises:
      UserError: if nothing can be held out, or every probe diverged.
    """
    train_h, test_h = standardize(labelled.train.h, labelled.test.h)
    try:
        probe = fit_probe(
            train_h,
            labelled.train.label,
            num_classes=len(labelled.class_names),
            metric=TOP1,
            seed=config.run.seed,
            **config.probe,
        )
    except ValueError as error:
        raise UserError(f"--config.probe: {error}") from error
    say(
        f"linear probe: learning rate {probe.learning_rate:g}, weight decay "
        f"{probe.weight_decay:g} by {np.nanmax(probe.held_out_figures):.4f} on held-out images"
    )
    scores = logistic.linear_scores(test_h, probe.kernel, probe.bias)
    if folder:
        _write(folder, labelled, probe, scores)
    return {
        **reported_figures(prefix, scores, labelled.test.label),
        f"{prefix}_learning_rate": probe.learning_rate,
        f"{prefix}_weight_decay": probe.weight_decay,
    }


def score_by_lbfgs(
    labelled: Labelled,
    config: ml_collections.ConfigDict,
    prefix: str,
    folder: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Solves logistic regression at several strengths of regularisation and scores the best.

    Args:
      labelled: with test embeddings.
      config: reads lbfgs and run.seed.
      prefix: of the figures' names.
      folder: for predictions and classifier, or None.

    Returns:
      Accuracies with their intervals, and the strength that was best on held-out images.

    Raises:
      UserError: if nothing can be held out.
    """
    scores, l2, fit = solve(
        labelled.train, None, labelled.test, len(labelled.class_names), config, metric=TOP1
    )
    if folder:
        _write(folder, labelled, fit, scores)
    return {**reported_figures(prefix, scores, labelled.test.label), f"{prefix}_l2": l2}


def solve(
    train: LabelledFeatures,
    validation: LabelledFeatures | None,
    test: LabelledFeatures,
    num_classes: int,
    config: ml_collections.ConfigDict,
    *,
    metric: Metric,
    loss: logistic.Loss = logistic.softmax_loss,
) -> tuple[np.ndarray, float, logistic.Fit]:
    """Chooses a strength of regularisation and solves with it on all but the test images.

    Args:
      train: embeddings to learn from.
      validation: embeddings to choose by; None holds out some of `train`.
      test: embeddings to score.
      num_classes: C.
      config: reads lbfgs and run.seed.
      metric: decides the choice.
      loss: of logistic regression, with one label per image or several.

    Returns:
      (scores, l2, fit): of the test embeddings [N, C]; the chosen l2; the classifier of
      standardised embeddings.

    Raises:
      UserError: if nothing can be held out.
    """
    if validation is None:
        fitted, chooses = split_held_out(train.label, config.lbfgs.held_out, config.run.seed)
        if not len(chooses):
            raise UserError(
                f"--config.lbfgs.held_out={config.lbfgs.held_out}: none of {len(train.h)} images "
                "can be held out, no class has two: give more images"
            )
    else:
        fitted = np.arange(len(train.h))
        chooses = len(train.h) + np.arange(len(validation.h))
        train = LabelledFeatures(
            *(np.concatenate(pair) for pair in zip(train, validation, strict=True))
        )
    train_h, test_h = standardize(train.h, test.h)
    found = logistic.sweep(
        train_h[fitted],
        train.label[fitted],
        train_h[chooses],
        train.label[chooses],
        num_classes=num_classes,
        l2s=np.geomspace(*config.lbfgs.l2, config.lbfgs.num_l2).tolist(),
        metric=metric,
        loss=loss,
    )
    fit = logistic.fit(
        train_h, train.label, num_classes=num_classes, l2=found.l2, loss=loss, start=found.fit
    )
    say(f"logistic regression: l2 {found.l2:.3g} by {found.figures.max():.4f} on held-out images")
    return logistic.linear_scores(test_h, fit.kernel, fit.bias), found.l2, fit


def _write(
    folder: pathlib.Path,
    labelled: Labelled,
    classifier: ChosenProbe | logistic.Fit,
    scores: np.ndarray,
) -> None:
    """Writes predictions and classifier: scores are (h - mean) / scale @ kernel + bias."""
    test, (mean, scale) = labelled.test, standardization(labelled.train.h)
    arrays = {"kernel": classifier.kernel, "bias": classifier.bias, "mean": mean, "scale": scale}
    shares = np.asarray(jax.nn.softmax(scores))
    with writing(folder):
        write_predictions(folder, test.id, test.label, shares, labelled.class_names, arrays)


def reported_figures(prefix: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the accuracies of scores with their intervals, and reports them."""
    figures = classification_figures(prefix, scores, labels)
    report(figures)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Reports every figure that has an interval."""
    for name in figures:
        if f"{name}_interval" in figures:
            low, high = figures[f"{name}_interval"]
            say(f"{name}: {figures[name]:.4f} (95 % interval {low:.4f} to {high:.4f})")


def _on_images(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """The linear protocol on crops of the images."""
    if config.features or config.encoder == "pixels":
        raise UsageError(
            "--config.protocol=images: needs a network and images; set --config.protocol=probe"
        )
    run = read_run(config)
    train = open_train(run)
    test = open_test(run, needs_test=True)
    encoder = open_encoder(config, run, train)
    training = ClassifierRun(
        encoder, train, config, backbone_rate=0.0, head_rate=config.optim.learning_rate
    )
    now = identity({"train": train, "test": test}, run.data.dir)
    with claimed_for_evaluation(workdir, config, encoder.digest, now):
        state = training.train(workdir, "linear protocol")
        scores = training.scores(state, test, config.eval.batch_size)
        write_trained(workdir, state, test, scores)
    return {**encoder.about, **reported_figures("linear", scores, labels_of(test))}


def write_trained(
    folder: pathlib.Path, state: ClassifierState, test: Source, scores: np.ndarray
) -> None:
    """Writes the predictions of a trained network, and its backbone and linear layer."""
    arrays = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    shares = np.asarray(jax.nn.softmax(scores))
    write_predictions(folder, ids_of(test), labels_of(test), shares, test.class_names, arrays)
