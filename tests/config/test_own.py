"""Own methods, backbones and data sets: registered by a file, checked as built-in ones are."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gsg_jax
from gsg_jax.config.check import check_pretraining
from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.load import load_config, resolve
from gsg_jax.console import UsageError, UserError
from gsg_jax.data.open import open_source
from gsg_jax.data.source import ArraySource
from gsg_jax.data.workers import Processes
from gsg_jax.evaluation.encoder import read_record
from gsg_jax.methods import METHODS, Key, Method, Outputs
from gsg_jax.models.siamese import build_backbone, image_channels
from gsg_jax.run import workdir as workdirs
from tests.own import OWN_BACKBONE, OWN_DATASET, OWN_METHOD, forgotten
from tests.runs import config, refused
from tests.small import data_config, load, refusal

NAME = "alignment_uniformity"


@pytest.fixture(autouse=True)
def nothing_stays():
    with forgotten():
        yield


def parsed(*flags):
    return parse_flags(["main", *flags]).config


def method_file(path, text="0.0", name="mine"):
    """A config file that registers a method of one option, whose loss is `text`."""
    path.write_text(
        "import gsg_jax\n"
        "from gsg_jax.config import recipes\n"
        "from gsg_jax.methods import Key, Method\n"
        "def loss(outputs, memory, key, *, stop_gradient, margin):\n"
        f"    return {text}, memory, {{}}\n"
        "options = {'margin': Key(1, 'of the loss', (0, 9))}\n"
        f"gsg_jax.register_method({name!r}, Method(loss, 'online', 'none', options))\n"
        "def get_config(recipe='default'):\n"
        "    config = recipes.pretraining(recipe)\n"
        f"    config.method.name = {name!r}\n"
        "    return config\n"
    )
    return str(path)


def test_the_options_of_an_own_method_are_keys_with_default_type_limits_and_neighbours():
    flag = f"--config={OWN_METHOD}"
    plain = parsed(flag)
    assert (plain.method.uniformity_weight, plain.method.sharpness) == (1.0, 2.0)
    changed = parsed(flag, "--config.method.sharpness=0.25")
    assert changed.method.sharpness == 0.25
    check_pretraining(changed)
    assert resolve(changed).method.predictor == "none"
    error = refused(flag, "--config.method.sharpnes=1", status=2)
    assert "did you mean --config.method.sharpness?" in error
    assert "takes a number" in refused(flag, "--config.method.sharpness=x", status=2)
    changed.method.sharpness = 0.0
    assert "--config.method.sharpness=0.0: must be a number from 0.01 to 100" in refusal(changed)
    with changed.ignore_type():
        changed.method.update({"sharpness": 1.0, "uniformity_weight": "1"})
    assert "--config.method.uniformity_weight=1: must be a number" in refusal(changed)


def test_a_whole_number_of_an_own_method_stays_whole(tmp_path):
    flag = "--config=" + method_file(tmp_path / "a.py")
    assert parsed(flag, "--config.method.margin=3").method.margin == 3
    assert "takes a whole number" in refused(flag, "--config.method.margin=0.5", status=2)


def test_the_options_of_two_methods_may_share_a_name_and_not_a_meaning(tmp_path):
    def loss(outputs, memory, key, *, stop_gradient, temperature):
        return 0.0, memory, {}

    options = {"temperature": Key(500.0, "in kelvin", (0, 1000))}
    gsg_jax.register_method("hot", Method(loss, "online", "none", options=options))
    made = load("simclr")
    made.method.temperature = 500.0
    assert "from 0.01 to 10" in refusal(made)
    made.method.name = "hot"
    check_pretraining(made)


def test_the_loss_of_the_example_equals_plain_loops():
    load_config(str(OWN_METHOD))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 7, 5))
    outputs = Outputs(jnp.asarray(z, jnp.float32), *[jnp.asarray(z, jnp.float32)] * 3)
    options = {"uniformity_weight": 0.3, "sharpness": 1.7}
    loss = jax.jit(partial(METHODS[NAME].loss, stop_gradient=False, **options))
    loss, _, figures = loss(outputs, {}, None)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    alignment = np.mean([np.sum((a - b) ** 2) for a, b in zip(*unit, strict=True)])
    spread = 0.0
    for view in unit:
        pairs = [(a, b) for i, a in enumerate(view) for j, b in enumerate(view) if i != j]
        spread += np.log(np.mean([np.exp(-1.7 * np.sum((a - b) ** 2)) for a, b in pairs])) / 2
    assert float(figures["attraction"]) == pytest.approx(alignment, rel=1e-5)
    assert float(loss) == pytest.approx(alignment + 0.3 * spread, rel=1e-5)


def test_the_same_file_may_register_again_and_another_may_not(tmp_path):
    path = method_file(tmp_path / "a.py")
    load_config(path)
    method_file(tmp_path / "a.py", text="1.0")
    load_config(path)
    assert METHODS["mine"].loss(None, {}, None, stop_gradient=True, margin=1)[0] == 1.0
    other = method_file(tmp_path / "b.py")
    with pytest.raises(UsageError, match=f"'mine'.*taken by {path}: choose another name"):
        load_config(other)
    with pytest.raises(UsageError, match="'byol'.*taken by gsg_jax: choose another name"):
        load_config(method_file(tmp_path / "c.py", name="byol"))
    for register in (gsg_jax.register_backbone, gsg_jax.register_dataset):
        with pytest.raises(UsageError, match="taken by gsg_jax"):
            register("resnet18" if register is gsg_jax.register_backbone else "folder", print)


def loss_of_one(outputs, memory, key, *, stop_gradient, margin=1.0):
    return 0.0, memory, {}


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("my method", Method(loss_of_one, "online", "none"), "give a Python name"),
        ("mine", loss_of_one, "function is no gsg_jax.methods.Method"),
        ("mine", Method(loss_of_one, "offline", "none"), "target is 'offline': take one of"),
        ("mine", Method(loss_of_one, "ema", "mpl"), "predictor is 'mpl': take one of mlp, none"),
        ("mine", Method(loss_of_one, "ema", "mlp", extras=("cutmx",)), "'cutmx': take from"),
        ("mine", Method(loss_of_one, "ema", "mlp", ("margin",)), "a dict of gsg_jax.methods.Key"),
        ("mine", Method(loss_of_one, "ema", "mlp", {"width": Key(1, "")}), "'width' has a name"),
        ("mine", Method(loss_of_one, "ema", "mlp", {"target": Key(1, "")}), "'target' has a name"),
        ("mine", Method(loss_of_one, "ema", "mlp", {"edge": Key(1, "")}), "must take .*, edge"),
    ],
)
def test_a_wrong_row_is_refused_by_name(name, method, said):
    with pytest.raises(UsageError, match=said):
        gsg_jax.register_method(name, method)
    assert name not in METHODS


def test_an_unknown_method_or_backbone_is_refused_with_the_way_to_give_ones_own():
    for key in ("method.name", "model.backbone"):
        made = load("simclr")
        made.update_from_flattened_dict({key: "my_own"})
        message = refusal(made)
        assert f"--config.{key}=my_own" in message and "--plugin=FILE" in message


def test_an_own_backbone_is_built_from_the_config_and_has_the_norm_of_its_views():
    made = parsed(
        config("simsiam_gsg"),
        f"--plugin={OWN_BACKBONE}",
        "--config.model.backbone=plain_cnn",
        "--config.model.width=3",
        "--config.model.num_stages=2",
    )
    check_pretraining(made)
    backbone = build_backbone(made.model, num_views=4)
    shapes = jax.eval_shape(
        lambda: backbone.init(jax.random.key(0), jnp.zeros((8, 13, 11, 1)), train=True)
    )
    assert shapes["params"]["Conv_1"]["kernel"].shape == (3, 3, 3, 6)
    assert shapes["batch_stats"]["norm1"]["mean"].shape == (6,)
    assert backbone.norm.keywords["num_views"] == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_the_parameters_of_an_own_backbone_tell_its_images_channels(channels):
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(5)(x.reshape(len(x), -1))

    gsg_jax.register_backbone("flat", lambda model, norm: Flat())
    run = gsg_jax.get_config("simsiam_gsg", {"views.size": 7, "model.backbone": "flat"})
    image = jnp.zeros((2, 7, 7, channels))
    params = build_backbone(run.model).init(jax.random.key(1), image, train=False)["params"]
    assert image_channels(run, params) == channels
    run.views.size = 8
    with pytest.raises(UserError, match="model.backbone=flat: has other parameters"):
        image_channels(run, params)


def test_an_own_data_set_opens_by_its_name_and_must_give_images():
    parsed(config("simsiam_gsg"), f"--plugin={OWN_DATASET}", "--config.data.name=shapes")
    train = open_source(data_config("shapes", ""), "train")
    assert (len(train), train.image_shape, train.class_names) == (
        2000,
        (28, 28, 3),
        ("circle", "square"),
    )
    assert len(open_source(data_config("shapes", ""), "test")) == 400
    wrong = {
        "is float64 .2, 2, 3.: it must be uint8": ArraySource("x", np.zeros((1, 2, 2, 3))),
        "is uint8 .2, 2.: it must be uint8": ArraySource("x", np.zeros((1, 2, 2), np.uint8)),
        "has no images to train on": None,
        "labels go from 0 to 2: they must be numbers of its 2 class_names": ArraySource(
            "x", np.zeros((2, 2, 2, 3), np.uint8), np.array([2, 0]), ("a", "b")
        ),
        "its labels are float64 .1,.: they must be integers .2.": ArraySource(
            "x", np.zeros((2, 2, 2, 3), np.uint8), np.zeros(1), ("a", "b")
        ),
    }
    for number, (said, source) in enumerate(wrong.items()):
        gsg_jax.register_dataset(f"wrong{number}", lambda data, split, source=source: source)
        with pytest.raises(UserError, match=said):
            open_source(data_config(f"wrong{number}", ""), "train")
    assert open_source(data_config("wrong2", ""), "test") is None


def test_the_text_of_the_files_is_recorded_and_a_change_is_one_warning(tmp_path, capsys):
    path = method_file(tmp_path / "a.py")
    made, run = resolve(load_config(path)), tmp_path / "run"
    for _ in range(2):
        workdirs.record_run(run, made, {})
        workdirs._warn_of_changed_parts(run, made)
        assert capsys.readouterr().err == ""
    text = (run / "own_parts.txt").read_text()
    assert text.startswith(f"# method mine: {path}\n") and (tmp_path / "a.py").read_text() in text
    method_file(tmp_path / "a.py", text="2.0")
    workdirs._warn_of_changed_parts(run, resolve(load_config(path)))
    workdirs.record_run(run, resolve(load_config(path)), {})
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {path} has changed") and err.count("\n") == 1
    assert "return 2.0" in (run / "own_parts.txt").read_text()
    workdirs.record_run(tmp_path / "other", resolve(load("simsiam")), {})
    assert not (tmp_path / "other" / "own_parts.txt").exists()


def test_a_record_never_runs_the_file_that_it_names(tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(OWN_BACKBONE.read_text() + OWN_DATASET.read_text())
    flags = [config("simsiam_gsg"), "--config.model.backbone=plain_cnn"]
    with forgotten():
        made = parsed(*flags, f"--plugin={trap}")
        workdirs.record_run(tmp_path / "run", resolve(made), {})
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(UserError, match=f"'plain_cnn' was registered by {trap}, .* --plugin=FILE"):
        read_record(tmp_path / "run")
    assert not (tmp_path / "sprung").exists()


def test_a_record_of_an_own_method_is_read_without_its_file(tmp_path):
    with forgotten():
        workdirs.record_run(
            tmp_path / "run", resolve(load_config(method_file(tmp_path / "a.py"))), {}
        )
    (tmp_path / "a.py").unlink()
    assert read_record(tmp_path / "run").method.margin == 1
    (tmp_path / "run" / "own_parts.txt").unlink()
    with pytest.raises(UserError, match="is damaged or of another version"):
        read_record(tmp_path / "run")


def test_a_plugin_that_is_missing_or_fails_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import gsg_jax\n\n1 / 0\n")
    flag = config("simsiam")
    assert "there is no such file" in refused(flag, "--plugin=none.py", status=2)
    assert "line 3: ZeroDivisionError" in refused(flag, f"--plugin={broken}", status=2)


def test_a_file_may_define_modules_and_sources_and_the_sources_are_not_handed_to_workers(tmp_path):
    path = tmp_path / "parts.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import flax.linen as nn, gsg_jax, numpy as np\n"
        "class Mine(nn.Module):\n"
        "    width: int\n"
        "class Set:\n"
        "    def __len__(self): return 1\n"
        "    def image(self, i): return np.zeros((2, 2, 3), np.uint8)\n"
        "gsg_jax.register_backbone('mine', lambda model, norm: Mine(model.width))\n"
        "gsg_jax.register_dataset('mine', lambda data, split: Set())\n"
    )
    parsed(config("simsiam"), f"--plugin={path}")
    source = open_source(data_config("mine", ""), "train")
    with pytest.raises(UserError, match="cannot be handed to worker processes"):
        Processes(source.image, 1)
