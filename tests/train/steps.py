"""What the tests of the step share: small experiments, and runs of a few steps."""

import dataclasses
import functools
import importlib.metadata

import chex
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gsg_jax.config.check import check_pretraining
from gsg_jax.devices.mesh import global_batch, replicated
from gsg_jax.train.build import build_experiment, jit_step
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from tests.small import images, small_config, small_experiment

NUM_STEPS = 30
# XLA's fusion emitters take most of a compilation. A later jaxlib may not know the option.
IS_KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
FAST = {"xla_cpu_use_fusion_emitters": False} if IS_KNOWN else None
# A network in which no image's output depends on another image's.
NO_BATCH_NORM = {"norm": "group", "norm_groups": 4, "head_norm": "layer"}
VIT = {"backbone": "vit_micro", "patch_size": 4, "drop_path": 0.1}
extended = functools.partial(pytest.param, marks=pytest.mark.extended)
LABELS = (np.arange(16) % 3).astype(np.int32)


def experiment_of(method, *, model=(), views=(), optim=(), evaluation=(), run=(), **choices):
    """A small experiment with changes to each group of its config."""
    config = small_config(method, **choices)
    config.model.update(dict(model))
    config.views.update(dict(views))
    config.optim.update(dict(optim))
    config.eval.update(dict(evaluation))
    config.run.update(dict(run))
    check_pretraining(config)
    return build_experiment(config, num_steps=20, steps_per_epoch=5, num_classes=3)


def abstract_step(experiment):
    """Shapes of the state before and after a step, and of its metrics; nothing is compiled."""
    before = jax.eval_shape(functools.partial(init_state, experiment, 1))
    return before, *jax.eval_shape(functools.partial(train_step, experiment), before, images())


def traced(experiment):
    """The program of a step, not compiled."""
    state = jax.eval_shape(functools.partial(init_state, experiment, 1))
    return jax.make_jaxpr(functools.partial(train_step, experiment))(state, images())


def compiled(function, *arguments):
    """A jitted function's program. Its rounding is not that of another program in every bit."""
    return function.lower(*arguments).compile(compiler_options=FAST)


def run(experiment, num_steps=1, num_devices=1, *, exact=False):
    """(states, metrics): states before the first and after each step, on one batch.

    Runs that are `exact` may be compared bit for bit.
    """
    return _run(experiment, num_steps, num_devices, exact)[:2]


def _run(experiment, num_steps, num_devices, exact=False):
    chex.clear_trace_counter()
    ema_decay = chex.assert_max_traces(experiment.ema_decay, n=1)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    step = jit_step(dataclasses.replace(experiment, ema_decay=ema_decay), mesh)
    init = functools.partial(init_state, experiment, 1)
    state = compiled(jax.jit(init, out_shardings=replicated(mesh)))()
    states, logs = [jax.device_get(state)], []
    inputs = global_batch(mesh, (images(), LABELS) if experiment.probe else (images(),))
    step = step if exact else compiled(step, state, *inputs)
    for _ in range(num_steps):
        state, metrics = step(state, *inputs)
        states.append(jax.device_get(state))
        logs.append(jax.device_get(metrics))
    whole = replicated(mesh)
    return states, logs, lambda state: step(jax.device_put(state, whole), *inputs)[1]["loss"]


@functools.cache
def exact_run():
    """Three steps of simsiam_gsg on one batch."""
    return run(small_experiment("simsiam_gsg"), 3, exact=True)


@functools.cache
def history(method):
    """Steps on one batch, on one device: (experiment, states, metrics, state -> its loss)."""
    experiment = small_experiment(method)
    return experiment, *_run(experiment, NUM_STEPS, 1)


def online(tree):
    """The groups of the online branch that an EMA target follows."""
    return {group: tree[group] for group in ("backbone", "projector")}
