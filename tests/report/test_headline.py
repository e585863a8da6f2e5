"""The first screen says what the run's files say."""

import json

import numpy as np
import pytest
from scipy.optimize import brentq

from gsg_jax.config.load import from_record
from gsg_jax.config.recipes import pretraining
from gsg_jax.report.embeddings import Confusion
from gsg_jax.report.headline import Z, headline, interval
from gsg_jax.run.record import read_run_record

LINE = {"step": 10, "epoch": 16.0, "loss": -0.5, "projection_std": 0.9, "embedding_rank": 20.0}


def first_screen(folder, lines=(), baselines=None, starts=(), confusion=None, **options):
    """The headline of a run with these files."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(pretraining("default").to_json())
    for name, objects in (("metrics.jsonl", lines), ("starts.jsonl", starts)):
        (folder / name).write_text("".join(json.dumps(x) + "\n" for x in objects))
    if baselines:
        (folder / "baselines.json").write_text(json.dumps(baselines))
    record = read_run_record(folder)
    options = {"num_scored": 2000, "is_of_run": True, "step": 10} | options
    return headline(record, from_record(record.config), confusion, **options)


def test_the_interval_is_the_shares_that_a_binomial_test_does_not_reject():
    rng = np.random.default_rng(0)
    for _ in range(20):
        num = int(rng.integers(3, 3000))
        share = int(rng.integers(1, num)) / num

        def distance(p, share=share, num=num):  # in standard errors of p
            return abs(share - p) / np.sqrt(p * (1 - p) / num) - Z

        bounds = brentq(distance, 1e-12, share), brentq(distance, share, 1 - 1e-12)
        np.testing.assert_allclose(interval(share, num), bounds, atol=1e-9)
    low, high = interval(1.0, 50)
    assert low < 1 and high == pytest.approx(1)


def test_the_verdict_has_the_accuracy_its_interval_the_gaps_and_the_collapse(tmp_path):
    baselines = {"knn_top1_untrained": 0.7525, "knn_top1_pixels": 0.8025}
    found = first_screen(tmp_path, [LINE | {"knn_top1": 0.8164}], baselines)
    assert found.verdict == (
        "k-NN 81.6 % ± 1.7: 1.4 points above raw pixels, 6.4 above the untrained encoder; "
        "no collapse"
    )
    assert "95 % interval 79.9 to 83.3 %" in found.note and "2,000 images" in found.note
    lower = first_screen(tmp_path, [LINE | {"knn_top1": 0.8025 - 0.02}], baselines)
    assert "2.0 points below raw pixels, 3.0 above" in lower.verdict
    same = first_screen(tmp_path, [LINE | {"knn_top1": 0.8025}], baselines)
    assert "level with raw pixels, 5.0 points above the untrained" in same.verdict


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"projection_std": 0.1}, "collapsed: std of normalised projections"),
        ({"embedding_rank": 3.0}, "collapsed: effective rank of the embeddings is 3.0 (was 20.0)"),
        ({"epoch": 3.5}, "not finished, epoch 3.5 of 13"),
        ({}, "No labels, so no accuracy; no collapse"),
    ],
)
def test_a_collapse_an_early_end_and_missing_labels_are_said(tmp_path, change, said):
    assert said in first_screen(tmp_path, [LINE, LINE | {"step": 11} | change]).verdict


def test_other_images_have_an_accuracy_of_their_own_without_the_runs_baselines(tmp_path):
    confusion = Confusion(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), 2, 1, 4)
    lines = [LINE | {"knn_top1": 0.5}]
    found = first_screen(
        tmp_path, lines, {"knn_top1_pixels": 0.25}, confusion=confusion, is_of_run=False
    )
    assert found.verdict.startswith("k-NN on these images 75.0 % ±")
    assert "pixels" not in found.verdict and "the 4 images" in found.note
    assert dict(found.cards)["k-NN on these images"] == "75.00 %"
    unknown = first_screen(tmp_path, lines, num_scored=None)
    assert unknown.verdict.startswith("k-NN 50.0 %") and "±" not in unknown.verdict


def test_the_origin_is_the_first_command_and_the_resumes(tmp_path):
    start = {"step": 0, "date": "2026-01-02T03:04:05+00:00", "command": "gsg-jax a", "version": "1"}
    start |= {"commit": "abc", "machine": "2 CPU cores"}
    found = first_screen(tmp_path, starts=[start])
    assert dict(found.origin) == {
        "command": "gsg-jax a",
        "date": "2026-01-02 03:04:05+00:00",
        "version": "gsg_jax 1, commit abc",
        "machine": "2 CPU cores",
    }
    again = start | {"commit": "def", "command": "gsg-jax b", "date": "2026-01-03T00:00:00+00:00"}
    found = dict(first_screen(tmp_path, starts=[start, again, again]).origin)
    assert found["command"] == "gsg-jax a" and "commit abc, def" in found["version"]
    assert found["date"].endswith("; resumed 2 times, last 2026-01-03 00:00:00+00:00")
    assert first_screen(tmp_path).origin == []


def test_few_label_figures_are_a_row_for_each_number_of_labels(tmp_path):
    figures = {"few_label_1": 0.551, "few_label_1_error": 0.008, "few_label_10": 0.717}
    baselines = {"few_label_1_pixels": 0.41, "few_label_1_pixels_error": 0.002}
    found = first_screen(tmp_path, [LINE | figures], baselines)
    assert found.few_labels == [
        ("1 a class", "55.1 ± 0.8", "", "41.0 ± 0.2"),
        ("10 a class", "71.7", "", ""),
    ]
