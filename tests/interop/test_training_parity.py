"""The train step does to the same weights what plain PyTorch modules and torch.optim.SGD do."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.interop.layouts import to_tensors
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import init_state
from gsg_jax.train.step import train_step
from gsg_jax.train.views import Views
from tests.interop.networks import BLOCKS, nn, predictor, projector, resnet, torch

pytestmark = pytest.mark.extended

NUM_STEPS, NUM_STEPS_PLANNED, STEPS_PER_EPOCH = 3, 8, 2
NUM_IMAGES, HEIGHT, WIDTH, CHANNELS = 7, 21, 26, 3
FLOOR = 1e-8  # of a norm
FIELDS = ("params", "batch_stats", "target_params", "target_batch_stats")


def encoder(model):
    """A ResNet that ends in the projector."""
    block, _ = BLOCKS[model.backbone]
    inputs = model.width * 2 ** (model.num_stages - 1) * block.expansion
    return resnet(
        projector(inputs, model.projector_hidden_width, model.projector_width),
        **{name: model[name] for name in ("width", "backbone", "num_stages")},
        small_stem_stride=model.stem_stride if model.stem == "small" else 0,
    )


class Network(nn.Module):
    """Both branches; a method that shares its weights has no encoder_momentum."""

    def __init__(self, model, has_ema_target):
        super().__init__()
        self.encoder = encoder(model)
        self.predictor = predictor(model.projector_width, model.predictor_hidden_width)
        if has_ema_target:
            self.encoder_momentum = encoder(model)

    def forward(self, views):
        """Projections, predictions and targets, each a list over the views."""
        z = [self.encoder(view) for view in views]
        p = [self.predictor(of_view) for of_view in z]
        if not hasattr(self, "encoder_momentum"):
            return z, p, [of_view.detach() for of_view in z]
        with torch.no_grad():
            return z, p, [self.encoder_momentum(view) for view in views]


def minus_cosine(x, y):
    return -(x / x.norm().clamp(min=FLOOR)) @ (y / y.norm().clamp(min=FLOOR))


def asymmetric(p, z):
    losses = [
        minus_cosine(p[0][i], z[1][i]) / 2 + minus_cosine(p[1][i], z[0][i]) / 2
        for i in range(NUM_IMAGES)
    ]
    return sum(losses) / NUM_IMAGES


def guided(p, z, reference):
    """An image's views come first; its reference's are the last two, which may be the same two."""
    losses = []
    for i, r in enumerate(reference):
        best = None
        for a in (0, 1):
            for b in (0, 1):
                d = (z[a][i] - z[len(z) - 2 + b][r]).norm()
                if best is None or d < best[0]:
                    best = (d, a, b)
        _, a, b = best
        of_image = minus_cosine(p[a][i], z[1 - a][i])
        of_reference = minus_cosine(p[len(p) - 2 + b][r], z[len(z) - 1 - b][r])
        losses.append(of_image / 2 + of_reference / 2)
    return sum(losses) / NUM_IMAGES


class Case(NamedTuple):
    method: str
    pairing: str
    model: dict
    optim: dict
    dtype: str = "float32"

    @property
    def num_views(self):
        return 4 if self.pairing == "permutation" else 2


SHALLOW = {"backbone": "resnet10", "stem": "small", "num_stages": 2}
TINY_MAPS = {"backbone": "resnet10", "stem": "small", "stem_stride": 2}
BOTTLENECK = {"backbone": "resnet50", "stem": "imagenet", "num_stages": 1}
PAPER = {"cosine_per": "epoch", "constant_predictor_lr": True}
SMOOTH = {"cosine_per": "step", "constant_predictor_lr": False}
# A few steps of a deep network on few images magnify float32's rounding a thousandfold, PyTorch's
# own no less than ours: the deep ones are compared in float64.
CASES = {
    "simsiam": Case("simsiam", "", SHALLOW, PAPER),
    "byol": Case("byol", "", SHALLOW, SMOOTH),
    "simsiam_gsg": Case("simsiam_gsg", "permutation", SHALLOW, PAPER),
    "byol_gsg_in_two_views": Case("byol_gsg", "roll", SHALLOW, PAPER),
    "simsiam_gsg_bottleneck": Case("simsiam_gsg", "permutation", BOTTLENECK, PAPER, "float64"),
    "byol_gsg_tiny_maps": Case("byol_gsg", "permutation", TINY_MAPS, SMOOTH, "float64"),
}


def config_of(case):
    """Rate, decay and EMA are so large that three steps show each of them."""
    config = load_config(f"configs/{case.method}.py")
    config.method.update({"num_views": case.num_views, "ema_decay": 0.9})
    if case.pairing:
        config.method.pairing = case.pairing
    heads = {"projector_hidden_width": 20, "projector_width": 16, "predictor_hidden_width": 8}
    config.model.update({"width": 8, **heads, **case.model})
    config.optim.update({"learning_rate": 1.0, "momentum": 0.9, "weight_decay": 0.1, **case.optim})
    config.data.batch_size = NUM_IMAGES
    config.views.size = HEIGHT
    check_pretraining(config)
    config.model.dtype = case.dtype  # float64 is for tests alone, and no choice of a config
    return resolve(config)


def drawn_views(case):
    """A batch a step, [B x V, H, W, C], images first: blocks of 7 pixels and finer noise.

    Noise alone has nearly the same mean in every image: the BatchNorms behind the pooling would
    magnify rounding.
    """
    rng = np.random.default_rng(7)
    batches = []
    for _ in range(NUM_STEPS):
        num_views = NUM_IMAGES * case.num_views
        blocks = rng.normal(size=(num_views, 3, 4, CHANNELS)).repeat(7, axis=1).repeat(7, axis=2)
        noise = 0.3 * rng.normal(size=(num_views, HEIGHT, WIDTH, CHANNELS))
        batches.append((blocks[:, :HEIGHT, :WIDTH] + noise).astype(case.dtype))
    return batches


def unsettled(state, dtype):
    """No scale is one or zero, no bias zero, and the target is no copy of the online branch."""
    rng = np.random.default_rng(8)

    def moved(leaf):
        noise = 0.1 * rng.normal(size=leaf.shape)
        return np.asarray(leaf * rng.uniform(0.7, 1.3, leaf.shape) + noise, dtype)

    return state.replace(**{field: jax.tree.map(moved, getattr(state, field)) for field in FIELDS})


def tensors_of(state, config):
    variables = {field: jax.device_get(getattr(state, field)) for field in FIELDS}
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in to_tensors("simsiam", variables, config).items()
    }


def our_steps(case, config):
    """The tensors before and after the steps, and the log of each step."""
    experiment = build_experiment(
        config, num_steps=NUM_STEPS_PLANNED, steps_per_epoch=STEPS_PER_EPOCH
    )

    def loss(outputs, memory, key):
        value, memory, metrics = experiment.loss(outputs, memory, key)
        logged = {"z": outputs.z, "p": outputs.p, "target": outputs.z_target}
        if case.pairing == "permutation":
            logged["reference"] = jax.random.permutation(key, NUM_IMAGES)
        return value, memory, metrics | logged

    step = jax.jit(partial(train_step, dataclasses.replace(experiment, loss=loss)))
    state = unsettled(jax.device_get(init_state(experiment, CHANNELS)), case.dtype)
    state = state.replace(opt_state=experiment.optimizer.init(state.params))
    before, logs = tensors_of(state, config), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gsg_jax.train.step.draw_views", as_given)
        if case.dtype == "float64":
            patch.setattr("gsg_jax.train.step.step_figures", lambda *_: {})  # they are float32
        for views in drawn_views(case):
            state, metrics = step(state, views)
            logs.append(jax.device_get(metrics))
    return before, tensors_of(state, config), logs


def as_given(experiment, images, key):
    return Views(whole=images, online=images, local=None, mix=None)


def their_rates(optim, step):
    """Learning rates of the encoder and of the predictor."""
    peak = optim.learning_rate * NUM_IMAGES / 256
    past = step if optim.cosine_per == "step" else step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    rate = peak * (1 + math.cos(math.pi * past / NUM_STEPS_PLANNED)) / 2
    return rate, peak if optim.constant_predictor_lr else rate


def their_steps(case, config, before, references):
    """The tensors after the steps, and the log of each step."""
    network = Network(config.model, case.method.startswith("byol"))
    network.to(getattr(torch, case.dtype))
    network.load_state_dict(before, strict=True)
    network.train()
    optimizer = torch.optim.SGD(
        [{"params": network.encoder.parameters()}, {"params": network.predictor.parameters()}],
        lr=0.0,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    logs = []
    for step, (rows, reference) in enumerate(zip(drawn_views(case), references, strict=True)):
        images = torch.from_numpy(rows).permute(0, 3, 1, 2)
        z, p, target = network([images[v :: case.num_views] for v in range(case.num_views)])
        loss = guided(p, target, reference) if case.pairing else asymmetric(p, target)
        logged = {"z": torch.stack(z), "p": torch.stack(p), "target": torch.stack(target)}
        logs.append(
            {name: x.detach().numpy() for name, x in logged.items()} | {"loss": loss.item()}
        )

        for group, rate in zip(
            optimizer.param_groups, their_rates(config.optim, step), strict=True
        ):
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(network, "encoder_momentum"):
            follow(network.encoder_momentum, network.encoder, config.method.ema_decay)
    return network.state_dict(), logs


@torch.no_grad()
def follow(target, online, decay):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.copy_(decay * t + (1 - decay) * o)


def compared(name):
    """A case: the tensors before, ours and theirs after the steps, our logs and theirs."""
    case, config = CASES[name], config_of(CASES[name])
    with jax.enable_x64(case.dtype == "float64"):
        before, ours, our_logs = our_steps(case, config)
    next_image = [*range(1, NUM_IMAGES), 0]
    references = [log.get("reference", next_image) for log in our_logs]
    theirs, their_logs = their_steps(case, config, before, references)
    return before, ours, theirs, our_logs, their_logs


# How far ours may be from theirs: shares of a norm, but for the loss.
OF_OUTPUTS = {"float32": 1e-4, "float64": 1e-11}
OF_TENSORS = {"float32": 1e-3, "float64": 1e-6}  # learning rates are float32
OF_CHANGES = {"float32": 1e-2, "float64": 1e-5}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_loss_of_a_batch_and_tensors_after_three_steps_are_theirs(name):
    before, ours, theirs, our_logs, their_logs = compared(name)
    dtype = CASES[name].dtype
    our_log, their_log, limit = our_logs[0], their_logs[0], OF_OUTPUTS[dtype]
    for array in ("z", "p", "target"):
        assert our_log[array].shape == their_log[array].shape
        difference = np.linalg.norm(our_log[array] - their_log[array])
        assert difference < limit * np.linalg.norm(their_log[array]), array
    np.testing.assert_allclose(our_log["loss"], their_log["loss"], rtol=0, atol=limit)

    assert list(ours) == list(theirs)
    for tensor in (key for key in theirs if not key.endswith("num_batches_tracked")):
        difference = np.linalg.norm(ours[tensor] - theirs[tensor])
        change = np.linalg.norm(theirs[tensor] - before[tensor])
        assert difference < OF_TENSORS[dtype] * np.linalg.norm(theirs[tensor]), tensor
        assert difference < OF_CHANGES[dtype] * change, tensor
