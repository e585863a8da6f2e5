"""The job that runs every evaluation of one checkpoint and writes one file and one table."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections

from gsg_jax.config.check import check_evaluation
from gsg_jax.config.load import as_json, differences
from gsg_jax.console import UsageError, UserError, say
from gsg_jax.data.open import Source
from gsg_jax.devices.mesh import wait_for_hosts
from gsg_jax.evaluation.encoder import open_encoder, read_run
from gsg_jax.evaluation.feature_files import LabelledFeatures
from gsg_jax.evaluation.labelled import Labelled, check_finite, open_test, open_train
from gsg_jax.evaluation.scores import shares_with_intervals
from gsg_jax.jobs.features import features_in_file
from gsg_jax.jobs.few_label import score_by_few_labels
from gsg_jax.jobs.finetune import check_tunable, drawn_part, none_held_out, official_part, tune
from gsg_jax.jobs.knn import score_by_knn
from gsg_jax.jobs.linear import score_by_lbfgs, score_by_probe
from gsg_jax.jobs.transfer import check_sets, transfer_figures
from gsg_jax.run.files import read_object, write_atomically
from gsg_jax.run.identity import identity
from gsg_jax.run.lock import writing
from gsg_jax.run.workdir import CHANGES_NOTHING, claimed_for_evaluation

PARTS = ("knn", "few_label", "probe", "lbfgs", "finetune", "transfer")


def run_every_evaluation(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
    """Runs every evaluation of one checkpoint, one after another.

    Figures are saved in evaluation.json after each evaluation, and in evaluation.md at the end: a
    stopped job resumes after the last one saved. Embeddings are kept in features/, fine-tuning in
    finetune/.

    Returns:
      The job's last line: the figures of all.

    Raises:
      UserError: for anything that an evaluation lacks; earlier ones are kept.
    """
    check_evaluation(config)
    parts = config.parts
    if not isinstance(parts, tuple) or not parts or any(part not in PARTS for part in parts):
        raise UsageError(f"--config.parts={parts}: take from {', '.join(PARTS)}")
    check_sets(config)
    if config.encoder == "pixels" and {"finetune", "transfer"} & set(parts):
        raise UsageError(
            f"--config.encoder=pixels: does not go with --config.parts={parts}, since it has no "
            "weights; leave finetune and transfer out"
        )
    evaluation = Evaluation(config, workdir)
    with writing(workdir, "evaluation.lock"):  # the folder may be of a run in training
        return evaluation.run()


def _without_parts(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that figures depend on; the encoder's digest stands for `pretrained`."""
    return {key: value for key, value in settings.items() if key not in ("pretrained", "parts")}


def _prefix(share: float) -> str:
    """What the figures of fine-tuning on a share of the labels begin with."""
    return f"finetune_{100 * share:g}pct"


class Evaluation:
    """All evaluations of one checkpoint and the file that keeps them."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.path = workdir / "evaluation.json"
        self.run_config = read_run(config)
        self.train = open_train(self.run_config)
        self.test = open_test(self.run_config, needs_test=True)
        self.encoder = open_encoder(config, self.run_config, self.train)
        images = {"train": self.train, "test": self.test}
        self.identity = identity(images, self.run_config.data.dir)
        self.labelled_parts, self.untunable = {}, {}
        for share in config.finetune_labels if "finetune" in config.parts else ():
            part = official_part(self.run_config, share)
            part = part or drawn_part(self.train, share, config.run.seed)
            if lack := none_held_out(part, config):  # the other evaluations are still made
                say(f"warning: {_prefix(share)} is left out: {lack}")
                self.untunable[_prefix(share)] = lack
                continue
            check_tunable(self.encoder, part, config)
            self.labelled_parts[share] = part

    def run(self) -> dict[str, Any]:
        """Runs what the file does not have yet; returns all figures."""
        settings = _without_parts(json.loads(as_json(self.config)))
        settings |= {"digest": self.encoder.digest, **self.identity}
        found, options = self._found(settings), self.config.eval
        wait_for_hosts("the figures are looked at")
        scorers: dict[str, Callable[[], dict[str, Any]]] = {
            "knn": lambda: score_by_knn(self.labelled, options.knn_k, options.knn_temperature),
            "few_label": lambda: score_by_few_labels(self.labelled, self.config),
            "probe": lambda: score_by_probe(self.labelled, self.config, "linear"),
            "lbfgs": lambda: score_by_lbfgs(self.labelled, self.config, "lbfgs"),
            "finetune": self._finetune,
            "transfer": lambda: transfer_figures(
                self.config, self.encoder, found.get("transfer", {})
            ),
        }
        for part in self.config.parts:
            known = found.get(part, {})
            if known and not known.get("transfer_missing") and not known.get("transfer_unfit"):
                say(f"{part} is in {self.path} already")
                continue
            found[part] = scorers[part]()
            record = {"about": self.encoder.about, "settings": settings, "figures": found}
            write_atomically(self.path, json.dumps(record, indent=2) + "\n")
        every = {name: value for part in scorers for name, value in found.get(part, {}).items()}
        write_atomically(self.path.with_suffix(".md"), as_markdown(self.encoder.about, every))
        figures = {name: value for part in self.config.parts for name, value in found[part].items()}
        say(f"the figures are in {self.path} and {self.path.with_suffix('.md').name}")
        return {"job": "evaluate_all", **self.encoder.about, **figures}

    @functools.cached_property
    def labelled(self) -> Labelled:
        """Embeddings of both splits."""
        train = self._features("train", self.train)
        test = self._features("test", self.test)
        return Labelled(train, test, self.train.class_names, self.encoder.about)

    def _features(self, split: str, source: Source) -> LabelledFeatures:
        path = self.workdir / "features" / f"{split}.npz"
        batch_size = self.config.eval.batch_size
        features = features_in_file(path, self.encoder, source, split, batch_size)
        check_finite(features.h, str(path))
        return features

    def _finetune(self) -> dict[str, Any]:
        figures = {}
        settings = ml_collections.ConfigDict(_without_parts(self.config.to_dict()))
        for share, train in self.labelled_parts.items():
            prefix = _prefix(share)
            folder = self.workdir / "finetune" / prefix
            with claimed_for_evaluation(folder, settings, self.encoder.digest, self.identity):
                figures |= tune(self.encoder, train, self.test, self.config, folder, prefix)
        return figures | ({"finetune_unfit": self.untunable} if self.untunable else {})

    def _found(self, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The figures of an earlier call with the same settings."""
        if not self.path.exists():
            return {}
        record = read_object(self.path)
        figures, others = record.get("figures"), record.get("settings")
        if not isinstance(figures, dict) or not isinstance(others, dict):
            raise UserError(f"{self.path} is damaged (no figures or settings): remove it")
        if differing := differences(ml_collections.ConfigDict(settings), others, CHANGES_NOTHING):
            raise UserError(
                f"{self.path} is of another checkpoint, other images or of other settings, which "
                f"differ in "
                f"{'; '.join(differing[:5])}: give another --workdir, or move it away with "
                f"{self.workdir / 'features'} and {self.workdir / 'finetune'}"
            )
        return figures


def as_markdown(about: dict[str, Any], figures: dict[str, Any]) -> str:
    """The figures as a Markdown table, shares in percent; the interval of NAME is NAME_interval."""
    title = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"# Evaluation: {title}", "", "| figure | % | 95 % interval |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in shares_with_intervals(figures)]
    if missing := figures.get("transfer_missing"):
        lines += ["", f"Sets that are not on the machine: {', '.join(missing)}."]
    for name, reason in figures.get("transfer_unfit", {}).items():
        lines += ["", f"{name} cannot be scored: {reason}"]
    for name, reason in figures.get("finetune_unfit", {}).items():
        lines += ["", f"{name} was left out: {reason}"]
    return "\n".join(lines) + "\n"
