"""Every key of a config has limits, and what is outside them is said in one line."""

import json
import math

import pytest

from gsg_jax.config import check as configs
from gsg_jax.config.check import (
    CHOICES,
    FIXED_KEYS,
    OPTION_RANGES,
    ORDERED,
    RANGES,
    TUPLES,
    check_overrides,
    check_pretraining,
    differences,
    flat,
    load_config,
    resolve,
)
from gsg_jax.config.recipes import RECIPES
from gsg_jax.console import UsageError
from gsg_jax.methods import METHODS
from tests.runs import METHOD_CONFIGS, ROOT

# Strings that their reader checks: the data by opening them, the method's by its own check.
CHECKED_BY_THEIR_READER = {
    "data.name",
    "data.dir",
    "data.train_split",
    "data.test_split",
    "method.pairing",
    "method.form",
    "run.wandb_project",
}


def load(name="simsiam_gsg", recipe=""):
    return load_config(f"{ROOT}/configs/{name}.py{recipe and ':' + recipe}")


def refusal(config):
    with pytest.raises(UsageError) as error:
        check_pretraining(config)
    return str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_key_of_a_config_has_limits(name, recipe):
    for key, value in flat(load(name, recipe)).items():
        if isinstance(value, bool):
            continue
        if isinstance(value, str):
            assert key in CHOICES or key in FIXED_KEYS or key in CHECKED_BY_THEIR_READER, key
        elif isinstance(value, tuple):
            assert key in TUPLES, key
        else:
            assert key in RANGES or key in OPTION_RANGES, key


def test_every_limit_is_of_a_key_that_exists():
    assert set(flat(load())) >= {*RANGES, *TUPLES, *CHOICES, *FIXED_KEYS}


@pytest.mark.parametrize("key", OPTION_RANGES)
def test_a_methods_own_number_outside_its_range_is_refused_by_name(key):
    low, high = OPTION_RANGES[key]
    methods = [name for name in METHODS if key in flat(load(name))]
    assert methods, "a limit of no key"
    for wrong in (low - 1, high * 2 + 1, math.nan):
        config = load(methods[0])
        with config.ignore_type():
            config.update_from_flattened_dict({key: wrong})
        assert f"--config.{key}={wrong}" in refusal(config)


@pytest.mark.parametrize("key", RANGES)
def test_a_number_outside_its_range_is_refused_by_name(key):
    low, high = RANGES[key]
    for wrong in (low - 1, high * 2 + 1, math.nan, math.inf, -math.inf):
        config = load()
        with config.ignore_type():
            config.update_from_flattened_dict({key: wrong})
        message = refusal(config)
        assert f"--config.{key}={wrong}" in message
        assert f"from {low:g} to {high:g}" in message


@pytest.mark.parametrize("key", TUPLES)
def test_a_tuple_of_wrong_length_kind_or_size_is_refused_by_name(key):
    length, low, high = TUPLES[key]
    right = flat(load())[key]
    wrongs = [
        (),
        ("a",) * len(right),
        (True,) * len(right),
        (math.nan,) * len(right),
        (low - 1,) * len(right),
        (high + 1,) * len(right),
    ]
    if length:
        wrongs += [right[:1] * (length - 1), right[:1] * (length + 1)]
    if key in ORDERED:
        wrongs.append(right[::-1])
    for wrong in wrongs:
        config = load()
        config.update_from_flattened_dict({key: wrong})
        assert f"--config.{key}={wrong}" in refusal(config)


@pytest.mark.parametrize("key", CHOICES)
def test_a_wrong_choice_names_the_right_ones_and_the_nearest(key):
    nearest = CHOICES[key][-1]
    config = load()
    config.update_from_flattened_dict({key: nearest + "x"})
    message = refusal(config)
    assert f"--config.{key}={nearest}x" in message
    assert "did you mean" in message and ", ".join(CHOICES[key]) in message


def test_what_a_config_file_of_ones_own_lacks_or_mistypes_is_named():
    config = load()
    del config.optim["momentum"]
    assert "optim.momentum" in refusal(config)
    config = load()
    with config.ignore_type():
        config.model.width = "16"
    assert "--config.model.width=16" in refusal(config)


def test_steps_to_keep_that_are_not_saved_are_refused_with_the_nearest_that_are():
    config = load()
    config.run.update({"checkpoint_every_steps": 1000, "keep_every": 2500})
    message = refusal(config)
    assert "--config.run.keep_every=2500" in message and "take 2000 or 3000" in message
    for right in (0, 1000, 3000):
        config.run.keep_every = right
        check_pretraining(config)


def test_keys_that_do_not_fit_together_are_refused():
    config = load("simsiam_gsg")
    config.method.pairing = "permutation"
    assert "--config.method.num_views=4" in refusal(config)
    config.method.num_views = 4
    check_pretraining(config)
    config = load("simsiam_gsg")
    config.method.pairing = "halves"
    config.data.batch_size = 127
    assert "127" in refusal(config) and "--config.data.batch_size=128" in refusal(config)
    config = load("simsiam")
    config.method.name = "byol_gsg"
    assert "configs/byol_gsg.py" in refusal(config)
    config = load()
    config.views.jitter = (0.4, 0.4, 0.4, 0.6)
    assert "0.5" in refusal(config)
    config = load()
    config.views.mean = (0.1, 0.2, 0.3)
    assert "views.std" in refusal(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"backbone": "vit_micro", "patch_size": 9},
            "--config.views.size=28: must be a multiple of model.patch_size, 9; set "
            "--config.views.size=27 or --config.model.patch_size=7",
        ),
        (
            {"backbone": "vit_small"},
            "--config.views.size=28: must be a multiple of model.patch_size, 16; set "
            "--config.views.size=32 or --config.model.patch_size=14",
        ),
        (
            {"backbone": "vit_small", "patch_size": 100},
            "--config.views.size=100 or --config.model.patch_size=28",
        ),
        (
            {"norm": "group"},
            "--config.model.norm_groups=32: must divide model.width, 24, the channels of the "
            "first stage; set --config.model.norm_groups=24",
        ),
        (
            {"backbone": "vit_micro", "patch_size": 7, "norm": "group"},
            "--config.model.norm=group: vit_micro has no such thing; set --config.model.norm=batch",
        ),
        (
            {"backbone": "vit_micro", "patch_size": 7, "weight_standardization": True},
            "set --config.model.weight_standardization=False",
        ),
        (
            {"freeze_patches": True},
            "--config.model.freeze_patches=True: resnet10 has no such thing; set "
            "--config.model.freeze_patches=False or take another --config.model.backbone",
        ),
        ({"drop_path": 0.1}, "set --config.model.drop_path=0.0"),
    ],
)
def test_a_network_that_cannot_be_built_as_asked_is_refused_with_the_mend(changes, said):
    config = load()
    config.model.update(changes)
    message = refusal(config)
    assert said in message and "\n" not in message


def test_the_mends_of_a_network_mend_it():
    for changes, size in (
        ({"backbone": "vit_micro", "patch_size": 7}, 28),
        ({"backbone": "vit_micro", "patch_size": 9}, 27),
        ({"backbone": "vit_small", "patch_size": 100}, 100),
        ({"norm": "group", "norm_groups": 24}, 28),
    ):
        config = load()
        config.model.update(changes)
        config.views.size = size
        check_pretraining(config)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.model.widht=8", "did you mean --config.model.width?"),
        ("--config.modle.width=8", "did you mean --config.model.width?"),
        (
            "--config.batch_size=8",
            "did you mean --config.data.batch_size or --config.eval.batch_size?",
        ),
        ("--config.nothing_like_it=8", "keys are"),
        ("--config.model=8", "it is a group, set a key of it, such as --config.model.backbone"),
        ("--noconfig.model.bias", "--config.model.bias: there is no such key"),
        ("--noconfig.model.width", "not true or false"),
        ("--config.model.width=4.5", "takes a whole number"),
        ("--config.model.width=", "takes a whole number"),
        ("--config.optim.momentum=high", "takes a number, such as 0.9"),
        ("--config.model.zero_init_residual=maybe", "takes true or false"),
        ("--config.job=knn", "cannot be set"),
        ("--config.recipe=cifar10", "after the config"),
    ],
)
def test_a_wrong_override_is_refused_with_its_mend(flag, said):
    with pytest.raises(UsageError, match="config") as error:
        check_overrides(load(), [flag])
    assert said in str(error.value)
    key = flag.removeprefix("--no").removeprefix("--").partition("=")[0]
    assert key in str(error.value)


def test_a_value_that_stands_apart_from_its_key_is_checked_too():
    with pytest.raises(UsageError, match="--config.model.width=4.5: takes a whole number"):
        check_overrides(load(), ["--config.model.width", "4.5"])


def test_a_tuple_given_twice_is_refused_since_absl_would_join_the_two():
    flag = "--config.views.crop_area=(0.2,1.0)"
    with pytest.raises(UsageError, match="--config.views.crop_area is given twice"):
        check_overrides(load(), [flag, flag])


def test_right_overrides_pass():
    flags = ["--config.model.width=8", "--config.optim.momentum=1", "--config.optim.momentum", ".5"]
    flags += ["--config.model.zero_init_residual", "--noconfig.model.zero_init_residual"]
    check_overrides(load(), [*flags, "--config.method.stop_gradient=false", "--workdir=x"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("configs/simsiam_gg.py", "did you mean configs/simsiam_gsg.py?"),
        ("configs", "no such file"),
        ("configs/simsiam_gsg.py:cifar", "did you mean 'cifar10'?"),
        ("configs/knn.py:cifar10", "takes no recipe"),
        ("README.rst", "no such file"),
        ("Makefile", "not a Python file"),
        ("gsg_jax/errors.py", "no get_config"),
    ],
)
def test_a_wrong_config_file_or_recipe_is_refused_with_its_mend(monkeypatch, argument, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError) as error:
        load_config(argument)
    assert said in str(error.value) and f"--config={argument.partition(':')[0]}" in str(error.value)


def test_a_config_file_that_is_no_python_is_refused_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(UsageError, match="mine.py: line 2"):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_resolve_replaces_auto_and_leaves_what_was_given(name):
    config = load(name)
    resolved = resolve(config)
    row = METHODS[name]
    assert (resolved.method.target, resolved.method.predictor) == (row.target, row.predictor)
    assert config.method.target == "auto"
    config.method.update({"target": "ema", "predictor": "none"})
    assert resolve(config).method.target == "ema"
    assert resolve(config).method.predictor == "none"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_config_of_a_record_is_the_one_that_was_recorded(recipe):
    config = load(recipe=recipe)
    assert configs.from_record(json.loads(configs.as_json(config))).to_dict() == config.to_dict()


def test_a_config_equals_its_own_record_and_differs_by_name():
    config = load()
    record = json.loads(configs.as_json(config)) | {"a": 1}
    assert differences(config, record) == ["a (1 there, none here)"]
    del record["a"], record["run"]["seed"]
    record["views"]["crop_area"] = [0.5, 1.0]
    said = differences(config, record)
    assert len(said) == 2
    assert any(text.startswith("run.seed (none there, 0 here)") for text in said)
    assert any(text.startswith("views.crop_area ([0.5, 1.0] there") for text in said)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("byol", {}, "every view is a source of byol; set --config.method.sources=all, or take"),
        ("simsiam_gsg", {"stop_gradient": False}, "leave it True"),
        ("byol_gsg", {"pairing": "roll", "num_views": 2}, "may be a source by both its views"),
    ],
)
def test_sources_that_cannot_be_selected_are_refused_with_the_mend(method, changes, said):
    config = load_config(f"configs/{method}.py:cifar10")
    config.method.update({"sources": "selected", **changes})
    with pytest.raises(UsageError, match=said):
        check_pretraining(config)
