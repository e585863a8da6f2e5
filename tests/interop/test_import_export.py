"""The two jobs: a checkpoint becomes a run, and a run's weights become a file with a card."""

import json
import pickle
from functools import partial

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import gsg_jax
from gsg_jax.evaluation.encoder import encoder_from, untrained_backbone
from gsg_jax.interop.card import architecture, model_card
from gsg_jax.interop.layouts import to_tensors
from gsg_jax.jobs import import_torch
from gsg_jax.run.checkpoint import read_variables
from tests.interop.checkpoints import PROJECTION, WIDTH, drawn, linear, resnet, tensors
from tests.runs import config, done, on_images, refused, write_images
from tests.small import load, small_config


def to_run(path, folder, *flags):
    """Imports a file into folder/run; returns the job's last line."""
    given = [f"--config.checkpoint={path}", f"--workdir={folder / 'run'}"]
    return done(config("import_torch", "folder"), *given, *flags)[0]


def to_file(folder, name, layout):
    """Exports folder/run; returns the path and the last line."""
    flags = [f"--config.output={folder / name}", f"--config.layout={layout}"]
    return folder / name, done(config("export"), f"--config.pretrained={folder / 'run'}", *flags)[0]


def saved(folder, given, prefix=""):
    named = {prefix + name: array for name, array in given.items()}
    safetensors.numpy.save_file(named, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with the run that torchvision's layout was imported into."""
    folder = tmp_path_factory.mktemp("classifier")
    to_run(saved(folder, tensors("torchvision")), folder)
    return folder


def test_an_imported_checkpoint_comes_back_bit_equal(tmp_path):
    given, rng = tensors("simsiam target"), np.random.default_rng(1)
    for branch in ("encoder", "encoder_momentum"):  # before the projector's last norm
        given[f"{branch}.fc.6.bias"] = rng.normal(size=PROJECTION).astype(np.float32)
    path = saved(tmp_path, given, "module.")
    line = to_run(path, tmp_path, "--config.method=byol_gsg")
    assert (line["layout"], line["backbone"], line["fresh"]) == ("simsiam", "resnet10", [])
    assert line["method"] == "byol_gsg"
    assert line["num_tensors"] + line["num_kept"] == len(given)
    back, _ = to_file(tmp_path, "back.safetensors", "reference")
    found, wanted = (safetensors.numpy.load_file(file) for file in (back, path))
    chex.assert_trees_all_equal(found, wanted)
    chex.assert_trees_all_equal_dtypes(found, wanted)

    step, ours = read_variables(tmp_path / "run")
    assert step == 0
    for prefix, branch in (("", "encoder"), ("target_", "encoder_momentum")):
        params, statistics = ours[f"{prefix}params"], ours[f"{prefix}batch_stats"]
        kernel = params["backbone"]["layer2_0"]["conv1"]["kernel"]
        theirs = given[f"{branch}.layer2.0.conv1.weight"]
        np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))
        kernel = params["projector"]["linear2"]["kernel"]
        np.testing.assert_array_equal(kernel, given[f"{branch}.fc.3.weight"].T)
        mean = given[f"{branch}.fc.7.running_mean"] - given[f"{branch}.fc.6.bias"]
        np.testing.assert_array_equal(statistics["projector"]["bn3"]["mean"], mean)


def test_an_export_has_a_card_and_no_classifier(classifier):
    path, line = to_file(classifier, "exported.safetensors", "torchvision")
    given = tensors("torchvision")
    found = safetensors.numpy.load_file(path)
    assert found.keys() == {name for name in given if not name.startswith("fc.")}
    np.testing.assert_array_equal(found["conv1.weight"], given["conv1.weight"])
    card = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert line["files"] == [str(path), f"{path}.json"]
    assert (card["backbone"], card["step"], card["architecture"]) == ("resnet10", 0, None)
    sizes = {"width": WIDTH, "num_stages": 4, "stem": "imagenet"}
    assert card["sizes"] == sizes | {"stem_stride": 1, "bn_epsilon": 1e-5}
    assert (card["mean"], card["num_tensors"]) == ([0.485, 0.456, 0.406], len(found))


def test_a_card_knows_nothing_of_steps_after_its_checkpoint(tmp_path):
    steps = (10, 20, 30)
    lines = [{"step": n, "epoch": n / 10, "knn_top1": n / 100} for n in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    card = model_card(tmp_path, load("byol"), 20, "torchvision", {})
    assert (card["step"], card["epochs"], card["figures"]) == (20, 2.0, {"knn_top1": 0.2})


def test_detectron2_gets_a_pickle_of_its_own(classifier):
    path, _ = to_file(classifier, "weights.pkl", "detectron2")
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True
    given = tensors("torchvision")
    np.testing.assert_array_equal(content["model"]["stem.conv1.weight"], given["conv1.weight"])


@pytest.mark.extended
def test_an_imported_run_is_evaluated_and_trained_like_any_other(tmp_path):
    given = drawn(resnet((1,)) | linear("fc", WIDTH, 10))
    to_run(saved(tmp_path, given), tmp_path)
    run, images = tmp_path / "run", on_images(write_images(tmp_path / "images"))
    flags = [f"--config.pretrained={run}", "--config.eval.knn_k=(5,)", "--config.data.crop=device"]
    knn, _ = done(config("knn"), *flags, *images, f"--workdir={tmp_path / 'knn'}")
    assert (knn["step"], knn["method"]) == (0, "simsiam_gsg")
    model = json.loads((run / "config.json").read_text())["model"]
    same = [f"--config.model.{key}={model[key]}" for key in ("backbone", "width", "num_stages")]
    schedule = ["--config.run.num_steps=2", "--config.optim.learning_rate=0.01"]
    small = ["--config.views.size=12", "--config.data.batch_size=8", "--config.eval.knn_k=5"]
    flags = [f"--workdir={run}", *same, *images, *schedule, *small]
    done(config("simsiam_gsg", "folder"), *flags)
    path, line = to_file(tmp_path, "moved.safetensors", "reference")
    assert line["step"] == 2
    found = safetensors.numpy.load_file(path)
    # Once a step has moved the backbone, the classifier that came with it is left out.
    assert found.keys() == {name for name in given if not name.startswith("fc.")}
    assert 0 < np.abs(found["conv1.weight"] - given["conv1.weight"]).max() < 0.1


def test_a_card_brings_back_what_no_tensor_tells(tmp_path):
    run = small_config("simsiam")
    run.model.update({"backbone": "resnet10", "stem_stride": 3, "bn_epsilon": 0.01})
    variables = jax.jit(partial(untrained_backbone, run, 3))()
    path = tmp_path / "w.safetensors"
    exported = to_tensors("torchvision", variables, run)
    safetensors.numpy.save_file(exported, path)
    card = model_card(tmp_path, run, 0, "torchvision", exported)
    path.with_name("w.safetensors.json").write_text(json.dumps(card))
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)
    backbone = {group: tree["backbone"] for group, tree in variables.items()}
    wanted = np.asarray(encoder_from(run, backbone, 0).embed(images))
    np.testing.assert_array_equal(gsg_jax.load(path).embed(images), wanted)


@pytest.mark.parametrize(
    ("changes", "size", "name"),
    [
        ({"backbone": "vit_tiny", "patch_size": 16}, 224, "vit_tiny_patch16_224"),
        ({"backbone": "vit_tiny", "patch_size": 4}, 32, None),
        ({"backbone": "vit_small", "patch_size": 8, "num_heads": 12}, 224, None),
        ({"backbone": "vit_base", "patch_size": 8}, 384, None),
        ({"backbone": "resnet18"}, 32, "resnet18"),
        ({"backbone": "resnet18", "bn_epsilon": 1e-3}, 32, None),
    ],
)
def test_a_card_names_an_architecture_only_if_the_libraries_have_it(changes, size, name):
    run = load("simsiam", "imagenet")
    run.model.update({"pooling": "class_token", **changes})
    run.views.size = size
    assert architecture(run) == name


def test_weights_that_began_with_others_have_their_licence(tmp_path):
    run = load("byol")
    assert model_card(tmp_path, run, 1, "torchvision", {})["licence"] == "Apache-2.0"
    run.init_from = "somewhere"
    card = model_card(tmp_path, run, 1, "torchvision", {})
    assert card["licence"] == "that of the weights it began with"


def test_of_two_imports_into_one_folder_the_later_one_is_refused(tmp_path, monkeypatch):
    path, filled = saved(tmp_path, tensors("torchvision")), import_torch._filled

    def meanwhile(*arguments):
        monkeypatch.setattr(import_torch, "_filled", filled)
        to_run(path, tmp_path)  # another process's
        return filled(*arguments)

    monkeypatch.setattr(import_torch, "_filled", meanwhile)
    given = [f"--config.checkpoint={path}", f"--workdir={tmp_path / 'run'}"]
    assert "holds a run already" in refused(config("import_torch", "folder"), *given)
    assert read_variables(tmp_path / "run")[0] == 0
