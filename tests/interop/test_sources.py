"""What others save: names inside wrappers, prefixes, other tensors; heads and images by origin."""

import json

import numpy as np
import pytest
import safetensors.numpy

import gsg_jax
from gsg_jax.config.load import load_config
from gsg_jax.console import UserError
from gsg_jax.interop.known import LAYOUTS
from gsg_jax.interop.weights import _known_heads
from tests.interop.checkpoints import EMBEDDING, below, drawn, linear, resnet, tensors, vit
from tests.interop.test_import_export import saved, to_file, to_run
from tests.interop.test_refusals import refused

KERNEL = "layer2.0.conv1.weight"
RESNET = drawn(resnet() | linear("fc", EMBEDDING, 3))


def kernel(path, **overrides):
    """A kernel of the backbone that a file gives, in PyTorch's layout."""
    params = gsg_jax.load(path, overrides).encoder.params
    return params["layer2_0"]["conv1"]["kernel"].transpose(3, 2, 0, 1)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "teacher.",
        "teacher.module.",
    ],
)
def test_what_wrapping_puts_before_names_is_no_part_of_them(prefix, tmp_path):
    np.testing.assert_array_equal(kernel(saved(tmp_path, RESNET, prefix)), RESNET[KERNEL])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("layout", "wrapped"),
    [
        ("solo_learn", "backbone._orig_mod."),
        ("moco_v3", "base_encoder.module."),
        ("byol_pytorch", "online_encoder.module.net."),
        ("simsiam target", "module.encoder._orig_mod."),
    ],
)
def test_names_are_wrapped_at_any_depth_and_come_back_as_they_were(layout, wrapped, tmp_path):
    plain = wrapped.replace("module.", "").replace("_orig_mod.", "")
    given = {name.replace(plain, wrapped, 1): x for name, x in tensors(layout).items()}
    path = saved(tmp_path, given)
    line = to_run(path, tmp_path)
    assert (line["layout"], line["num_tensors"] + line["num_kept"]) == (
        layout.split()[0],
        len(given),
    )
    back, _ = to_file(tmp_path, "back.safetensors", "reference")
    found, wanted = (safetensors.numpy.load_file(file) for file in (back, path))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_teacher_is_taken_and_the_student_left_out(tmp_path):
    teacher, student = tensors("dino"), {k: np.asarray(x + 1) for k, x in tensors("dino").items()}
    given = {f"teacher.{name}": x for name, x in teacher.items()}
    given |= {f"student.module.{name}": x for name, x in student.items()}
    found = kernel(saved(tmp_path, given))
    np.testing.assert_array_equal(found, teacher[f"backbone.{KERNEL}"])


OTHERS = {"loss.weight": np.ones(3, np.float32), "net.inner.mlp.0.bias": np.ones(3, np.float32)}


@pytest.mark.parametrize("prefix", ["net.inner.", "net.inner", "module.net.inner"])
def test_a_backbone_lies_below_a_prefix_that_is_given(prefix, tmp_path):
    given = {f"net.inner.{name}": array for name, array in RESNET.items()}
    path = saved(tmp_path, given)
    np.testing.assert_array_equal(kernel(path, prefix=prefix), RESNET[KERNEL])
    path = saved(tmp_path, given | OTHERS)
    flag = f"--config.prefix={prefix}"
    said = refused(tmp_path, flag, name="weights.safetensors")
    assert "loss.weight" in said and "--config.only_backbone=true" in said
    found = kernel(path, prefix=prefix, only_backbone=True)
    np.testing.assert_array_equal(found, RESNET[KERNEL])


def test_only_the_backbone_of_a_layout_is_taken_if_so_asked(tmp_path):
    for name in ("simsiam target", "lightly", "solo_learn"):
        given = tensors(name) | OTHERS
        path = saved(tmp_path, given)
        said = refused(tmp_path, name="weights.safetensors")
        assert "loss.weight" in said and "--config.only_backbone=true" in said
        found, prefix = kernel(path, only_backbone=True), LAYOUTS[name.split()[0]].backbone
        there = KERNEL.replace("layer2", "5") if name == "lightly" else KERNEL
        np.testing.assert_array_equal(found, given[prefix + there])


def test_a_prefix_that_no_name_has_is_refused(tmp_path):
    path = saved(tmp_path, RESNET)
    with pytest.raises(UserError, match=r"--config\.prefix=nte\.: begins none of its \d+ names"):
        gsg_jax.load(path, {"prefix": "nte"})


@pytest.mark.parametrize(
    ("layout", "backbone", "card", "heads"),
    [
        ("timm", "vit_small", {"architecture": "vit_small_patch16_224.dino"}, 6),
        ("timm", "vit_small", {"sizes": {"num_heads": 12}}, 12),
        ("timm", "vit_base", {}, 12),
        ("dino", "vit_small", {}, 6),
        ("dino", "vit_tiny", {}, 3),
        ("moco_v3", "vit_small", {}, 12),
        ("moco_v3", "vit_base", {}, 12),
        ("timm", "vit_small", {}, None),
        ("solo_learn", "vit_small", {}, None),
        ("moco_v3", "vit_tiny", {}, None),
    ],
)
def test_heads_are_known_by_the_origin_or_asked_for(layout, backbone, card, heads):
    run = load_config("simsiam_gsg:imagenet")
    run.model.backbone = backbone
    if heads is not None:
        assert _known_heads(run, LAYOUTS[layout], card) == heads
        return
    with pytest.raises(UserError, match="give --config.model.num_heads"):
        _known_heads(run, LAYOUTS[layout], card)


def test_the_number_of_heads_is_asked_for_checked_and_used(tmp_path):
    path = saved(tmp_path, drawn(below("base_encoder", vit())))
    assert "give --config.model.num_heads" in refused(tmp_path, name="weights.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    h = {n: gsg_jax.load(path, {"model.num_heads": n}).embed(images) for n in (3, 8)}
    assert np.abs(h[3] - h[8]).max() > 1e-3
    (tmp_path / "other").mkdir()
    said = refused(tmp_path / "other", "--config.model.num_heads=7", content=tensors("timm"))
    assert "must divide the width of vit_micro, 96; set --config.model.num_heads=6" in said


def images_of(path, **overrides):
    views = gsg_jax.load(path, overrides).config.views
    return views.mean, views.std


def test_mean_and_std_are_of_the_flags_the_card_the_layout_or_the_recipe(tmp_path, capfd):
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    path = saved(tmp_path, tensors("torchvision"))
    assert images_of(path) == imagenet
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, by the recipe" in capfd.readouterr().err
    path = saved(tmp_path, tensors("timm"))  # as DINO and MAE publish theirs
    assert images_of(path) == imagenet
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, by the recipe" in capfd.readouterr().err
    path = saved(tmp_path, tensors("timm classifier"))
    for flags in ({}, {"only_backbone": True}):
        assert images_of(path, **flags) == ((0.5,) * 3, (0.5,) * 3)
        assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5, by what ViTs" in capfd.readouterr().err
    flags = {"views.mean": mean, "views.std": std}
    assert images_of(path, **flags) == (mean, std)
    assert "mean 0.1 0.2 0.3, std 0.4 0.5 0.6, by --config.views" in capfd.readouterr().err


@pytest.mark.extended
def test_heads_mean_and_std_are_recorded_and_travel_with_an_export(tmp_path, capfd):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    flags = {"views.mean": mean, "views.std": std, "model.num_heads": 8}
    path = saved(tmp_path, tensors("timm"))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    h = gsg_jax.load(path, flags).embed(images)
    to_run(path, tmp_path, *(f"--config.{key}={value}" for key, value in flags.items()))
    record = json.loads((tmp_path / "run" / "config.json").read_text())["views"]
    assert (record["mean"], record["std"]) == (list(mean), list(std))
    exported, _ = to_file(tmp_path, "out.safetensors", "timm")
    np.testing.assert_array_equal(gsg_jax.load(tmp_path / "run").embed(images), h)
    np.testing.assert_array_equal(gsg_jax.load(exported).embed(images), h)
    capfd.readouterr()
    assert images_of(exported) == (mean, std)
    assert "std 0.4 0.5 0.6, by the card; 8 heads" in capfd.readouterr().err
    (tmp_path / "again").mkdir()
    to_run(exported, tmp_path / "again")
    record = json.loads((tmp_path / "again" / "run" / "config.json").read_text())["views"]
    assert (record["mean"], record["std"]) == (list(mean), list(std))
