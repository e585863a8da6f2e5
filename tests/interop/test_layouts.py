"""Every tensor of every layout has its place in our networks, and comes back bit for bit."""

from functools import partial

import chex
import jax
import numpy as np
import pytest

from gsg_jax.config.check import check_pretraining
from gsg_jax.config.load import load_config, resolve
from gsg_jax.interop.detectron import detectron_tensors
from gsg_jax.interop.layouts import LAYOUTS, nearest_layout, recognise, to_tensors
from gsg_jax.interop.tensors import KINDS
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import init_state
from tests.interop.checkpoints import SHAPES, resnet, tensors

# Beginnings of the tensors that have no place in a run.
KEPT = {
    "torchvision": ("fc.",),
    "timm classifier": ("head.",),
    "simsiam": ("encoder.fc.6.bias",),
    "moco": ("queue", "encoder_q.fc.", "encoder_k.fc."),
    "vicreg": ("projector.",),
    "moco_v3": ("base_encoder.fc.", "momentum_encoder.fc.", "predictor."),
    "solo_learn": ("classifier.", "projector.", "momentum_backbone."),
    "dino": ("head.",),
    "lightly": ("projection_head.", "backbone_momentum."),
    "byol_pytorch": tuple(
        f"{name}."
        for branch in ("online", "target")
        for name in (
            f"{branch}_encoder.net.fc",
            f"{branch}_encoder.projector",
            f"{branch}_predictor",
        )
    ),
}


def recognised(given):
    """The config of a run that the tensors fit, and where they go."""
    shapes = {name: array.shape for name, array in given.items()}
    method = LAYOUTS[nearest_layout(shapes)].method
    run = load_config(f"configs/{method}.py:imagenet")
    found = recognise(shapes, run.model)
    for group, values in found.overrides.items():
        run[group].update(values)
    check_pretraining(run)
    return resolve(run), found


def placed(places, given):
    """{params, batch_stats} of the tensors, each where the layout says."""
    variables = {"params": {}, "batch_stats": {}}
    for tensor in places:
        *above, last = tensor.path
        tree = variables[tensor.group]
        for key in above:
            tree = tree.setdefault(key, {})
        tree[last] = KINDS[tensor.kind].to_flax(given[tensor.name])
    return variables


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_of_a_layout_has_its_place_and_comes_back_bit_equal(name):
    given = tensors(name)
    run, found = recognised(given)
    assert found.layout == name.split()[0]
    variables = placed(found.tensors, given)
    targets = placed(found.target_tensors, given)
    experiment = build_experiment(run, num_steps=1, steps_per_epoch=1)
    state = jax.eval_shape(partial(init_state, experiment, found.channels))
    for group in ("params", "batch_stats"):
        for branch, tree in (*variables[group].items(), *targets[group].items()):
            if (name, branch) != ("unigrad", "predictor"):  # ours has none
                chex.assert_trees_all_equal_shapes(tree, getattr(state, group)[branch])

    variables |= {f"target_{group}": tree for group, tree in targets.items()}
    back = to_tensors(found.layout, variables, run)
    counters = {key for key in given if key.endswith("num_batches_tracked")}
    kept = {key for key in given if key.startswith(KEPT.get(name, "none"))}
    assert back.keys() == given.keys() - kept
    for key in back.keys() - counters:
        np.testing.assert_array_equal(back[key], given[key])
        assert back[key].dtype == given[key].dtype == np.float32
    assert all(back[key] == 0 and back[key].dtype == np.int64 for key in back.keys() & counters)


def test_the_running_mean_that_takes_a_last_bias_is_known_in_both_branches():
    branches = ("encoder", "encoder_momentum")
    for name, taken in (
        ("simsiam target", {f"{b}.fc.6.bias": f"{b}.fc.7.running_mean" for b in branches}),
        ("barlow_twins", {"projector.6.bias": "bn.running_mean"}),
    ):
        _, found = recognised(tensors(name) | dict.fromkeys(taken, np.ones(5, np.float32)))
        assert found.last_biases == taken


@pytest.mark.parametrize(
    ("kind", "shape", "place"),
    [
        ("vector", (3, 4), lambda i, j: (i, j)),
        ("linear", (3, 4), lambda out, into: (into, out)),
        ("conv", (2, 3, 4, 5), lambda out, into, y, x: (y, x, into, out)),
        ("patches", (2, 3, 4, 4), lambda out, c, y, x: ((4 * y + x) * 3 + c, out)),
        ("grey patches", (2, 1, 4, 4), lambda out, c, y, x: (4 * y + x, out)),
    ],
)
def test_an_array_is_laid_out_as_its_kind_says(kind, shape, place):
    theirs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = KINDS[kind].to_flax(theirs)
    for index in np.ndindex(shape):
        assert ours[place(*index)] == theirs[index]
    np.testing.assert_array_equal(KINDS[kind].to_torch(ours), theirs)


@pytest.mark.parametrize(
    ("blocks", "backbone"), [((2, 2, 2, 2), "resnet18"), ((3, 4), "resnet34"), ((1,), "resnet10")]
)
def test_a_resnet_is_known_by_its_blocks_and_sizes(blocks, backbone):
    shapes = resnet(blocks, width=6)
    shapes["conv1.weight"] = (6, 1, 3, 3)
    found = recognise(shapes, load_config("configs/simsiam.py").model)
    sizes = {"backbone": backbone, "num_stages": len(blocks), "width": 6, "stem": "small"}
    assert found.overrides["model"] == sizes and found.channels == 1


def test_detectron2_has_names_of_its_own():
    given = tensors("torchvision")
    found = detectron_tensors(given)
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.conv2.norm.weight": "layer1.0.bn2.weight",
        "res5.0.shortcut.weight": "layer4.0.downsample.0.weight",
        "res5.0.shortcut.norm.bias": "layer4.0.downsample.1.bias",
    }
    for there, here in pairs.items():
        np.testing.assert_array_equal(found[there], given[here])
    assert all(key.startswith(("stem.conv1.", "res")) for key in found)
    counted = [key for key in given if not key.startswith("fc.") and "num_batches" not in key]
    assert len(found) == len(counted)
