"""The online probe: learns beside pretraining, and pretraining does not notice."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from gsg_jax.devices import mesh as meshes
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state
from tests.runs import call, figures, tiny, write_images
from tests.small import images, small_config

NUM_CLASSES = 3


def with_probe(method, rate=0.01, **choices):
    config = small_config(method, **choices)
    config.eval.update({"online_linear": True, "online_linear_learning_rate": rate})
    return build_experiment(config, num_steps=20, steps_per_epoch=5, num_classes=NUM_CLASSES)


def run(experiment, labels, num_steps=3, num_devices=1):
    """States before the first and after each step, and the metrics of each."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    step = jit_step(experiment, mesh)
    init = functools.partial(init_state, experiment, 1)
    state = jax.jit(init, out_shardings=meshes.replicated(mesh))()
    states, logs = [jax.device_get(state)], []
    for _ in range(num_steps):
        inputs = (images(), labels) if experiment.probe else (images(),)
        state, metrics = step(state, *meshes.global_batch(mesh, inputs))
        states.append(jax.device_get(state))
        logs.append(jax.device_get(metrics))
    return states, logs


LABELS = (np.arange(16) % NUM_CLASSES).astype(np.int32)


@pytest.mark.parametrize("method", ["simsiam_gsg", pytest.param("byol", marks=pytest.mark.slow)])
def test_no_bit_of_pretraining_changes(method):
    plain, logs = run(
        build_experiment(small_config(method), num_steps=20, steps_per_epoch=5), LABELS
    )
    probed, probed_logs = run(with_probe(method), LABELS)
    for group in ("params", "batch_stats", "target_params", "target_batch_stats", "memory"):
        expected, found = getattr(plain[-1], group), dict(getattr(probed[-1], group))
        found.pop("probe", None)
        jax.tree.map(np.testing.assert_array_equal, expected, found)
    for before, after in zip(logs, probed_logs, strict=True):
        assert {name: after[name] for name in before} == before


def test_its_first_step_is_adams_on_the_gradient_of_a_softmax_regression():
    """The probe begins at what it was drawn as; its gradient is taken from a plain loop."""
    experiment = with_probe("simsiam")
    seen = []

    def loss(outputs, memory, key):
        jax.debug.callback(lambda h: seen.append(np.array(h, np.float64)), outputs.h)
        return small_loss(outputs, memory, key)

    small_loss = experiment.loss
    labels = np.where(np.arange(16) == 5, -1, LABELS)  # one of them is not known
    states, (log,) = run(experiment.__class__(**{**vars(experiment), "loss": loss}), labels, 1)
    kernel, bias = (np.array(states[0].params["probe"][x], np.float64) for x in ("kernel", "bias"))
    gradient, losses, hits = {"kernel": 0 * kernel, "bias": 0 * bias}, [], []
    for view in seen[0]:
        for h, label in zip(view, labels, strict=True):
            if label < 0:
                continue
            scores = h @ kernel + bias
            p = np.exp(scores - scores.max())
            p /= p.sum()
            error = p - np.eye(NUM_CLASSES)[label]
            gradient["kernel"] += np.outer(h, error) / 30
            gradient["bias"] += error / 30
            losses.append(-np.log(p[label]))
            hits.append(scores.argmax() == label)
    np.testing.assert_allclose(log["online_linear_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(log["online_linear_top1"], np.mean(hits), rtol=1e-6)
    updates, _ = optax.adam(0.01).update(
        jax.tree.map(np.float32, gradient), optax.adam(0.01).init(states[0].params["probe"])
    )
    for name in gradient:
        moved = states[1].params["probe"][name] - states[0].params["probe"][name]
        large = np.abs(gradient[name]) > 1e-4  # Adam's first step is the sign of the gradient
        np.testing.assert_allclose(moved[large], updates[name][large], atol=1e-5)
        assert large.mean() > 0.8


def test_eight_devices_train_the_same_probe():
    ends = [run(with_probe("simsiam_gsg"), LABELS, 3, n)[0][-1].params["probe"] for n in (1, 8)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *ends)


def test_a_run_logs_its_accuracy_in_training_and_on_the_test_images(tmp_path):
    folder = write_images(tmp_path / "images")
    flags = ("--config.eval.online_linear=true", "--config.eval.online_linear_learning_rate=0.05")
    status, out, err = call(*tiny("simsiam_gsg", folder, tmp_path / "run", *flags))
    assert status == 0 and " probe 0." in err and "probe on test " in err
    assert "knn_top1" in figures(out)
    again = call(*tiny("simsiam_gsg", folder, tmp_path / "run", *flags))
    digests = [figures(printed)["state_digest"] for printed in (out, again[1])]
    assert digests[0] == digests[1]  # its weights are in the checkpoint


def test_images_without_labels_are_refused(tmp_path):
    folder = write_images(tmp_path / "images") / "train" / "even"
    flags = tiny("simsiam", folder, tmp_path / "run", "--config.eval.online_linear=true")
    status, out, err = call(*flags)
    assert (status, out) == (1, "") and "'folder' has no labels" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
