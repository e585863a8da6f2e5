"""The fine-tuning job: its part of the labels, its two learning rates, its sweep."""

import json

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.load import as_json, resolve
from gsg_jax.console import UserError
from gsg_jax.data.open import open_source
from gsg_jax.evaluation.encoder import open_encoder, read_run
from gsg_jax.jobs import finetune as finetune_job
from gsg_jax.run.checkpoint import Checkpoints
from gsg_jax.train import supervised
from gsg_jax.train.supervised import ClassifierRun
from tests.jobs.test_knn_job import read_predictions
from tests.runs import config, done, hashes, job, refused, tiny

SMALL = ("--config.data.batch_size=16", "--config.run.num_epochs=6")


def finetune(pretrained, workdir, *flags):
    """The command line."""
    common = (f"--config.pretrained={pretrained}", f"--workdir={workdir}")
    return job("finetune", *common, *SMALL, *flags)


@pytest.mark.usefixtures("on_one_device")
def test_the_sweep_takes_the_best_on_held_out_images_and_is_not_repeated(
    pretrained, tmp_path, monkeypatch
):
    before = hashes(pretrained)
    rates = (
        "--config.labels=1.0",
        "--config.optim.backbone_learning_rates=(0.5,)",
        "--config.optim.head_learning_rates=(1e-6,2.0)",
    )
    last, err = done(*finetune(pretrained, tmp_path, *rates))
    assert hashes(pretrained) == before
    assert last["finetune_num_labels"] == 40 and last["finetune_top1"] > 0.9
    sweep = json.loads((tmp_path / "sweep.json").read_text())
    assert list(sweep) == ["backbone_0.5-head_1e-06", "backbone_0.5-head_2.0"]
    assert sweep["backbone_0.5-head_1e-06"] < sweep["backbone_0.5-head_2.0"]
    assert last["finetune_head_learning_rate"] == 2.0
    assert "on 8 held-out images" in err
    rows = read_predictions(tmp_path)
    assert np.mean([row["predicted"] == row["label"] for row in rows]) == last["finetune_top1"]
    network = load_file(tmp_path / "classifier.safetensors")
    with Checkpoints(tmp_path / "chosen", read_only=True) as checkpoints:
        like = checkpoints.shapes(checkpoints.newest_step(), ("params", "batch_stats"))
        state = checkpoints.restore(checkpoints.newest_step(), like)
    chex.assert_trees_all_equal(network, flatten_dict(state, sep="/"))

    trained = []
    monkeypatch.setattr(
        finetune_job, "_held_out_top1", lambda *args: trained.append(args[-2]) or 2.0
    )
    (tmp_path / "sweep.json").write_text(json.dumps({k: sweep[k] for k in list(sweep)[:-1]}))
    (tmp_path / "backbone_0.5-head_2.0").mkdir()
    again, _ = done(*finetune(pretrained, tmp_path, *rates))
    assert trained == [(0.5, 2.0)] and again == last
    half = finetune(pretrained, tmp_path, *rates, "--config.labels=0.5")
    assert "labels (1.0 there, 0.5 here)" in refused(*half)


def test_labels_that_leave_none_to_choose_by_are_told_before_any_training(
    pretrained, tmp_path, monkeypatch
):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    monkeypatch.setattr("gsg_jax.evaluation.encoder.all_devices", lambda: mesh)
    said = refused(*finetune(pretrained, tmp_path, "--config.labels=0.01"))
    assert "2 labels leave one image a class" in said
    assert not list(tmp_path.iterdir())


def run_of(pretrained, *flags, num_devices=1, **rates):
    flags, *_ = parse_flags(
        ["main", config("finetune"), f"--config.pretrained={pretrained}", *SMALL, *flags]
    )
    run = read_run(flags)
    source = open_source(run.data, "train")
    with pytest.MonkeyPatch.context() as patch:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("data",))
        patch.setattr("gsg_jax.evaluation.encoder.all_devices", lambda: mesh)
        encoder = open_encoder(flags, run, source)
    return ClassifierRun(encoder, source, flags, **rates)


def test_a_rate_of_zero_leaves_the_backbone_and_its_statistics_as_they_are(pretrained, tmp_path):
    training = run_of(pretrained, backbone_rate=0.0, head_rate=1.0)
    start = jax.device_get(training._first_state())
    state = training.train(tmp_path, "test")
    for group in ("params", "batch_stats"):
        drawn, trained = (getattr(of, group)["backbone"] for of in (start, state))
        chex.assert_trees_all_equal(drawn, trained)
    assert not np.array_equal(start.params["head"]["kernel"], state.params["head"]["kernel"])


def test_each_branch_moves_at_its_own_rate(pretrained, tmp_path):
    """After one step of SGD without a decay a branch has moved by its rate times its gradient."""
    flags = ("--config.run.num_epochs=1", "--config.data.batch_size=40")
    moved = {}
    for rates in ((0.1, 0.4), (0.2, 1.2)):
        training = run_of(pretrained, *flags, backbone_rate=rates[0], head_rate=rates[1])
        start = jax.device_get(training._first_state().params)
        end = training.train(tmp_path / str(rates), "test").params
        moved[rates] = jax.tree.map(lambda a, b: np.asarray(b) - a, start, end)
    for branch, factor in (("backbone", 2), ("head", 3)):
        expected = jax.tree.map(lambda x, factor=factor: factor * x, moved[0.1, 0.4][branch])
        chex.assert_trees_all_close(expected, moved[0.2, 1.2][branch], rtol=1e-3, atol=1e-6)


@pytest.mark.extended
def test_eight_devices_train_as_one(pretrained, tmp_path):
    ends = []
    for n in (1, 8):
        training = run_of(pretrained, num_devices=n, backbone_rate=0.1, head_rate=0.5)
        ends.append(jax.device_get(training.train(tmp_path / str(n), "test").params))
    chex.assert_trees_all_close(*ends, rtol=1e-3, atol=1e-5)


def test_crops_have_the_aspect_of_the_pretrainings(pretrained, tmp_path, monkeypatch):
    record = json.loads((pretrained / "config.json").read_text())
    monkeypatch.setattr(supervised, "CropRecipe", lambda **crops: cut.append(crops["aspect"]))
    for aspect in ((0.5, 0.6), (0.9, 1.1)):
        record["views"]["crop_aspect"], cut = aspect, []
        (tmp_path / "config.json").write_text(json.dumps(record))
        training = run_of(tmp_path, "--config.encoder=untrained", backbone_rate=0.1, head_rate=0.5)
        assert training.task.views.crop_aspect == aspect and cut == [aspect]


@pytest.mark.parametrize(
    ("error", "seconds"), [(KeyboardInterrupt, 0.0), (UserError("cannot decode cut.jpg"), 1e9)]
)
def test_a_training_that_is_killed_or_whose_data_fail_resumes_bit_for_bit(
    pretrained, tmp_path, monkeypatch, error, seconds
):
    monkeypatch.setattr("gsg_jax.train.supervised.SAVE_EVERY_SECONDS", seconds)
    rates = {"backbone_rate": 0.1, "head_rate": 0.5}
    whole = run_of(pretrained, **rates).train(tmp_path / "whole", "test")
    training = run_of(pretrained, **rates)
    batches = training.loader.iterate

    def killed(first_step):
        for n, batch in enumerate(batches(first_step)):
            if n == 7:
                raise error
            yield batch

    training.loader.iterate = killed
    with pytest.raises((KeyboardInterrupt, UserError)):
        training.train(tmp_path / "killed", "test")
    again = run_of(pretrained, **rates)
    steps = []
    again.loader.iterate = lambda first_step: steps.append(first_step) or batches(first_step)
    end = again.train(tmp_path / "killed", "test")
    assert steps == [7]
    chex.assert_trees_all_equal(whole.params, end.params)


@pytest.mark.extended
@pytest.mark.parametrize(
    "network",
    [
        ("--config.model.backbone=vit_micro", "--config.model.patch_size=2"),
        ("--config.model.norm=group", "--config.model.norm_groups=2"),
        ("--config.data.crop=host",),
    ],
)
def test_other_networks_and_crops_of_the_host_are_trained_too(images, tmp_path, network):
    drops = ("--config.model.drop_path=0.5",) if "vit" in network[0] else ()
    made, *_ = parse_flags(["main", *tiny("simsiam", images, tmp_path, *network, *drops)])
    (tmp_path / "config.json").write_text(as_json(resolve(made)))
    rates = {"backbone_rate": 0.02, "head_rate": 0.2}
    training = run_of(tmp_path, "--config.encoder=untrained", **rates)
    start = jax.device_get(training._first_state().params)
    state = training.train(tmp_path / "training", "test")
    assert np.isfinite(training.scores(state, training.loader._source, 16)).all()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, start, state.params)
    assert all(jax.tree.leaves(moved))
