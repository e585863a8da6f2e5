"""The package from Python: its examples are true, and its imports are cheap."""

import ast
import doctest
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import gsg_jax
from gsg_jax.config.load import flat
from gsg_jax.interop.layouts import LAYOUTS
from tests.interop.checkpoints import SHAPES, tensors
from tests.own import forgotten
from tests.runs import ROOT, TINY, assert_same, config, done, job, tiny
from tests.small import load, save_untrained, small_config

EXAMPLES = {
    test.name.removeprefix("gsg_jax."): test for test in doctest.DocTestFinder().find(gsg_jax)
}
EXAMPLES = {name: test for name, test in EXAMPLES.items() if test.examples}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run before its first step."""
    return save_untrained(tmp_path_factory.mktemp("run"), small_config("simsiam_gsg"), 3)


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """What the examples read, in the folder that the process is in."""
    shutil.copytree(run, tmp_path / "runs" / "quickstart")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    for path in ("a.jpg", "b.png", "photos/1.jpg", "photos/2.png", "photos/more/3.webp"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_examples(*names):
    """Runs the examples of docstrings, one after the other, in the folder of the process."""
    runner, told = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    for name in names:
        EXAMPLES[name].globs = {"gsg_jax": gsg_jax}
        with forgotten():
            assert runner.run(EXAMPLES[name], out=told.append).attempted and not told, "".join(told)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"pretrain", "evaluate"}))
def test_the_examples_of_a_docstring_are_true(folder, name):
    check_examples(name)


def tiny_values(images):
    """TINY as overrides of a config, with the images of a run."""
    flags = [flag.removeprefix("--config.").partition("=") for flag in TINY]
    values = {key: ast.literal_eval(value.capitalize()) for key, _, value in flags}
    return values | {"data.name": "folder", "data.dir": str(images)}


@pytest.mark.extended
def test_the_examples_of_training_are_true(folder, images, monkeypatch):
    """On a tiny network and few images."""
    get_config = gsg_jax.get_config

    def tiny_config(name, overrides=None):
        return get_config(name, tiny_values(images) if name == "simsiam_gsg" else overrides)

    monkeypatch.setattr(gsg_jax, "get_config", tiny_config)
    check_examples("pretrain", "evaluate")


@pytest.mark.extended
def test_a_run_from_python_is_that_of_the_command_line(images, tmp_path, capsys):
    wanted, _ = done(*tiny("simsiam_gsg", images, tmp_path / "commands"))
    config = gsg_jax.get_config("simsiam_gsg", tiny_values(images))
    figures = gsg_jax.pretrain(config, str(tmp_path / "python"))
    assert_same(tmp_path / "python", figures, tmp_path / "commands", wanted)
    assert gsg_jax.pretrain(config, tmp_path / "python") == figures  # nothing is left to do
    run = f"--config.pretrained={tmp_path / 'commands'}"
    knn, _ = done(*job("knn", run, "--config.eval.knn_k=(3,7)"))
    assert gsg_jax.evaluate(tmp_path / "python", "knn", {"eval.knn_k": (3, 7)}) == knn
    gsg_jax.evaluate(tmp_path / "python", "features")
    assert (tmp_path / "python/features/train.npz").is_file()
    with pytest.raises(gsg_jax.UserError, match="holds a run of another config"):
        gsg_jax.pretrain("simsiam_gsg", tmp_path / "python")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gsg_jax.pretrain("knn", "w"), "the config's job is knn, not pretrain"),
        (lambda: gsg_jax.pretrain("simsiam_gs", "w"), "did you mean simsiam_gsg?"),
        (lambda: gsg_jax.evaluate("w", "simsiam_gsg"), "simsiam_gsg is no evaluation of a run"),
        (lambda: gsg_jax.evaluate("w", "knn", {"eval.k": 3}), "did you mean --config.eval.knn_k?"),
        (lambda: gsg_jax.evaluate("w", "knn"), "w holds no run (no config.json)"),
        (lambda: gsg_jax.evaluate("w", "linear", {"protocol": "x"}), "--config.protocol=x: take"),
    ],
)
def test_what_cannot_be_run_is_an_error_of_one_line_and_writes_nothing(
    tmp_path, monkeypatch, call, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gsg_jax.UserError) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_neither_jax_nor_numpy():
    heavy = "print({'jax', 'numpy', 'flax', 'PIL', 'orbax'} & {*sys.modules})"
    command = [sys.executable, "-c", f"import sys, gsg_jax; {heavy}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


@pytest.mark.extended
def test_a_script_needs_no_guard(folder):
    line = (
        "import gsg_jax; print(gsg_jax.load('runs/quickstart').embed(['a.jpg', 'b.png']).shape)\n"
    )
    (folder / "mine.py").write_text(line)
    for command in (["-c", line], ["mine.py"]):
        told = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert (told.stdout, told.stderr) == ("(2, 8)\n", "")


def random_images():
    return np.random.default_rng(0).integers(0, 256, (5, 50, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", SHAPES)
def test_a_checkpoint_of_every_layout_gives_its_online_backbone(name, tmp_path):
    given, layout = tensors(name), LAYOUTS[name.partition(" ")[0]]
    safetensors.numpy.save_file(given, tmp_path / "weights.safetensors")
    params = gsg_jax.load(tmp_path / "weights.safetensors").encoder.params
    if "timm" in name:
        found, wanted = params["block3"]["mlp2"]["kernel"], given["blocks.3.mlp.fc2.weight"].T
    else:
        stage = "4" if layout.is_numbered else "layer1"
        wanted = given[f"{layout.backbone}{stage}.0.conv2.weight"].transpose(2, 3, 1, 0)
        found = params["layer1_0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.extended
def test_a_checkpoint_file_is_loaded_as_its_import_would_be(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(tensors("torchvision"), file)
    workdir = f"--workdir={tmp_path / 'run'}"
    done(config("import_torch"), f"--config.checkpoint={file}", workdir)
    imported, loaded = gsg_jax.load(tmp_path / "run"), gsg_jax.load(str(file))
    assert flat(imported.config) == flat(loaded.config)
    images = random_images()
    np.testing.assert_array_equal(loaded.embed(images), imported.embed(images))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("output", "layout", "crop"),
    [
        ("a.safetensors", "reference", "device"),
        ("a.safetensors", "torchvision", "host"),
        ("folder", "timm", "host"),
    ],
)
def test_an_export_embeds_as_the_run_does(tmp_path, output, layout, crop):
    settings = small_config("simsiam_gsg")
    settings.model.update({"num_stages": 4, "backbone": "resnet18", "stem": "imagenet"})
    settings.model.width = 64 if output == "folder" else 4
    settings.views.update({"size": 32, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.25)})
    settings.data.crop = crop
    run = save_untrained(tmp_path / "run", settings, 3)
    flags = [f"--config.output={tmp_path / output}", f"--config.layout={layout}"]
    done(config("export"), f"--config.pretrained={run}", *flags)
    images = random_images()
    wanted = gsg_jax.load(run).embed(images)
    np.testing.assert_array_equal(gsg_jax.load(tmp_path / output).embed(images), wanted)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("lost", "lost is not there: give the workdir of a run, a checkpoint file of PyTorch, or"),
        ("photos", "photos holds no run and no weights: give the workdir of a run"),
        ("a.jpg", "a.jpg: the name ends in '.jpg'; known are .safetensors"),
        ("broken.safetensors", "broken.safetensors cannot be read"),
        ("empty", "empty holds no checkpoint yet"),
        ("grey.safetensors", "the images have 1 channel, and no card says their mean and std"),
        ("card.safetensors", "card.safetensors.json is not the card of an export"),
        ("~nobody-of-that-name", "is not there"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(folder, path, said):
    (folder / "broken.safetensors").write_bytes(b"no weights")
    (folder / "empty").mkdir()
    shutil.copy(folder / "runs/quickstart/config.json", folder / "empty")
    colour = tensors("torchvision")
    safetensors.numpy.save_file(colour, "card.safetensors")
    (folder / "card.safetensors.json").write_text("{}")
    grey = colour | {"conv1.weight": colour["conv1.weight"][:, :1].copy()}
    safetensors.numpy.save_file(grey, "grey.safetensors")
    with pytest.raises(gsg_jax.UserError) as error:
        gsg_jax.load(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_config_is_that_of_the_file_with_other_values():
    values = {"run.num_epochs": 3, "optim.learning_rate": 1, "data.dir": ROOT}
    values |= {"views.crop_area": [0.3, 0.9], "run.report": False}
    found, plain = flat(gsg_jax.get_config("simsiam_gsg", values)), flat(load())
    wanted = values | {"data.dir": str(ROOT), "views.crop_area": (0.3, 0.9)}
    assert found == plain | wanted and isinstance(found["optim.learning_rate"], float)
    assert flat(gsg_jax.get_config("simsiam_gsg:folder")) == flat(load("simsiam_gsg", "folder"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"run.num_epochs": "3"}, "--config.run.num_epochs='3': "),
        ({"run.num_epochs": True}, "--config.run.num_epochs=True: takes a whole number"),
        ({"run.report": 1}, "--config.run.report=1: "),
        ({"data.dir": 3}, "--config.data.dir=3: "),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(values, said):
    with pytest.raises(gsg_jax.UsageError) as error:
        gsg_jax.get_config("simsiam_gsg", values)
    assert said in str(error.value) and "\n" not in str(error.value)
