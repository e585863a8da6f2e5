"""The online probe learns beside pretraining, and pretraining does not notice."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.train.online_probe import probe_gradient
from tests.runs import done, refused, tiny
from tests.train.steps import exact_run, experiment_of, run


def with_probe(method, rate=0.01):
    evaluation = {"online_linear": True, "online_linear_learning_rate": rate}
    return experiment_of(method, evaluation=evaluation)


def test_no_bit_of_pretraining_changes_and_the_probe_moves_by_adam():
    plain, logs = exact_run()
    states, probed_logs = run(with_probe("simsiam_gsg", rate=0.02), 3, exact=True)
    for group in ("params", "batch_stats", "target_params", "target_batch_stats", "memory"):
        expected, found = getattr(plain[3], group), dict(getattr(states[3], group))
        found.pop("probe", None)
        chex.assert_trees_all_equal(found, expected)
    for before, after in zip(logs, probed_logs, strict=True):
        assert {name: after[name] for name in before} == before
    start, first = (state.params["probe"] for state in states[:2])
    assert start["kernel"].shape == (8, 3)  # Adam's first step is the sign of the gradient
    moved = np.abs(first["kernel"] - start["kernel"])
    np.testing.assert_allclose(np.median(moved), 0.02, rtol=1e-3)
    assert probed_logs[2]["online_linear_loss"] < probed_logs[0]["online_linear_loss"]


def test_its_gradient_is_that_of_a_softmax_regression_on_known_labels():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, 7, 5))
    labels = np.array([0, 1, 2, -1, 1, 0, 2])  # one of them is unknown
    kernel, bias = rng.normal(size=(5, 3)), rng.normal(size=3)
    gradient, losses, hits = {"kernel": 0 * kernel, "bias": 0 * bias}, [], []
    for view in h:
        for row, label in zip(view, labels, strict=True):
            if label < 0:
                continue
            scores = row @ kernel + bias
            p = np.exp(scores) / np.exp(scores).sum()
            error = p - np.eye(3)[label]
            gradient["kernel"] += np.outer(row, error) / 12
            gradient["bias"] += error / 12
            losses.append(-np.log(p[label]))
            hits.append(scores.argmax() == label)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    inputs = params, jnp.asarray(h, jnp.float32), jnp.asarray(labels)
    found, metrics = jax.jit(lambda *args: probe_gradient(nn.Dense(3), *args))(*inputs)
    expected = jax.tree.map(np.float32, gradient)
    chex.assert_trees_all_close(dict(found), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["online_linear_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["online_linear_top1"], np.mean(hits), rtol=1e-6)


@pytest.mark.extended
def test_a_run_logs_its_accuracy_in_training_and_on_the_test_images(images, tmp_path):
    flags = ("--config.eval.online_linear=true", "--config.eval.online_linear_learning_rate=0.05")
    last, err = done(*tiny("simsiam_gsg", images, tmp_path, *flags))
    assert " probe 0." in err and "probe on test " in err and "knn_top1" in last
    again, _ = done(*tiny("simsiam_gsg", images, tmp_path, *flags))
    assert again["state_digest"] == last["state_digest"]  # its weights are in the checkpoint


def test_images_without_labels_are_refused(images, tmp_path):
    folder = images / "train" / "even"
    flags = tiny("simsiam", folder, tmp_path / "run", "--config.eval.online_linear=true")
    assert "'folder' has no labels" in refused(*flags)
    assert not (tmp_path / "run").exists()
