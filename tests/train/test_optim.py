"""Optimizers against plain NumPy loops, and learning rates against their closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gsg_jax.config import recipes
from gsg_jax.config.keys import OPTIMIZERS
from gsg_jax.train.optim import (
    build_optimizer,
    ema_decay_schedule,
    learning_rate_schedule,
)

NUM_STEPS, STEPS_PER_EPOCH = 6, 2


def optim_config(**changes):
    config = recipes.pretraining("default").optim
    with config.unlocked():
        config.update({"weight_decay": 0.1, "learning_rate": 0.4, "warmup_epochs": 0.0, **changes})
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
    optimizer = build_optimizer(
        config, batch_size=batch_size, num_steps=NUM_STEPS, steps_per_epoch=STEPS_PER_EPOCH
    )
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
    ("decay_weights_only", "constant_predictor_lr", "cosine_per"),
    [(False, True, "step"), (True, False, "step"), (False, True, "epoch")],
)
def test_sgd_equals_pytorchs_coupled_decay_and_momentum(
    decay_weights_only, constant_predictor_lr, cosine_per
):
    config = optim_config(
        name="sgd",
        momentum=0.9,
        decay_weights_only=decay_weights_only,
        constant_predictor_lr=constant_predictor_lr,
        cosine_per=cosine_per,
    )

    def step_of_one(param, gradient, lr, slots, step):
        if param.ndim > 1 or not decay_weights_only:
            gradient = gradient + 0.1 * param
        # torch.optim.SGD: the buffer holds gradients, the rate multiplies it afterwards.
        slots["buffer"] = 0.9 * slots.get("buffer", 0.0) + gradient
        return param - lr * slots["buffer"]

    check(config, step_of_one)


@pytest.mark.parametrize("decay_weights_only", [False, True])
def test_lars_adapts_kernels_alone(decay_weights_only):
    config = optim_config(
        name="lars",
        momentum=0.9,
        trust_coefficient=0.01,
        decay_weights_only=decay_weights_only,
        constant_predictor_lr=True,
        cosine_per="step",
    )

    def step_of_one(param, gradient, lr, slots, step):
        if param.ndim > 1 or not decay_weights_only:
            gradient = gradient + 0.1 * param
        if param.ndim > 1:
            gradient = gradient * 0.01 * np.linalg.norm(param) / np.linalg.norm(gradient)
        # You et al., algorithm 1: the rate goes into the buffer.
        slots["buffer"] = 0.9 * slots.get("buffer", 0.0) + lr * gradient
        return param - slots["buffer"]

    check(config, step_of_one)


@pytest.mark.parametrize("decay_weights_only", [False, True])
def test_adamw_equals_decoupled_decay_with_bias_correction(decay_weights_only):
    config = optim_config(
        name="adamw",
        momentum=0.8,
        learning_rate=0.01,
        decay_weights_only=decay_weights_only,
        constant_predictor_lr=True,
        cosine_per="step",
    )

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
    optimizer = build_optimizer(
        optim_config(name=name, constant_predictor_lr=True),
        batch_size=256,
        num_steps=NUM_STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("batch_size", [64, 256, 1024])
def test_the_rate_is_per_256_images(batch_size):
    config = optim_config(name="sgd", weight_decay=0.0, momentum=0.0, constant_predictor_lr=True)
    start, gradients, history = run(config, batch_size)
    for group in ("backbone", "predictor"):
        expected = jax.tree.map(
            lambda p, g: p - 0.4 * batch_size / 256 * g, start[group], gradients[0][group]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            history[0][group],
            expected,
        )


def rates(config, num_steps, steps_per_epoch, batch_size=256):
    schedule = learning_rate_schedule(
        config, batch_size=batch_size, num_steps=num_steps, steps_per_epoch=steps_per_epoch
    )
    return np.asarray(jax.jit(schedule)(jnp.arange(num_steps)))


def test_the_cosine_per_step_is_its_closed_form():
    lr = rates(optim_config(cosine_per="step"), num_steps=50, steps_per_epoch=7)
    expected = [0.4 * 0.5 * (1 + math.cos(math.pi * s / 50)) for s in range(50)]
    np.testing.assert_allclose(lr, expected, rtol=1e-5, atol=1e-7)


def test_the_cosine_per_epoch_stands_still_through_an_epoch():
    # The reference: lr 0.5 (1 + cos(pi epoch / epochs)), adjusted before each epoch.
    lr = rates(optim_config(cosine_per="epoch"), num_steps=10 * 7, steps_per_epoch=7)
    expected = [0.4 * 0.5 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(10)]
    np.testing.assert_allclose(lr, np.repeat(expected, 7), rtol=1e-5)


@pytest.mark.parametrize("cosine_per", ["step", "epoch"])
def test_the_warm_up_climbs_in_equal_steps_to_the_peak_and_the_cosine_takes_the_rest(cosine_per):
    config = optim_config(cosine_per=cosine_per, warmup_epochs=1.5)
    lr = rates(config, num_steps=40, steps_per_epoch=4, batch_size=512)
    peak = 0.8
    np.testing.assert_allclose(lr[:6], peak * np.arange(1, 7) / 6, rtol=1e-6)
    assert lr[6] == pytest.approx(peak)
    unit = 4 if cosine_per == "epoch" else 1
    past = [(s - 6) // unit * unit for s in range(6, 40)]
    expected = [peak * 0.5 * (1 + math.cos(math.pi * s / 34)) for s in past]
    np.testing.assert_allclose(lr[6:], expected, rtol=1e-5, atol=1e-7)


def test_the_rate_is_zero_after_the_last_step():
    schedule = learning_rate_schedule(
        optim_config(cosine_per="step"), batch_size=256, num_steps=9, steps_per_epoch=3
    )
    assert 0 < schedule(8) < 0.4 * 0.04
    np.testing.assert_allclose([schedule(9), schedule(1000)], 0, atol=1e-7)


def test_an_ema_decay_is_constant_or_rises_to_one():
    method = recipes.pretraining("default").method
    constant = ema_decay_schedule(method, num_steps=40)
    assert [constant(step) for step in (0, 7, 40)] == [0.99] * 3
    method.update({"ema_decay": 0.996, "ema_schedule": "cosine"})
    rising = ema_decay_schedule(method, num_steps=40)
    expected = [1 - 0.004 * (math.cos(math.pi * step / 40) + 1) / 2 for step in range(41)]
    np.testing.assert_allclose([rising(step) for step in range(41)], expected, rtol=1e-6)
    assert float(rising(40)) == float(rising(90)) == 1


def test_the_recipe_of_800_epochs_leaves_biases_and_norms_to_plain_momentum():
    config = recipes.pretraining("imagenet_800")
    assert (config.run.num_epochs, config.data.batch_size, config.optim.name) == (800, 4096, "lars")
    assert config.optim.warmup_epochs == 10
    config.optim.update({"warmup_epochs": 0.0, "weight_decay": 0.5})  # a decay that would show
    start, gradients, history = run(config.optim, batch_size=256)
    ours, kernel = history[0]["backbone"]["bn1"], history[0]["backbone"]["conv1"]["kernel"]
    for name in ("scale", "bias"):
        before, gradient = start["backbone"]["bn1"][name], gradients[0]["backbone"]["bn1"][name]
        np.testing.assert_allclose(ours[name], before - 0.3 * gradient, rtol=1e-5, atol=1e-6)
    before, gradient = (tree["backbone"]["conv1"]["kernel"] for tree in (start, gradients[0]))
    gradient = gradient + 0.5 * before
    adapted = 1e-3 * np.linalg.norm(before) / np.linalg.norm(gradient)
    np.testing.assert_allclose(kernel, before - 0.3 * adapted * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constant_predictor_lr", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_all_others_go_on_as_without_them(name, constant_predictor_lr):
    config = optim_config(name=name, constant_predictor_lr=constant_predictor_lr)
    length = {"batch_size": 256, "num_steps": NUM_STEPS, "steps_per_epoch": STEPS_PER_EPOCH}
    free = build_optimizer(config, **length)
    partly = build_optimizer(config, **length, frozen=(("backbone", "conv1"),))
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
