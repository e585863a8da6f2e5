"""Configs are read from files, command lines and records; what is wrong is said in one line."""

import json
import re

import pytest

from gsg_jax.config.load import (
    as_json,
    check_overrides,
    differences,
    from_record,
    load_config,
    resolve,
)
from gsg_jax.console import UsageError
from gsg_jax.methods import METHODS
from tests.runs import ROOT
from tests.small import load, refusal


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
        ("--config.model.width 4.5", "--config.model.width=4.5: takes a whole number"),
    ],
)
def test_a_wrong_override_is_refused_with_its_fix(flag, said):
    message = refusal(load(), lambda config: check_overrides(config, flag.split(" ")))
    assert said in message
    assert re.split("[= ]", flag.removeprefix("--no").removeprefix("--"))[0] in message


def test_a_tuple_given_twice_is_refused_since_absl_would_join_the_two():
    flags = ["--config.views.crop_area=(0.2,1.0)"] * 2
    message = refusal(load(), lambda config: check_overrides(config, flags))
    assert "--config.views.crop_area is given twice" in message


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("configs/simsiam_gg.py", "did you mean configs/simsiam_gsg.py?"),
        ("configs", "no such file"),
        ("configs/simsiam_gsg.py:cifar", "did you mean 'cifar10'?"),
        ("configs/knn.py:cifar10", "takes no recipe"),
        ("README.rst", "no such file"),
        ("Makefile", "not a Python file"),
        ("gsg_jax/console.py", "no get_config"),
    ],
)
def test_a_wrong_config_file_or_recipe_is_refused_with_its_fix(monkeypatch, argument, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError) as error:
        load_config(argument)
    assert said in str(error.value) and f"--config={argument.partition(':')[0]}" in str(error.value)


def test_a_config_file_that_is_no_python_is_refused_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(UsageError, match="mine.py: line 2"):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", ["simsiam", "byol", "moco_v2", "directpred"])
def test_resolve_replaces_auto_and_leaves_what_was_given(name):
    config = load(name)
    resolved = resolve(config)
    row = METHODS[name]
    assert (resolved.method.target, resolved.method.predictor) == (row.target, row.predictor)
    assert config.method.target == "auto"
    config.method.update({"target": "ema", "predictor": "none"})
    assert resolve(config).method.target == "ema"
    assert resolve(config).method.predictor == "none"


def test_the_config_of_a_record_is_the_one_that_was_recorded():
    config = load()
    assert from_record(json.loads(as_json(config))).to_dict() == config.to_dict()


def test_a_config_equals_its_own_record_and_differs_by_name():
    config = load()
    record = json.loads(as_json(config)) | {"a": 1}
    assert differences(config, record) == ["a (1 there, none here)"]
    del record["a"], record["run"]["seed"]
    record["views"]["crop_area"] = [0.5, 1.0]
    said = differences(config, record)
    assert len(said) == 2
    assert any(text.startswith("run.seed (none there, 0 here)") for text in said)
    assert any(text.startswith("views.crop_area ([0.5, 1.0] there") for text in said)
