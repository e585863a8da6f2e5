"""The two jobs: a checkpoint becomes a run, and a run's weights become a file with a card."""

import json
import pickle

import chex
import numpy as np
import pytest
import safetensors.numpy

from gsg_jax.interop.card import model_card
from gsg_jax.run.checkpoint import read_variables
from tests.interop.checkpoints import PROJECTION, WIDTH, drawn, linear, resnet, tensors
from tests.runs import config, done, on_images, write_images
from tests.small import load


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
    assert card["sizes"] == {"width": WIDTH, "num_stages": 4, "stem": "imagenet"}
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
