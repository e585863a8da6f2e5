"""The linear job: it agrees with scikit-learn, and chooses on training images alone."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.jobs.test_knn_job import gaussians
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
    assert hashes(pretrained) == before
