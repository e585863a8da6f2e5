"""Guided sources: of a cosine they are guided stop-gradient; elsewhere only the pull changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.methods import METHODS
from gsg_jax.methods.asymmetric import asymmetric_loss
from gsg_jax.methods.directpred import directpred_loss, init_predictor
from gsg_jax.methods.guided import guided_loss
from gsg_jax.methods.guided_sources import guided_sources
from gsg_jax.methods.method import CutMix
from gsg_jax.methods.simdino import simdino_loss
from gsg_jax.methods.unified import surrogate_loss
from tests.methods.loops import loss_and_gradient, unit
from tests.train.steps import abstract_step, experiment_of, extended, run

N, D = 6, 5
UNIGRAD = {"form": "unigrad", "balance": 3.0, "temperature": 0.2, "eigenvalue_floor": 0.3}
CORRELATION = {"correlation": jnp.zeros((D, D)), "is_set": jnp.zeros((), bool)}


@functools.cache
def guided(loss):
    return functools.partial(guided_sources, loss)


def rows(seed, num_global=2, num_local=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_global + num_local, N, D)), rng.normal(size=(num_global, N, D))


@pytest.mark.parametrize(
    ("num_global", "num_local", "share"), [extended(2, 0, 0.0), (2, 3, 0.0), (4, 0, 0.3)]
)
def test_guided_sources_of_a_cosine_are_guided_stop_gradient(num_global, num_local, share):
    p, z = rows(0, num_global, num_local)
    others = {"mix": CutMix(np.roll(np.arange(N), 2), share)} if share else {}
    pairing = {2: "roll", 4: "permutation"}[num_global]
    expected = loss_and_gradient(guided_loss, p, z, others=others, pairing=pairing)
    found = loss_and_gradient(guided(asymmetric_loss), p, z, others=others)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)
    for name, value in expected[2][1].items():
        np.testing.assert_allclose(found[2][1][name], value, rtol=1e-6)


def picks_loop(z):
    """How often each view is the closest one of a pair of an image and the next."""
    picks = np.zeros((2, N))
    for i in range(N):
        r = (i + 1) % N
        pairs = [(a, b) for a in range(2) for b in range(2)]
        a, b = min(pairs, key=lambda pair: np.linalg.norm(z[pair[0], i] - z[pair[1], r]))
        picks[a, i] += 1
        picks[b, r] += 1
    return picks


def test_the_compression_of_simdino_is_of_the_picked_views_and_its_expansion_of_all():
    p, z = rows(1)
    loss = guided(simdino_loss)
    value, gradient, (_, terms) = loss_and_gradient(loss, p, z, coding_epsilon=0.05)
    whole = loss_and_gradient(simdino_loss, p, z, coding_epsilon=0.05)
    picks, u, t = picks_loop(z), unit(p), unit(z)[::-1]
    compression = np.sum(picks * np.sum(u * t, axis=-1)) / picks.sum()
    np.testing.assert_allclose(terms["compression"], compression, rtol=1e-10)
    np.testing.assert_allclose(terms["expansion"], whole[2][1]["expansion"], rtol=1e-10)
    np.testing.assert_allclose(value, -compression - terms["expansion"], rtol=1e-10)
    pull = (t - np.sum(u * t, -1, keepdims=True) * u) / np.linalg.norm(p, axis=-1, keepdims=True)
    changed = -(picks - 1)[..., None] * pull / (2 * N)
    np.testing.assert_allclose(gradient - whole[1], changed, atol=1e-12)


def test_unigrad_repels_all_views_and_pulls_the_picked():
    p, z = rows(2)
    options = UNIGRAD | {"correlation_decay": 0.9}
    gradients = [
        loss_and_gradient(loss, p, z, CORRELATION, **options)[1]
        for loss in (guided(surrogate_loss), surrogate_loss)
    ]
    u, t, picks = unit(p), unit(z)[::-1], picks_loop(z)
    pull = (t - np.sum(u * t, -1, keepdims=True) * u) / np.linalg.norm(p, axis=-1, keepdims=True)
    changed = -(picks - 1)[..., None] * pull / (2 * N)
    np.testing.assert_allclose(gradients[0] - gradients[1], changed, atol=1e-12)


def test_a_view_of_directpred_that_is_not_picked_has_no_gradient():
    p, z = rows(3)
    options = {"correlation_decay": 0.9, "eigenvalue_floor": 0.3, "predictor_every_steps": 1}
    with jax.enable_x64(True):
        memory = init_predictor(jax.random.key(0), width=D, **options)
    _, gradient, _ = loss_and_gradient(guided(directpred_loss), p, z, memory, **options)
    assert (picks_loop(z) == 0).any()
    np.testing.assert_array_equal(np.abs(gradient).max(axis=-1) > 1e-9, picks_loop(z) > 0)


GUIDED = [name for name, row in METHODS.items() if "guided" in row.extras]


@pytest.mark.parametrize("method", ["simdino", *map(extended, sorted({*GUIDED} - {"simdino"}))])
def test_every_linear_loss_takes_guided_sources_as_a_choice_of_the_config(method):
    before, after, metrics = abstract_step(experiment_of(method, sources_by="guided"))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
    assert "closest_21" in metrics


@pytest.mark.parametrize("method", [extended("simdino"), extended("directpred")])
def test_guided_sources_on_eight_devices_equal_those_on_one(method):
    experiment = experiment_of(method, sources_by="guided")
    (_, one), (log,) = run(experiment)
    (_, eight), (eight_log,) = run(experiment, num_devices=8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), eight.params, one.params)
    assert [eight_log[n] for n in log if "closest" in n] == [log[n] for n in log if "closest" in n]
