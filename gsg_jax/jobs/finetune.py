"""The fine-tuning job: all weights trained on some or all of the labels."""

import itertools
import json
import pathlib
import shutil
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.console import UsageError, UserError, say
from gsg_jax.data.open import Source
from gsg_jax.data.source import Subset
from gsg_jax.data.tfds import is_prepared
from gsg_jax.devices import hosts
from gsg_jax.devices.mesh import wait_for_hosts
from gsg_jax.evaluation.encoder import Encoder, open_encoder, read_run
from gsg_jax.evaluation.feature_files import labels_of
from gsg_jax.evaluation.labelled import open_test, open_train
from gsg_jax.evaluation.scores import top_k_accuracy
from gsg_jax.evaluation.splits import class_balanced, split_held_out
from gsg_jax.jobs.linear import reported_figures, write_trained
from gsg_jax.run.files import read_object, write_atomically
from gsg_jax.run.identity import identity
from gsg_jax.run.workdir import claimed_for_evaluation
from gsg_jax.train.supervised import ClassifierRun, Diverged

# Official subsets of ImageNet by share of the labels: the lists that the papers use.
IMAGENET_PARTS = {0.01: "imagenet2012_subset/1pct", 0.1: "imagenet2012_subset/10pct"}
# The figure of learning rates whose loss became infinite or NaN: below every accuracy.
DIVERGED = -1.0


def finetune_backbone(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Fine-tunes a backbone with a linear classifier behind it.

    Checkpoints and the sweep's figures are written, then the predictions and the network. A stopped
    job resumes.

    Returns:
      The job's last line: finetune_top1, finetune_top5 and finetune_mean_per_class, each with the
      95 % interval of a bootstrap over the test images, num_labels, and the learning rates.

    Raises:
      UserError: if there is no run, no checkpoint, no label, no test split, or a class has no
        training image.
    """
    check_evaluation(config)
    if config.encoder == "pixels":
        raise UsageError("--config.encoder=pixels: has no weights; take pretrained or untrained")
    run = read_run(config)
    train = official_part(run, config.labels)
    train = train or drawn_part(open_train(run), config.labels, config.run.seed)
    test = open_test(run, needs_test=True)
    encoder = open_encoder(config, run, train)
    check_tunable(encoder, train, config)
    now = identity({"train": train, "test": test}, run.data.dir)
    with claimed_for_evaluation(workdir, config, encoder.digest, now):
        figures = tune(encoder, train, test, config, workdir, "finetune")
    return {"job": "finetune", **encoder.about, "labels": config.labels, **figures}


def official_part(run: ml_collections.ConfigDict, share: float) -> Source | None:
    """The subset of ImageNet's labels that the papers use, if it is asked for and prepared.

    Args:
      run: of read_run.
      share: of the labels, in (0, 1].

    Returns:
      Its training images, or None.
    """
    part = IMAGENET_PARTS.get(share) if run.data.name == "imagenet2012" else None
    if part is None or not is_prepared(part, run.data.dir):
        return None
    say(f"using the labels of {part}")
    official = run.copy_and_resolve_references()
    official.data.name = part
    return open_train(official)


def drawn_part(train: Source, share: float, seed: int) -> Source:
    """Training images whose labels may be used, equally many of every class."""
    if share == 1:
        return train
    part = Subset(train, class_balanced(train.labels, share, seed))
    say(f"using {len(part):,} labels, equally many of every class, by seed {seed}")
    return part


def check_tunable(encoder: Encoder, train: Source, config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked before any training, so that no folder is claimed in vain.

    Args:
      encoder: where the training starts.
      train: images whose labels may be used.
      config: reads optim, views, data and run.

    Raises:
      UserError: if no batch can be made, or no image can be held out to choose learning rates by.
    """
    _run(encoder, train, config, _pairs(config)[0])
    if lack := none_held_out(train, config):
        raise UserError(lack)


def none_held_out(train: Source, config: ml_collections.ConfigDict) -> str:
    """Why no learning rates can be chosen; "" if they can, or if there is only one pair of them."""
    held_out = split_held_out(train.labels, config.run.held_out, config.run.seed)[1]
    if len(held_out) or len(_pairs(config)) == 1:
        return ""
    return (
        f"{len(train)} labels leave one image a class, so none can be held out to choose learning "
        "rates by: take a larger share of the labels, or give one "
        "--config.optim.backbone_learning_rates and one --config.optim.head_learning_rates"
    )


def tune(
    encoder: Encoder,
    train: Source,
    test: Source,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    prefix: str,
) -> dict[str, Any]:
    """Chooses learning rates on held-out images, trains on all, scores the test images.

    Args:
      encoder: where the training starts.
      train: images whose labels may be used.
      test: images to score.
      config: reads optim, views, data, eval and run.
      folder: gets checkpoints, the sweep's figures, the predictions and the network.
      prefix: of the figures' names.

    Returns:
      Accuracies with their intervals, num_labels, and the learning rates.

    Raises:
      UserError: if every pair of learning rates diverged.
    """
    rates = _chosen_rates(encoder, train, config, folder)
    training = _run(encoder, train, config, rates)
    state = training.train(folder / "chosen", prefix)
    scores = training.scores(state, test, config.eval.batch_size)
    write_trained(folder, state, test, scores)
    return {
        **reported_figures(prefix, scores, labels_of(test)),
        f"{prefix}_num_labels": len(train),
        f"{prefix}_backbone_learning_rate": rates[0],
        f"{prefix}_head_learning_rate": rates[1],
    }


def _chosen_rates(
    encoder: Encoder, train: Source, config: ml_collections.ConfigDict, folder: pathlib.Path
) -> tuple[float, float]:
    """The pair (backbone's, head's) that is best on held-out images, the first among equals.

    Figures are kept in sweep.json; pairs found there are not trained again.
    """
    pairs = _pairs(config)
    if len(pairs) == 1:
        return pairs[0]
    fitted, chooses = split_held_out(train.labels, config.run.held_out, config.run.seed)
    path = folder / "sweep.json"
    figures = read_object(path) if path.exists() else {}
    if not all(isinstance(figure, float) for figure in figures.values()):
        raise UserError(f"{path} is damaged (a figure is not a number): remove it")
    wait_for_hosts("the sweep is looked at")
    for pair in pairs:
        name = _name(pair)
        if name not in figures:
            parts = Subset(train, fitted), Subset(train, chooses)
            figures[name] = _held_out_top1(encoder, *parts, config, pair, folder / name)
            write_atomically(path, json.dumps(figures, indent=2) + "\n")
            wait_for_hosts(f"{name} is scored")
            if hosts.is_writer():
                shutil.rmtree(folder / name)
        say(f"learning rates {name}: {figures[name]:.4f} on {len(chooses)} held-out images")
    best = max(pairs, key=lambda pair: figures[_name(pair)])
    if figures[_name(best)] == DIVERGED:
        raise UserError(
            f"--config.optim.backbone_learning_rates={config.optim.backbone_learning_rates}: all "
            "diverged; take lower ones, or lower --config.optim.head_learning_rates, in another "
            "--workdir"
        )
    return best


def _held_out_top1(
    encoder: Encoder,
    fitted: Source,
    chooses: Source,
    config: ml_collections.ConfigDict,
    rates: tuple[float, float],
    folder: pathlib.Path,
) -> float:
    """Top-1 accuracy on held-out images after training with some rates, or DIVERGED."""
    training = _run(encoder, fitted, config, rates)
    try:
        state = training.train(folder, _name(rates))
        scores = training.scores(state, chooses, config.eval.batch_size)
    except Diverged as error:
        say(f"warning: {error}")
        return DIVERGED
    return top_k_accuracy(scores, labels_of(chooses), 1)


def _pairs(config: ml_collections.ConfigDict) -> list[tuple[float, float]]:
    """Learning rates to try, (backbone's, head's)."""
    optim = config.optim
    return list(itertools.product(optim.backbone_learning_rates, optim.head_learning_rates))


def _run(
    encoder: Encoder,
    train: Source,
    config: ml_collections.ConfigDict,
    rates: tuple[float, float],
) -> ClassifierRun:
    return ClassifierRun(encoder, train, config, backbone_rate=rates[0], head_rate=rates[1])


def _name(rates: tuple[float, float]) -> str:
    return "backbone_{}-head_{}".format(*rates)
