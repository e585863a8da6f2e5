"""Every config builds for every recipe, and has the published values and no key without use."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from gsg_jax import jobs
from gsg_jax.config.check import check_pretraining
from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.load import as_json, flat, resolve
from gsg_jax.config.recipes import RECIPES
from gsg_jax.console import UserError
from gsg_jax.data.open import open_source
from gsg_jax.methods import METHODS
from gsg_jax.train import loop as train
from gsg_jax.train.build import build_experiment
from tests.runs import METHOD_CONFIGS, ROOT, config, done, tiny
from tests.small import load


def test_every_config_says_its_source():
    for path in (ROOT / "configs").glob("*.py"):
        assert "Source: " in path.read_text(), path.name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_config_builds_with_every_recipe(name, recipe):
    made = load(name, recipe)
    check_pretraining(made)
    build_experiment(resolve(made), num_steps=100, steps_per_epoch=10)


# values.json: simsiam's values of the recipe imagenet, what simsiam changes in other recipes, and
# what each other method changes in simsiam's; every value of the evaluations.
VALUES = json.loads((ROOT / "tests/config/values.json").read_text())


@pytest.mark.parametrize("name", sorted({key.partition(":")[0] for key in VALUES}))
def test_a_config_has_the_published_values(name):
    for key in (key for key in VALUES if key.partition(":")[0] == name):
        recipe = key.partition(":")[2]
        wanted = VALUES[key]
        if name in METHODS:
            simsiam = VALUES["simsiam:imagenet"] | VALUES[f"simsiam:{recipe}"]
            wanted = simsiam | wanted
        assert flat(json.loads(as_json(load(name, recipe)))) == wanted, key


@pytest.mark.parametrize("method", ["simsiam", "byol"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_guided_config_differs_from_its_plain_one_in_the_method_alone(method, recipe):
    plain, guided = (flat(load(name, recipe)) for name in (method, f"{method}_gsg"))
    changed = {key for key in plain.keys() | guided.keys() if plain.get(key) != guided.get(key)}
    assert {key.partition(".")[0] for key in changed} == {"method"}


class Recorder:
    """A config that notes which of its keys were read; its use as a record does not count."""

    def __init__(self, config: ConfigDict, seen: set, prefix: str = ""):
        self._config, self._seen, self._prefix = config, seen, prefix

    def __getattr__(self, name):
        value = getattr(self._config, name)
        if isinstance(value, ConfigDict):
            return Recorder(value, self._seen, f"{self._prefix}{name}.")
        if name not in ("to_dict", "items", "keys"):
            self._seen.add(self._prefix + name)
        return value

    def __getitem__(self, name):
        return getattr(self, name)

    def __contains__(self, name):
        return name in self._config

    def get(self, name, default=None):
        return getattr(self, name) if name in self else default


@pytest.mark.extended
def test_every_key_is_read_by_somebody(images, tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(train, "resolve", lambda config: Recorder(resolve(config), seen))
    monkeypatch.setattr(train, "check_pretraining", lambda config: None)  # no use of a key
    # What reads trust_coefficient, ema_decay and num_epochs; then the crops of the host, the
    # groups of GroupNorm, and what ViTs have.
    variants = [
        ["--config.optim.name=lars", "--config.method.target=ema", "--config.run.num_steps=0"],
        ["--config.run.num_steps=1", "--config.eval.online_linear=true"],
        ["--config.run.num_steps=2", "--config.data.crop=host"],
        ["--config.run.num_steps=2", "--config.model.norm=group", "--config.model.norm_groups=2"],
        ["--config.run.num_steps=2", "--config.model.backbone=vit_micro"],
    ]
    for n, flags in enumerate(variants):
        flags += ["--config.run.num_epochs=1", "--config.run.log_every_steps=1"]
        flags += ["--config.eval.knn_pixels=true", "--config.views.blur_probability=(0.5,)"]
        flags += ["--config.model.patch_size=2"]
        flags = tiny("simsiam_gsg", images, tmp_path / str(n), *flags)
        given, workdir, *_ = parse_flags(["main", *flags])
        train.pretrain(given, pathlib.Path(workdir))
    with pytest.raises(UserError):
        open_source(Recorder(load("simsiam", "cifar10").data, seen, "data."), "train")
    # Read elsewhere: the job by main, the recipe by the config itself, and run.report by
    # jobs/pretrain.py (tests/report/test_report.py).
    unread = set(flat(load("simsiam_gsg"))) - seen - {"job", "recipe", "run.report"}
    assert not [key for key in unread if not key.startswith("views.")]  # read as a whole


@pytest.mark.extended
def test_every_key_of_the_evaluations_is_read_by_somebody(images, tmp_path):
    done(*tiny("simsiam_gsg", images, tmp_path / "run", "--config.run.num_steps=1"))
    fast = ["--config.run.num_epochs=1", "--config.data.batch_size=16", "--config.optim.name=lars"]
    few = ["--config.probe.num_epochs=1", "--config.lbfgs.num_l2=1", "--config.eval.knn_k=(3,)"]
    jobs_and_flags = {
        "features": [[]],
        "knn": [["--config.eval.knn_k=(3,)"]],
        "few_label": [[]],
        "linear": [
            ["--config.protocol=images", *fast],
            ["--config.protocol=probe", "--config.probe.num_epochs=1"],
            ["--config.protocol=lbfgs", "--config.lbfgs.num_l2=1"],
        ],
        "finetune": [["--config.labels=1.0", *fast]],
        "transfer": [["--config.transfer.sets=('dtd',)"]],
        "report": [[]],
        "evaluate_all": [
            ["--config.finetune_labels=(1.0,)", "--config.transfer.sets=('dtd',)", *fast, *few],
        ],
    }
    for name, variants in jobs_and_flags.items():
        seen = set()
        for n, flags in enumerate(variants):
            flags = [f"--config.pretrained={tmp_path / 'run'}", *flags]
            given, *_ = parse_flags(["main", config(name), *flags])
            jobs.JOBS[name](Recorder(given, seen), tmp_path / name / str(n))
        unread = set(flat(load(name))) - seen - {"job", "recipe"}
        if name == "transfer":  # reads them where it finds a set: tests/jobs/test_transfer_job.py
            unread -= {"eval.batch_size", "run.seed", "lbfgs.l2", "lbfgs.num_l2", "lbfgs.held_out"}
            unread -= {"encoder"}
        assert not unread, name
