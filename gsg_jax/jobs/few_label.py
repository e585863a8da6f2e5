"""The few-label job: a linear classifier that sees a few labelled images of every class."""

import pathlib
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import say
from gsg_jax.evaluation.few_label import few_label_figures, warn_of_small_classes
from gsg_jax.evaluation.labelled import Labelled, labelled_features


def classify_with_few_labels(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
    """Scores embeddings by logistic regression on a few labelled images; nothing is written.

    Returns:
      The job's last line: few_label_<k>, the mean accuracy over the draws of k images per class,
      and few_label_<k>_error, its standard error.

    Raises:
      UserError: if there is no run, no checkpoint, no label, no test split, or fewer than two
        classes.
    """
    del workdir
    check_evaluation(config)
    labelled = labelled_features(config, needs_test=True)
    return {"job": "few_label", **labelled.about, **score_by_few_labels(labelled, config)}


def score_by_few_labels(labelled: Labelled, config: ml_collections.ConfigDict) -> dict[str, float]:
    """`few_label_figures` of train and test embeddings, as config.few_label says."""
    train, test, options = labelled.train, labelled.test, config.few_label
    warn_of_small_classes(train.label, options.num_images)
    figures = few_label_figures(train.h, train.label, test.h, test.label, **options)
    for k in options.num_images:
        mean, error = figures[f"few_label_{k}"], figures[f"few_label_{k}_error"]
        say(f"{k} labels a class: {mean:.4f} ± {error:.4f} ({options.num_draws} draws)")
    return figures
