"""The two branches built of a config: what they share, and where the predictor stands."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gsg_jax.config import recipes
from gsg_jax.models.norm import BatchNorm, GroupNorm, LayerNorm
from gsg_jax.models.siamese import build_backbone, build_siamese, frozen_params
from gsg_jax.models.vit import ViT

NUM_VIEWS, NUM_IMAGES = 2, 8


def model_config(**changes):
    model = recipes.pretraining("default").model
    model.update(width=4, num_stages=1, projector_layers=2, projector_hidden_width=8)
    model.update(projector_width=6, predictor_hidden_width=3)
    model.update(changes)
    return model


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(NUM_IMAGES * NUM_VIEWS, 9, 9, 1)).astype(np.float32)


@cache
def branches(predictor, dtype="float32"):
    """Online and target module, and the online variables, none of them at a special value."""
    online, target = build_siamese(
        model_config(dtype=dtype), predictor=predictor, num_views=NUM_VIEWS
    )
    variables = jax.eval_shape(lambda: online.init(jax.random.key(0), images(), train=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype)  # noqa: E731
    params = jax.tree.map(lambda leaf: draw(leaf) * rng.choice([-1, 1], leaf.shape), variables)
    params = jax.tree.map(np.float32, params["params"])
    return (
        online,
        target,
        {"params": params, "batch_stats": jax.tree.map(draw, variables["batch_stats"])},
    )


@cache
def training_pass(predictor, branch, dtype="float32"):
    online, target, variables = branches(predictor, dtype)
    module = {"online": online, "target": target}[branch]
    if branch == "target":
        variables = {
            name: {group: leaves for group, leaves in tree.items() if group != "predictor"}
            for name, tree in variables.items()
        }
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    return apply(variables, images())


def test_target_is_the_online_branch_without_its_predictor():
    (h, z, p), stats = training_pass("mlp", "online")
    (target_h, target_z, target_p), target_stats = training_pass("mlp", "target")
    # Two programs: compiled apart, they may round apart.
    np.testing.assert_allclose(target_h, h, atol=1e-5)
    np.testing.assert_allclose(target_z, z, atol=1e-5)
    np.testing.assert_array_equal(target_p, target_z)
    assert p.shape == z.shape == (NUM_IMAGES * NUM_VIEWS, 6)
    assert np.abs(p - z).max() > 0.1
    assert set(stats["batch_stats"]) == {"backbone", "projector", "predictor"}
    assert set(target_stats["batch_stats"]) == {"backbone", "projector"}


def test_without_a_predictor_the_projections_are_the_predictions():
    online, target, variables = branches("none")
    assert set(variables["params"]) == {"backbone", "projector"}
    assert online.predictor is None and target.predictor is None
    (_, z, p), _ = training_pass("none", "online")
    np.testing.assert_array_equal(p, z)
    assert float(jnp.std(z)) > 0.5


def test_bfloat16_activations_give_float32_outputs_near_the_float32_ones():
    outputs, stats = training_pass("mlp", "online", "bfloat16")
    exact, exact_stats = training_pass("mlp", "online")
    assert {x.dtype for x in outputs} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    differ = False
    for half, full in zip(outputs, exact, strict=True):
        assert np.abs(half - full).max() < 0.15 * np.abs(full).max()
        differ |= np.abs(half - full).max() > 1e-4 * np.abs(full).max()
    assert differ  # else bfloat16 was never used


def test_embed_is_the_backbone_in_evaluation_mode():
    online, target, variables = branches("mlp")
    h = jax.jit(lambda v, x: online.apply(v, x, method="embed"))(variables, images())
    backbone = {name: variables[name]["backbone"] for name in variables}
    expected = jax.jit(lambda v, x: online.backbone.apply(v, x, train=False))(backbone, images())
    np.testing.assert_allclose(h, expected, rtol=1e-6)
    alone = jax.jit(lambda v, x: online.apply(v, x, method="embed"))(variables, images()[:1])
    np.testing.assert_allclose(alone, h[:1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "path", "shape"),
    [
        ({"num_stages": 3, "width": 8}, "backbone/layer3_0/conv2/kernel", (3, 3, 32, 32)),
        ({"backbone": "resnet50"}, "backbone/layer1_2/conv3/kernel", (1, 1, 4, 16)),
        ({"stem": "imagenet"}, "backbone/conv1/kernel", (7, 7, 1, 4)),
        ({"projector_layers": 3}, "projector/linear3/kernel", (8, 6)),
        ({"projector_hidden_width": 11}, "projector/linear1/kernel", (4, 11)),
        ({"projector_width": 12}, "predictor/linear2/kernel", (3, 12)),
        ({"predictor_hidden_width": 5}, "predictor/linear1/kernel", (6, 5)),
    ],
)
def test_sizes_come_from_the_config(changes, path, shape):
    online, _ = build_siamese(model_config(**changes), predictor="mlp", num_views=NUM_VIEWS)
    init = jax.eval_shape(lambda: online.init(jax.random.key(0), images(), train=True))
    assert flatten_dict(init["params"], sep="/")[path].shape == shape


def test_norms_their_constants_and_the_activations_dtype_come_from_the_config():
    kinds = {"batch": BatchNorm, "layer": LayerNorm, "group": GroupNorm}
    for norm, head_norm, dtype in (
        ("batch", "batch", "float32"),
        ("batch", "layer", "bfloat16"),
        ("group", "batch", "float32"),
    ):
        config = model_config(norm=norm, norm_groups=2, head_norm=head_norm, dtype=dtype)
        config.update(bn_momentum=0.25, bn_epsilon=0.5, bn_group_images=6)
        online, target = build_siamese(config, predictor="mlp", num_views=4)
        rooms = {online.backbone: norm, online.projector: head_norm, online.predictor: head_norm}
        for room, kind in {**rooms, target.backbone: norm}.items():
            made = room.norm()
            assert type(made) is kinds[kind] and made.epsilon == 0.5
            assert room.dtype == made.dtype == jnp.dtype(dtype)
            if kind == "batch":
                assert (made.momentum, made.num_views, made.group_images) == (0.25, 4, 6)
            assert kind != "group" or made.num_groups == 2
    assert not model_config().weight_standardization
    assert build_backbone(model_config(weight_standardization=True)).weight_standardization


def test_a_vision_transformer_comes_from_the_config_and_its_target_skips_no_branch():
    options = {"patch_size": 7, "pooling": "mean", "positions": "learned", "freeze_patches": True}
    config = model_config(backbone="vit_tiny", drop_path=0.2, dtype="bfloat16", **options)
    online, target = build_siamese(config, predictor="none", num_views=2)
    expected = ViT(192, 3, 12, drop_path=0.2, dtype=jnp.dtype("bfloat16"), **options)
    assert online.backbone == expected and target.backbone == expected.clone(drop_path=0.0)


def test_frozen_params_name_what_a_frozen_network_has():
    assert frozen_params(model_config()) == ()
    config = model_config(backbone="vit_micro", patch_size=3, freeze_patches=True)
    (path,) = frozen_params(config)
    online, _ = build_siamese(config, predictor="none", num_views=2)
    tree = jax.eval_shape(lambda: online.init(jax.random.key(0), images(), train=True))["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(tree).items()}
    assert shapes[*path, "kernel"] == (9, 96) and shapes[*path, "bias"] == (96,)
