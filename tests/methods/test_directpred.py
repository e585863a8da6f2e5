"""DirectPred's predictor has the closed form's eigenvalues, and follows the running correlation."""

import jax
import jax.numpy as jnp
import numpy as np

from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.correlation import init_correlation, update_correlation
from gsg_jax.methods.directpred import closed_form_predictor, directpred_loss, init_predictor
from tests.methods.loops import fresh, loss_and_gradient, unit

OPTIONS = {"correlation_decay": 0.9, "eigenvalue_floor": 0.3, "predictor_every_steps": 2}


def test_the_predictor_by_a_loop_over_eigenvectors():
    root = np.random.default_rng(0).normal(size=(6, 4))
    correlation = root @ root.T  # two eigenvalues are zero
    with jax.enable_x64(True):
        ours = np.asarray(closed_form_predictor(jnp.asarray(correlation), 0.3))
    values, vectors = np.linalg.eigh(correlation)
    expected = np.zeros((6, 6))
    for value, vector in zip(np.maximum(values, 0), vectors.T, strict=True):
        eigenvalue = np.sqrt(value) + 0.3 * np.sqrt(values.max())
        expected += eigenvalue * np.outer(vector, vector)
    np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_the_running_correlation_by_a_loop():
    with jax.enable_x64(True):
        memory = init_correlation(jax.random.key(0), width=5)
        expected = None
        for step in range(3):
            z = unit(fresh(step)[1])
            memory = update_correlation(memory, jnp.asarray(z), 0.9)
            batch = np.mean([np.outer(row, row) for view in z for row in view], axis=0)
            expected = batch if expected is None else 0.9 * expected + 0.1 * batch
            np.testing.assert_allclose(memory["correlation"], expected, rtol=1e-12, atol=1e-14)


def test_the_loss_is_the_asymmetric_one_of_the_closed_form_predictions():
    p, z = fresh(1)
    with jax.enable_x64(True):
        memory = init_predictor(jax.random.key(0), width=5, **OPTIONS)
    value, _, (after, _) = loss_and_gradient(directpred_loss, p, z, memory, **OPTIONS)
    expected, _, _ = loss_and_gradient(asymmetric_loss, p @ after["predictor"], z)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert not np.allclose(after["predictor"], np.eye(5)) and after["steps"] == 1


def test_the_predictor_follows_every_so_many_steps():
    memory = init_predictor(jax.random.key(0), width=5, **OPTIONS)
    predictors = []
    for step in range(4):
        _, _, (memory, _) = loss_and_gradient(
            directpred_loss, *fresh(step), memory, dtype=np.float32, **OPTIONS
        )
        predictors.append(np.asarray(memory["predictor"]))
    np.testing.assert_array_equal(predictors[0], predictors[1])
    np.testing.assert_array_equal(predictors[2], predictors[3])
    assert np.abs(predictors[2] - predictors[1]).max() > 1e-4
