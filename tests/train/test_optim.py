"""Optimizers against plain NumPy loops, and learning rates against their closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gsg_jax.config import recipes
from gsg_jax.config.keys import OPTIMIZERS
from gsg_jax.console import UsageError
from gsg_jax.train.optim import (
    build_optimizer,
    ema_decay_schedule,
    learning_rate_schedule,
    run_length,
)

NUM_STEPS, STEPS_PER_EPOCH = 6, 2
LENGTH = {"num_steps": NUM_STEPS, "steps_per_epoch": STEPS_PER_EPOCH}


def optim_config(**changes):
    config = recipes.pretraining("default").optim
    with config.unlocked():
        config.update({"weight_decay": 0.1, "learning_rate": 0.4, "warmup_epochs": 0.0})
        config.update({"momentum": 0.9, "constant_predictor_lr": True, "cosine_per": "step"})
        config.update(changes)
    return config


def random_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "backbone": {"conv1": {"kernel": (2, 2, 3, 4)}, "bn1": {"scale": (4,), "bias": (4,)}},
        "projector": {"linear1": {"kernel": (4, 3)}},
        "predictor": {"linear2": {"kernel": (3, 3), "bias": (3,)}},
    }
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


def rate(step, predictor, peak, config):
    """Learning rate of a parameter: constant in the predictor, else the cosine without warm-up."""
    if predictor and config.constant_predictor_lr:
        return peak
    if config.cosine_per == "epoch":
        step = step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    return peak * 0.5 * (1 + math.cos(math.pi * step / NUM_STEPS))


def run(config, batch_size=512):
    """Parameters after each step, ours, and what the plain loop needs: the start, the gradients."""
    optimizer = build_optimizer(config, batch_size=batch_size, **LENGTH)
    start = random_params(0)
    gradients = [random_params(1 + step) for step in range(NUM_STEPS)]

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state, history = start, optimizer.init(start), []
    for gradient in gradients:
        params, state = update(params, state, gradient)
        history.append(params)
    return start, gradients, history


def check(config, step_of_one, batch_size=512):
    """Compares every parameter, after every step, with a plain loop over its own numbers."""
    start, gradients, history = run(config, batch_size)
    peak = config.learning_rate * batch_size / 256
    for path, param in jax.tree_util.tree_leaves_with_path(start):
        is_predictor = path[0].key == "predictor"
        param, slots = param.astype(np.float64), {}
        for step, gradient in enumerate(gradients):
            for key in path:
                gradient = gradient[key.key]
            lr = rate(step, is_predictor, peak, config)
            param = step_of_one(param, gradient.astype(np.float64), lr, slots, step)
            ours = history[step]
            for key in path:
                ours = ours[key.key]
            message = f"{jax.tree_util.keystr(path)} after step {step}"
            np.testing.assert_allclose(ours, param, rtol=2e-5, atol=2e-6, err_msg=message)


@pytest.mark.parametrize(
    ("decay_weights_only", "constant_predictor_lr", "cosine_per", "batch_size"),
    [(False, True, "step", 64), (True, False, "step", 256), (False, True, "epoch", 1024)],
)
def test_sgd_equals_pytorchs_coupled_decay_and_momentum_at_a_rate_per_256_images(
    decay_weights_only, constant_predictor_lr, cosine_per, batch_size
):
    choices = {"constant_predictor_lr": constant_predictor_lr, "cosine_per": cosine_per}
    config = optim_config(name="sgd", decay_weights_only=decay_weights_only, **choices)

    def step_of_one(param, gradient, lr, slots, step):
        if param.ndim > 1 or not decay_weights_only:
            gradient = gradient + 0.1 * param
        # torch.optim.SGD: the buffer holds gradients, the rate multiplies it afterwards.
        slots["buffer"] = 0.9 * slots.get("buffer", 0.0) + gradient
        return param - lr * slots["buffer"]

    check(config, step_of_one, batch_size)


@pytest.mark.parametrize("decay_weights_only", [False, True])
def test_lars_adapts_kernels_alone(decay_weights_only):
    choices = {"trust_coefficient": 0.01, "decay_weights_only": decay_weights_only}
    config = optim_config(name="lars", **choices)

    def step_of_one(param, gradient, lr, slots, step):
        if param.ndim > 1 or not decay_weights_only:
            gradient = gradient + 0.1 * param
        if param.ndim > 1:
            gradient = gradient * 0.01 * np.linalg.norm(param) / np.linalg.norm(gradient)
        # You et al., algorithm 1, with the norm of the sum: the rate goes into the buffer.
        slots["buffer"] = 0.9 * slots.get("buffer", 0.0) + lr * gradient
        return param - slots["buffer"]

    check(config, step_of_one)


@pytest.mark.parametrize("decay_weights_only", [False, True])
def test_adamw_equals_decoupled_decay_with_bias_correction(decay_weights_only):
    choices = {"momentum": 0.8, "learning_rate": 0.01, "decay_weights_only": decay_weights_only}
    config = optim_config(name="adamw", **choices)

    def step_of_one(param, gradient, lr, slots, step):
        slots["m"] = 0.8 * slots.get("m", 0.0) + 0.2 * gradient
        slots["v"] = 0.999 * slots.get("v", 0.0) + 0.001 * gradient**2
        m, v = slots["m"] / (1 - 0.8 ** (step + 1)), slots["v"] / (1 - 0.999 ** (step + 1))
        decay = 0.1 if param.ndim > 1 or not decay_weights_only else 0.0
        return param - lr * (m / (np.sqrt(v) + 1e-8) + decay * param)

    check(config, step_of_one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_works_without_a_predictor(name):
    params = random_params(0)
    del params["predictor"]
    optimizer = build_optimizer(optim_config(name=name), batch_size=256, **LENGTH)
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("cosine_per", ["step", "epoch"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 1.5])
def test_the_warm_up_climbs_from_0_to_the_peak_and_the_cosine_takes_the_rest(
    cosine_per, warmup_epochs
):
    config = optim_config(cosine_per=cosine_per, warmup_epochs=warmup_epochs)
    schedule = learning_rate_schedule(config, batch_size=512, num_steps=40, steps_per_epoch=4)
    lr = np.asarray(jax.jit(schedule)(jnp.arange(42)))
    peak, warm, unit = 0.8, round(4 * warmup_epochs), 4 if cosine_per == "epoch" else 1
    np.testing.assert_allclose(lr[:warm], peak * np.arange(warm) / (warm or 1), rtol=1e-6)
    assert np.sum(lr == lr.max()) == unit  # the peak comes once
    assert lr[warm] == pytest.approx(peak)
    past = [(s - warm) // unit * unit for s in range(warm, 40)]
    expected = [peak * 0.5 * (1 + math.cos(math.pi * s / (40 - warm))) for s in past]
    np.testing.assert_allclose(lr[warm:40], expected, rtol=1e-5, atol=1e-7)
    if unit == 1:
        np.testing.assert_allclose(lr[40:], 0, atol=1e-7)  # after the last step


def test_a_length_is_counted_and_checked(capsys):
    config = recipes.pretraining("vit")  # one epoch of warm-up
    config.run.num_epochs = 2**31 // 7
    assert run_length(config, 7) == 2**31 // 7 * 7
    with pytest.raises(UsageError, match=f"at most {2**31 // 8 - 1}$"):
        run_length(config, 8)
    config.optim.warmup_epochs = 0.5 + 2**31 // 7
    with pytest.raises(UsageError, match="longer than the run"):
        run_length(config, 7)
    config.optim.warmup_epochs, config.run.num_steps = 1.0, 7
    assert run_length(config, 7) == 7 and not capsys.readouterr().err
    assert run_length(config, 8) == 7 and "before the learning rate" in capsys.readouterr().err


def test_an_ema_decay_is_constant_or_rises_to_one():
    method = recipes.pretraining("default").method
    constant = ema_decay_schedule(method, num_steps=40)
    assert [constant(step) for step in (0, 7, 40)] == [0.99] * 3
    method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    rising = ema_decay_schedule(method, num_steps=40)
    expected = [1 - 0.004 * (math.cos(math.pi * step / 40) + 1) / 2 for step in range(41)]
    np.testing.assert_allclose([rising(step) for step in range(41)], expected, rtol=1e-6)
    assert float(rising(40)) == float(rising(90)) == 1


@pytest.mark.parametrize("constant_predictor_lr", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_all_others_go_on_as_without_them(name, constant_predictor_lr):
    config = optim_config(name=name, constant_predictor_lr=constant_predictor_lr)
    free = build_optimizer(config, batch_size=256, **LENGTH)
    partly = build_optimizer(config, batch_size=256, **LENGTH, frozen=(("backbone", "conv1"),))
    params, gradient = random_params(0), random_params(1)
    expected, _ = free.update(gradient, free.init(params), params)
    updates, state = partly.update(gradient, partly.init(params), params)
    assert not np.asarray(updates["backbone"].pop("conv1")["kernel"]).any()
    assert np.asarray(expected["backbone"].pop("conv1")["kernel"]).all()
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    shape = params["backbone"]["conv1"]["kernel"].shape
    assert shape not in [np.shape(leaf) for leaf in jax.tree.leaves(state)]  # no memory for them


def test_the_decay_of_weights_leaves_a_vits_own_tokens_out():
    params = {"class_token": np.ones((1, 1, 4)), "positions": np.ones((1, 5, 4))}
    params |= {"patch_embed": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}}
    config = optim_config(name="adamw", decay_weights_only=True, constant_predictor_lr=False)
    optimizer = build_optimizer(config, batch_size=256, num_steps=2, steps_per_epoch=1)
    tree = {"backbone": params}
    still = jax.tree.map(np.zeros_like, tree)
    updates, _ = optimizer.update(still, optimizer.init(tree), tree)
    moved = jax.tree.map(lambda leaf: bool(np.asarray(leaf).any()), updates["backbone"])
    assert moved == {
        "class_token": False,
        "positions": False,
        "patch_embed": {"kernel": True, "bias": False},
    }
