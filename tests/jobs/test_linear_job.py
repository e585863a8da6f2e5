"""The linear job: it agrees with scikit-learn, and chooses on training images alone."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from tests.jobs.test_knn_job import gaussians, read_predictions
from tests.runs import done, hashes, job

SMALL = ("--config.probe.num_epochs=30", "--config.lbfgs.num_l2=7", "--config.lbfgs.l2=(1e-4,1.0)")


def linear(*flags):
    """Runs the job: its last line."""
    return done(*job("linear", *SMALL, *flags))[0]


@pytest.mark.parametrize("protocol", ["probe", "lbfgs"])
def test_accuracy_agrees_with_scikit_learn_at_the_regularisation_that_was_chosen(
    tmp_path, protocol
):
    train, test = gaussians(tmp_path, num_classes=7, sizes=(900, 4000))
    flags = (f"--config.features={tmp_path}", f"--config.protocol={protocol}")
    last = linear(*flags)
    mean, std = train["h"].mean(axis=0), train["h"].std(axis=0)
    l2 = last["linear_l2" if protocol == "lbfgs" else "linear_weight_decay"]
    peer = LogisticRegression(C=1 / max(l2 * 900, 1e-9), max_iter=2000)
    peer.fit((train["h"] - mean) / std, train["label"])
    scores = peer.predict_proba((test["h"] - mean) / std)
    hit = scores.argmax(axis=1) == test["label"]
    fifth = (np.argsort(-scores, axis=1)[:, :5] == test["label"][:, None]).any(axis=1)
    per_class = [hit[test["label"] == c].mean() for c in range(7)]
    assert 0.4 < hit.mean() < 0.95
    assert last["linear_top1"] == pytest.approx(hit.mean(), abs=0.005)
    assert last["linear_top5"] == pytest.approx(fifth.mean(), abs=0.005)
    assert last["linear_mean_per_class"] == pytest.approx(np.mean(per_class), abs=0.005)
    for name in ("top1", "top5", "mean_per_class"):
        low, high = last[f"linear_{name}_interval"]
        assert low <= last[f"linear_{name}"] <= high and high - low < 0.05
    # Nothing of the test split enters the choice.
    np.savez(tmp_path / "test.npz", h=test["h"], label=(test["label"] + 1) % 7)
    again = linear(*flags)
    for key in ("linear_learning_rate", "linear_weight_decay", "linear_l2"):
        assert again.get(key) == last.get(key)
    assert again["linear_top1"] < last["linear_top1"]


@pytest.mark.parametrize("protocol", ["probe", "lbfgs"])
def test_the_classifier_that_is_written_makes_the_predictions(tmp_path, protocol, monkeypatch):
    _, test = gaussians(tmp_path / "given", num_classes=4, sizes=(200, 90))
    monkeypatch.chdir(tmp_path)
    flags = (f"--config.features={tmp_path / 'given'}", f"--config.protocol={protocol}")
    before = hashes(tmp_path)
    last = linear(*flags)
    assert hashes(tmp_path) == before
    assert linear(*flags, "--workdir=out") == last
    part = load_file("out/classifier.safetensors")
    scores = (test["h"] - part["mean"]) / part["scale"] @ part["kernel"] + part["bias"]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = read_predictions(tmp_path / "out")
    assert [int(row["predicted"]) for row in rows] == scores.argmax(axis=1).tolist()
    found = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(found, shares.max(axis=1), atol=1e-5)
    assert np.mean([row["predicted"] == row["label"] for row in rows]) == last["linear_top1"]
    with safe_open("out/classifier.safetensors", "np") as file:
        assert json.loads(file.metadata()["class_names"]) == ["0", "1", "2", "3"]


def test_the_protocol_on_images_learns_and_leaves_the_backbone_alone(pretrained, tmp_path):
    before = hashes(pretrained)
    flags = (
        f"--config.pretrained={pretrained}",
        f"--workdir={tmp_path}",
        "--config.protocol=images",
        "--config.data.batch_size=16",
        "--config.run.num_epochs=20",
        "--config.optim.name=sgd",
        "--config.optim.learning_rate=30.0",
    )
    last = linear(*flags)
    assert last["linear_top1"] > 0.9 and last["protocol"] == "images"
    rows = read_predictions(tmp_path)
    assert np.mean([row["predicted"] == row["label"] for row in rows]) == last["linear_top1"]
    assert "params/head/kernel" in load_file(tmp_path / "classifier.safetensors")
    assert hashes(pretrained) == before
