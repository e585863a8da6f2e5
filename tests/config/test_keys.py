"""Every key has a default, limits and a rule; what is outside them is refused in one line."""

import math
import runpy

import pytest

from gsg_jax.config import evaluations
from gsg_jax.config.check import check_evaluation
from gsg_jax.config.keys import KEYS, free_keys, option_keys
from gsg_jax.config.load import FIXED_KEYS, flat
from gsg_jax.config.recipes import RECIPES
from tests.runs import METHOD_CONFIGS, ROOT
from tests.small import load, refusal

# Their readers check these texts, the data by opening them.
CHECKED_BY_THEIR_READER = {
    *("data.name", "data.dir", "data.train_split", "data.test_split"),
    *("run.wandb_project", "init_from"),
}
LIMITED = KEYS | option_keys()
NUMBERS = [key for key, row in LIMITED.items() if row.limits and key not in CHECKED_BY_THEIR_READER]
TEXTS = [key for key in NUMBERS if LIMITED[key].kind is str]
TUPLES = [key for key in NUMBERS if LIMITED[key].kind is tuple]
NUMBERS = [key for key in NUMBERS if key not in TEXTS and key not in TUPLES]
EVALUATIONS = (
    "features",
    "knn",
    "few_label",
    "linear",
    "finetune",
    "transfer",
    "evaluate_all",
    "report",
)


def load_with(key):
    """A config that has the key."""
    return next(config for config in map(load, METHOD_CONFIGS) if key in flat(config))


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_key_of_a_config_has_a_row_and_every_row_limits(name):
    for recipe in RECIPES:
        for key, value in flat(load(name, recipe)).items():
            if key in FIXED_KEYS:
                continue
            row = LIMITED[key]
            assert row.meaning and row.kind is type(value), key
            assert row.limits or isinstance(value, bool) or key in CHECKED_BY_THEIR_READER, key
    assert set(flat(load(name))) >= {*KEYS, *FIXED_KEYS}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_outside_its_range_is_refused_by_name(key):
    low, high = LIMITED[key].limits
    for wrong in (low - 1, high * 2 + 1, math.nan, math.inf, -math.inf):
        config = load_with(key)
        with config.ignore_type():
            config.update_from_flattened_dict({key: wrong})
        message = refusal(config)
        assert f"--config.{key}={wrong}" in message
        assert f"from {low:g} to {high:g}" in message


@pytest.mark.parametrize("key", TUPLES)
def test_a_tuple_of_wrong_length_kind_or_size_is_refused_by_name(key):
    _, _, (low, high), length, is_ordered, _ = KEYS[key]
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
    if is_ordered:
        wrongs.append(right[::-1])
    for wrong in wrongs:
        config = load()
        config.update_from_flattened_dict({key: wrong})
        assert f"--config.{key}={wrong}" in refusal(config)


@pytest.mark.parametrize("key", TEXTS)
def test_a_wrong_choice_names_the_right_ones_and_the_nearest(key):
    nearest = tuple(LIMITED[key].limits)[-1]
    config = load()
    config.update_from_flattened_dict({key: nearest + "x"})
    message = refusal(config)
    assert f"--config.{key}={nearest}x" in message
    assert "did you mean" in message and ", ".join(LIMITED[key].limits) in message


def test_what_a_config_file_of_ones_own_lacks_or_mistypes_is_named():
    config = load()
    del config.optim["momentum"]
    assert "optim.momentum" in refusal(config)
    config = load()
    with config.ignore_type():
        config.model.width = "16"
    assert "--config.model.width=16" in refusal(config)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_numbers_of_an_evaluation_pass_their_own_checks(name):
    for recipe in ("", "imagenet") if name in ("linear", "finetune", "evaluate_all") else ("",):
        config = load(name, recipe)
        assert {*flat(config)} <= {*evaluations.KEYS, *FIXED_KEYS}
        config.pretrained = "somewhere"
        check_evaluation(config)


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("knn", "eval.knn_k", (0,)),
        ("knn", "eval.knn_k", (1.5,)),
        ("knn", "encoder", "pixel"),
        ("linear", "optim.momentum", 1.0),
        ("linear", "lbfgs.l2", (2.0, 1.0)),
        ("linear", "protocol", "lbgfs"),
        ("finetune", "labels", 1.5),
        ("finetune", "views.crop_area", (0.0, 1.0)),
        ("report", "report.max_images", 30_000),
    ],
)
def test_a_wrong_value_of_an_evaluation_is_refused_by_name(name, key, wrong):
    config = load(name)
    config.pretrained = "somewhere"
    config.update_from_flattened_dict({key: wrong})
    assert f"--config.{key}={wrong}" in refusal(config, check_evaluation)


def test_what_makes_the_state_or_the_batches_never_changes_and_how_fast_they_are_made_may():
    always, at_first = free_keys(is_trained=True), free_keys(is_trained=False)
    assert always == {
        *("data.num_threads", "data.num_processes", "data.prefetch", "run.fsdp"),
        *("run.keep_checkpoints", "run.keep_every", "run.watchdog_seconds", "run.report"),
        "run.patience_epochs",
        *("run.wandb_project", "optim.max_skipped_steps", "run.accept_changes"),
    }
    assert always < at_first and {"recipe", "data.name", "views.size", "run.seed"} < at_first
    assert {"optim.learning_rate", "eval.knn_k", "optim.cosine_per"} < at_first
    never = {"optim.name", "optim.momentum", "eval.online_linear", "optim.grad_norm_limit"}
    assert not at_first & (never | {key for key in LIMITED if key[:6] in ("method", "model.")})


def test_the_page_of_keys_is_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "make_keys.py"))
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert text == made["page"](), "run python docs/make_keys.py"
