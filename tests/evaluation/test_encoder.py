"""An untrained encoder is the backbone of the run's first state, bit for bit."""

from functools import partial

import chex
import jax
import numpy as np
import pytest

import gsg_jax
from gsg_jax.console import UserError
from gsg_jax.data.open import SOURCES, ArraySource
from gsg_jax.evaluation.encoder import open_split, read_run, untrained_backbone
from gsg_jax.models.vit import VITS
from gsg_jax.run.workdir import write_record
from gsg_jax.train.build import build_experiment
from gsg_jax.train.state import init_state
from tests.small import small_config


def test_other_images_are_not_looked_for_in_the_folder_of_the_runs(tmp_path):
    run = small_config("simsiam")
    run.data.update({"name": "folder", "dir": "photos"})
    write_record(tmp_path / "config.json", run)

    def folder(**data):
        config = gsg_jax.get_config("knn", {"pretrained": str(tmp_path), **data})
        return read_run(config, needs_data=False).data.dir

    assert folder() == folder(**{"data.name": "folder"}) == "photos"
    assert folder(**{"data.name": "hf:user/set"}) == ""
    assert folder(**{"data.name": "cifar10", "data.dir": "tfds"}) == "tfds"


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny"])
def test_an_untrained_backbone_is_that_of_the_first_state(backbone, monkeypatch):
    monkeypatch.setitem(VITS, "vit_tiny", (12, 3, 2))
    config = small_config("simsiam_gsg")
    config.model.update({"backbone": backbone, "patch_size": 4, "drop_path": 0.1})
    config.run.seed = 7
    experiment = build_experiment(config, num_steps=1, steps_per_epoch=1)
    state = jax.jit(partial(init_state, experiment, 3))()
    drawn = jax.jit(partial(untrained_backbone, config, 3))()
    for group, trees in drawn.items():
        chex.assert_trees_all_equal(trees["backbone"], getattr(state, group)["backbone"])
    assert len(jax.tree.leaves(drawn["params"])) > 4


def test_a_set_of_ones_own_has_no_other_splits(monkeypatch):
    images = ArraySource("own", np.zeros((2, 4, 4, 3), np.uint8))
    monkeypatch.setitem(SOURCES, "own", lambda data, split: images)
    run = small_config("simsiam")
    run.data.update({"name": "own", "test_split": "test"})
    assert open_split(run, "test") is images
    with pytest.raises(UserError, match="'own' has no split 'validation': take train or test"):
        open_split(run, "validation")
