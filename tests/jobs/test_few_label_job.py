"""The few-label job: on a checkpoint and on embeddings that are given."""

import json

import numpy as np
import pytest

from gsg_jax.evaluation.few_label import few_label_figures
from tests.evaluation.planted import gaussians
from tests.runs import done, job, logged


def test_embeddings_that_are_given_are_scored_as_the_config_says(tmp_path):
    sets = gaussians(70, 31, num_classes=3, num_channels=6, seed=5)
    for split, (h, label) in zip(("train", "test"), sets, strict=True):
        np.savez(tmp_path / f"{split}.npz", h=h.astype(np.float32), label=label)
    flags = ("num_images=(2,30)", "num_draws=4", "c=1.5")
    flags = [f"--config.features={tmp_path}", *(f"--config.few_label.{flag}" for flag in flags)]
    last, err = done(*job("few_label", *flags))
    (train, labels), (test, test_labels) = sets
    train, test = train.astype(np.float32), test.astype(np.float32)
    options = {"num_images": (2, 30), "num_draws": 4, "c": 1.5}
    figures = few_label_figures(train, labels, test, test_labels, **options)
    assert last == {"job": "few_label", "features": str(tmp_path), **figures}
    assert f"2 labels a class: {last['few_label_2']:.4f} ±" in err and "fewer than 30" in err


@pytest.mark.usefixtures("on_one_device")
def test_a_run_has_measured_the_figures_of_the_job(pretrained):
    *_, measured = logged(pretrained)
    baselines = json.loads((pretrained / "baselines.json").read_text())
    flags = job("few_label", f"--config.pretrained={pretrained}")
    last, _ = done(*flags)
    untrained, _ = done(*flags, "--config.encoder=untrained")
    for k in (1, 5, 10):
        for suffix in ("", "_error"):
            assert measured[f"few_label_{k}{suffix}"] == last[f"few_label_{k}{suffix}"]
            name = f"few_label_{k}_untrained{suffix}"
            assert baselines[name] == untrained[f"few_label_{k}{suffix}"]
