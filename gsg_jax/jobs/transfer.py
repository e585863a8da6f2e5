"""The transfer job: the encoder evaluated on other sets of images."""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.config.transfer_sets import SETS, TransferSet
from gsg_jax.console import UsageError, UserError, given_path, say
from gsg_jax.data.source import known_images, num_channels
from gsg_jax.data.tfds import is_prepared, open_tfds
from gsg_jax.devices.hosts import are_several
from gsg_jax.evaluation import logistic
from gsg_jax.evaluation.encoder import Encoder, check_checkpoint, encoder_of, read_run
from gsg_jax.evaluation.image_encoder import run_preparation
from gsg_jax.evaluation.labelled import embed_labelled
from gsg_jax.evaluation.scores import (
    bootstrap_interval,
    mean_average_precision,
    mean_per_class,
)
from gsg_jax.evaluation.splits import check_every_class
from gsg_jax.jobs.linear import TOP1, report, solve
from gsg_jax.models.siamese import image_channels

METRICS = {
    "top1": TOP1,
    "mean_per_class": mean_per_class,
    "map_11_point": mean_average_precision,
}


def transfer_to_suite(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores embeddings of other sets by logistic regression, each by its own metric.

    Returns:
      The job's last line: the encoder; transfer_<set>_<metric>, its interval and its l2 for every
      set on the machine; the names of missing sets; and sets that cannot be scored, with the reason
      (a missing split, or another number of channels than the run's).

    Raises:
      UserError: if there is no run or no checkpoint, or, on several hosts, a set cannot be scored.
    """
    del workdir
    check_evaluation(config)
    check_sets(config)
    run = read_run(config, needs_data=False)
    check_checkpoint(config)
    channels = 3
    if config.encoder == "pretrained":
        workdir = given_path("--config.pretrained", config.pretrained)
        channels = run_preparation(workdir, run).channels
    encoder = encoder_of(config, run, channels)
    return {"job": "transfer", **encoder.about, **transfer_figures(config, encoder, {})}


def check_sets(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError if the suite lacks a set that is asked for."""
    asked = config.transfer.sets
    if not isinstance(asked, tuple) or not asked or any(name not in tuple(SETS) for name in asked):
        raise UsageError(f"--config.transfer.sets={asked}: take from {', '.join(SETS)}")


def transfer_figures(
    config: ml_collections.ConfigDict, encoder: Encoder, known: dict[str, Any]
) -> dict[str, Any]:
    """Scores the sets of a config.

    Args:
      config: reads transfer, lbfgs and eval.
      encoder: what is scored; its images are cut to their centres, since they differ in shape.
      known: figures of an earlier call, whose sets are not scored again.

    Returns:
      The figures of transfer_to_suite.

    Raises:
      UserError: if, on several hosts, a set cannot be scored.
    """
    run = encoder.run.copy_and_resolve_references()
    run.data.crop = "host"
    encoder = dataclasses.replace(encoder, run=run)
    figures, missing, unfit = {}, [], {}
    for name in config.transfer.sets:
        of_set = {key: known[key] for key in known if key.startswith(f"transfer_{name}_")}
        if of_set:
            figures |= of_set
        elif not is_prepared(SETS[name].tfds, config.transfer.dir):
            missing.append(name)
        else:
            try:
                figures |= _score_set(name, SETS[name], config, encoder)
            except UserError as error:  # the other sets are still scored
                if are_several():  # the other hosts would wait for this one
                    raise
                say(f"warning: {name} cannot be scored: {error}")
                unfit[name] = str(error)
    if missing:
        say(
            f"not on this machine: {', '.join(missing)} (gsg-jax prepare NAME, then "
            "--config.transfer.dir=DIR)"
        )
    return {**figures, "transfer_missing": missing, "transfer_unfit": unfit}


def _score_set(
    name: str, of: TransferSet, config: ml_collections.ConfigDict, encoder: Encoder
) -> dict[str, Any]:
    """One set: embeddings, logistic regression, the set's own metric."""
    splits = {
        part: open_tfds(of.tfds, config.transfer.dir, split, 0, multi_label=of.is_multi_label)
        for part, split in {"train": of.train, "validation": of.validation, "test": of.test}.items()
        if split
    }
    train = splits["train"]
    if encoder.params and num_channels(train) != image_channels(encoder.run, encoder.params):
        raise UserError(f"its images have {num_channels(train)} channels, unlike the run's")
    if not train.class_names:
        raise UserError(f"{of.tfds!r} has no labels: prepare the data set again")
    if not of.is_multi_label:
        splits = {part: known_images(source) for part, source in splits.items()}
        check_every_class(splits["train"].labels, train.class_names)
    embedded = {
        part: embed_labelled(encoder, source, config.eval.batch_size)
        for part, source in splits.items()
    }
    metric = METRICS[of.metric]
    scores, l2, _ = solve(
        embedded["train"],
        embedded.get("validation"),
        embedded["test"],
        len(train.class_names),
        config,
        metric=metric,
        loss=logistic.binary_loss if of.is_multi_label else logistic.softmax_loss,
    )
    labels = embedded["test"].label
    interval = bootstrap_interval(metric, scores, labels, num_resamples=200)
    key = f"transfer_{name}_{of.metric}"
    figures = {key: metric(scores, labels), f"{key}_interval": list(interval)}
    report(figures)
    return figures | {f"transfer_{name}_l2": l2}
