"""The loop trains with each choice, reports what goes wrong, and keeps what was good."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.config.load import flat
from gsg_jax.methods import METHODS, PREDICTORS, TARGETS
from gsg_jax.train import loop as train
from tests.runs import call, config, figures, hashes, tiny, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("images"))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def poison(monkeypatch, bad_step, name="loss"):
    """Makes a figure of one step NaN, as a loss that overflows would."""
    jit_step = train.jit_step

    def poisoned(experiment, mesh, shapes):
        step_fn = jit_step(experiment, mesh, shapes)

        def step(state, batch):
            state, metrics = step_fn(state, batch)
            if int(state.step) >= bad_step:
                metrics = metrics | {name: jnp.float32(np.nan)}
            return state, metrics

        return step

    monkeypatch.setattr(train, "jit_step", poisoned)


@pytest.mark.parametrize(
    ("bad_step", "kept"),
    [
        (5, "step 4 is kept"),
        pytest.param(3, "there is no checkpoint yet", marks=pytest.mark.extended),
        pytest.param(8, "step 5 is kept", marks=pytest.mark.extended),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step_and_keeps_the_last_good_checkpoint(
    images, tmp_path, monkeypatch, bad_step, kept
):
    flags = tiny("simsiam", images, tmp_path)
    with monkeypatch.context() as patch:
        poison(patch, bad_step)
        for _ in range(2):  # and again when it is resumed
            status, out, err = call(*flags)
            last = err.splitlines()[-1]
            assert (status, out) == (1, "")
            assert last.startswith(
                f"error: the loss is nan at step {bad_step}: {kept} in {tmp_path}"
            )
            assert "learning_rate (now 0.4)" in last and "another --workdir" in last
            assert all(line["step"] < bad_step for line in lines(tmp_path))
            saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
            assert saved == [step for step in (4, 5) if step < bad_step]


@pytest.mark.extended
def test_a_learning_rate_far_too_high_ends_in_one_line(images, tmp_path):
    flags = tiny("simsiam", images, tmp_path, "--config.optim.learning_rate=10000")
    flags += ["--config.optim.weight_decay=1000", "--config.optim.warmup_epochs=0"]
    status, out, err = call(*flags)
    assert (status, out) == (1, "")
    assert "learning_rate (now 10000)" in err.splitlines()[-1] and " at step " in err


SHORT = ("--config.run.num_steps=2",)


def test_a_run_without_labels_has_no_monitor(tmp_path):
    folder = write_images(tmp_path / "images")
    flat_folder = tmp_path / "flat"
    flat_folder.mkdir()
    for n, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        path.rename(flat_folder / f"{n}.png")
    status, out, _ = call(*tiny("simsiam", flat_folder, tmp_path / "run", *SHORT))
    assert status == 0 and not [key for key in figures(out) if key.startswith("knn")]
    assert not (tmp_path / "run" / "baselines.json").exists()


@pytest.mark.extended
def test_a_test_set_without_labels_leaves_the_figure_to_the_training_images(tmp_path):
    folder = write_images(tmp_path / "images")
    for n, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        path.rename(folder / "test" / f"{n}.png")
    for name in ("even", "uneven"):
        (folder / "test" / name).rmdir()
    status, out, _ = call(*tiny("simsiam", folder, tmp_path / "run", *SHORT))
    assert status == 0 and 0 <= figures(out)["knn_top1"] <= 1


@pytest.mark.extended
@pytest.mark.parametrize("key", ["blur_probability", "solarize_probability"])
def test_a_probability_may_be_a_whole_number(images, tmp_path, key):
    flags = (*SHORT, f"--config.views.{key}=(1,0)")
    assert call(*tiny("simsiam", images, tmp_path, *flags))[0] == 0


def test_broken_images_and_more_neighbours_than_images_are_warned_of(tmp_path):
    folder = write_images(tmp_path / "images")
    (folder / "train" / "even" / "torn.png").write_bytes(b"no image")
    flags = (*SHORT, "--config.eval.knn_k=42")
    status, _, err = call(*tiny("simsiam", folder, tmp_path / "run", *flags))
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert status == 0 and len(warnings) == 2
    assert any("1 of 41 images" in line and "torn.png" in line for line in warnings)
    assert any(line.startswith("warning: eval.knn_k is 42, 4") for line in warnings)


def test_missing_baselines_are_an_error_after_the_first_step(images, tmp_path):
    flags = tiny("simsiam", images, tmp_path, *SHORT)
    assert call(*flags)[0] == 0
    (tmp_path / "baselines.json").unlink()
    before = hashes(tmp_path)
    status, out, err = call(*flags)
    assert (status, out) == (1, "") and "baselines.json is missing" in err.splitlines()[-1]
    assert hashes(tmp_path) == before


def test_the_newest_checkpoints_and_the_best_by_k_nn_are_kept(images, tmp_path, monkeypatch):
    scores = iter([0.1, 0.4, 0.9, 0.2, 0.3, 0.2])
    monkeypatch.setattr(train.KnnMonitor, "figures", lambda *_: {"knn_top1": next(scores)})
    flags = ["--config.run.keep_checkpoints=1", "--config.run.checkpoint_every_steps=3"]
    flags += ["--config.eval.knn_pixels=false"]
    status, out, _ = call(*tiny("simsiam", images, tmp_path, *flags, "--config.run.num_steps=17"))
    assert status == 0
    assert [x["step"] for x in lines(tmp_path) if "knn_top1" in x] == [4, 8, 12, 16, 17]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [8, 17]
    assert figures(out)["knn_top1"] == 0.2 and figures(out)["knn_top1_untrained"] == 0.1


def test_a_stop_before_the_first_step_leaves_nothing_to_resume_and_no_harm(images, tmp_path):
    flags = tiny("simsiam", images, tmp_path, *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "stop_signals", _stopped_at_once)
        status, out, err = call(*flags)
    assert status == 0 and figures(out)["step"] == 0 and figures(out)["loss"] is None
    assert "stopped at step 0" in err
    assert call(*flags)[0] == 0


class _stopped_at_once:  # noqa: N801
    def __enter__(self):
        return lambda: True

    def __exit__(self, *_):
        pass


@pytest.mark.extended
def test_a_collapse_is_warned_of_once_with_what_to_try(images, tmp_path):
    flags = ["--config.method.stop_gradient=false", "--config.method.predictor=none"]
    flags += ["--config.eval.min_projection_std=1", "--config.run.log_every_steps=1"]
    status, _, err = call(*tiny("simsiam", images, tmp_path, *flags))
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert status == 0 and len(warnings) == 1
    assert "the representations are collapsing" in warnings[0]
    assert "--config.method.stop_gradient=true" in warnings[0]
    assert "--config.method.predictor=mlp" in warnings[0]


def choices():
    """Every target branch that a method is defined for, and the other predictor once."""
    for name in ("simsiam_gsg", "moco_v2", "directpred", "unigrad"):
        row = METHODS[name]
        for target in TARGETS:
            if target != "ema_positive" or target in row.extras:
                yield name, target, row.predictor
        yield name, row.target, next(kind for kind in PREDICTORS if kind != row.predictor)


@pytest.mark.extended
@pytest.mark.parametrize(("name", "target", "predictor"), list(choices()))
def test_targets_and_predictors_train(images, tmp_path, name, target, predictor):
    flags = [f"--config.method.target={target}", f"--config.method.predictor={predictor}"]
    flags += ["--config.run.num_steps=4", "--config.run.log_every_steps=1"]
    status, out, _ = call(*tiny(name, images, tmp_path, *flags))
    assert status == 0 and figures(out)["method"] == name
    record = flat(json.loads((tmp_path / "config.json").read_text()))
    assert (record["method.target"], record["method.predictor"]) == (target, predictor)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert len(losses) == 4 and len(set(losses)) == 4 and np.all(np.isfinite(losses))


def test_a_queue_larger_than_the_data_is_refused_before_anything_is_written(images, tmp_path):
    flags = ["--config.method.queue_size=41"]
    status, _, err = call(*tiny("moco_v2", images, tmp_path / "run", *flags))
    assert status == 1 and not (tmp_path / "run").exists()
    assert "--config.method.queue_size=41" in err and "has 40 images" in err
    assert "at most 40" in err and "batch_size" not in err
    flags = ["--config.method.queue_size=48", "--config.data.batch_size=24"]
    status, _, err = call(*tiny("moco_v2", images, tmp_path / "run", *flags))
    assert status == 1 and "at most 40, and --config.data.batch_size to at most 20" in err


@pytest.mark.extended
@pytest.mark.parametrize(
    ("pairing", "num_views"), [("permutation", 4), ("halves", 2), ("nearest", 2)]
)
def test_every_pairing_trains(images, tmp_path, pairing, num_views):
    flags = [f"--config.method.pairing={pairing}", f"--config.method.num_views={num_views}"]
    status, _, _ = call(*tiny("simsiam_gsg", images, tmp_path, *flags, "--config.run.num_steps=3"))
    shares = [v for k, v in lines(tmp_path)[-1].items() if k.startswith("closest_")]
    assert status == 0 and len(shares) == 4 and sum(shares) == pytest.approx(1)


# --- Vision transformers -------------------------------------------------------------------------

VIT = ("--config.model.backbone=vit_micro", "--config.optim.name=adamw")


@pytest.mark.extended
def test_a_network_without_batchnorm_trains_is_resumed_to_the_bit_and_scored(images, tmp_path):
    # The views are 12 pixels, the whole images that k-NN embeds 14: 2 divides both.
    flags = tiny(
        "byol_gsg",
        images,
        tmp_path,
        *VIT,
        "--config.model.patch_size=2",
        "--config.model.positions=learned",
        "--config.model.freeze_patches=true",
        "--config.model.drop_path=0.2",
        "--config.model.head_norm=layer",
        "--config.optim.learning_rate=0.01",
    )
    status, out, err = call(*flags)
    assert status == 0, err
    whole = figures(out)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    status, out, err = call(*flags)
    assert status == 0 and "resuming from the checkpoint of step 8" in err, err
    assert figures(out)["state_digest"] == whole["state_digest"]

    job = (config("knn"), f"--config.pretrained={tmp_path}", "--config.eval.knn_k=(3,)")
    status, out, err = call(*job)
    assert status == 0, err
    assert figures(out)["knn_top1_k3"] == whole["knn_top1"]


def test_images_that_cannot_be_cut_into_patches_are_refused_before_anything_is_written(
    images, tmp_path
):
    workdir = tmp_path / "run"
    status, out, err = call(*tiny("simsiam", images, workdir, *VIT, "--config.model.patch_size=4"))
    assert (status, out) == (1, "") and not workdir.exists()
    assert err.splitlines()[-1].startswith(
        "error: --config.model.patch_size=4: does not divide the 14 x 14 pixels of "
    )
    assert '--config.data.crop="host"' in err and "--config.eval.knn_every_epochs=0" in err

    flags = tiny("simsiam", images, workdir, *VIT, "--config.model.patch_size=5")
    status, out, err = call(*flags)
    assert (status, out) == (2, "") and not workdir.exists()
    assert "--config.views.size=12: must be a multiple of model.patch_size, 5" in err


@pytest.mark.extended
@pytest.mark.parametrize("flag", ["--config.data.crop=host", "--config.eval.knn_every_epochs=0"])
def test_the_advice_for_images_that_cannot_be_cut_into_patches_works(images, tmp_path, flag):
    flags = (*VIT, "--config.model.patch_size=4", "--config.run.num_steps=2", flag)
    status, _, err = call(*tiny("simsiam", images, tmp_path, *flags))
    assert status == 0, err
