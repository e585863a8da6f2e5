"""The loop trains with each choice, reports what goes wrong, and keeps what was good."""

import contextlib
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from gsg_jax.config.check_images import check_images
from gsg_jax.config.command_line import parse_flags
from gsg_jax.config.load import resolve
from gsg_jax.console import UserError
from gsg_jax.data.open import ArraySource
from gsg_jax.jobs.pretrain import _has_labelled_test
from gsg_jax.run.identity import identity
from gsg_jax.run.workdir import IMPORTED
from gsg_jax.train import loop as train
from tests.runs import done, hashes, job, logged, refused, tiny, warnings, write_images
from tests.small import load, save_untrained


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
            last = refused(*flags)
            said = f"error: the loss is nan at step {bad_step}: {kept} in {tmp_path}"
            assert last.startswith(said)
            assert "learning_rate (now 0.4)" in last and "another --workdir" in last
            assert all(line["step"] < bad_step for line in logged(tmp_path))
            saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
            assert saved == [step for step in (4, 5) if step < bad_step]


SHORT = ("--config.run.num_steps=2",)
VIT = ("--config.model.backbone=vit_micro", "--config.optim.name=adamw")


def test_a_run_without_labels_is_monitored_by_rankme_and_saves_its_last_step(tmp_path):
    folder = write_images(tmp_path / "images")
    flat_folder = tmp_path / "flat"
    flat_folder.mkdir()
    for n, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        path.rename(flat_folder / f"{n}.png")
    last, _ = done(*tiny("simsiam", flat_folder, tmp_path / "run", *SHORT))
    assert not [key for key in last if key.startswith("knn")]
    (line,) = [line for line in logged(tmp_path / "run") if line["step"] == 2]
    assert 1 <= line["rankme"] and "knn_top1" not in line
    assert not (tmp_path / "run" / "baselines.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()  # one is due every 5 steps


@pytest.mark.extended
def test_a_test_set_without_labels_leaves_the_figure_to_the_training_images(tmp_path):
    folder = write_images(tmp_path / "images")
    for n, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        path.rename(folder / "test" / f"{n}.png")
    for name in ("even", "uneven"):
        (folder / "test" / name).rmdir()
    last, _ = done(*tiny("simsiam", folder, tmp_path / "run", *SHORT))
    assert 0 <= last["knn_top1"] <= 1


@pytest.mark.extended
def test_a_probability_may_be_a_whole_number(images, tmp_path):
    flags = ("--config.views.blur_probability=(1,0)", "--config.views.solarize_probability=(1,0)")
    done(*tiny("simsiam", images, tmp_path, *SHORT, *flags))


def test_broken_images_and_more_neighbours_than_images_are_warned_of(tmp_path):
    folder = write_images(tmp_path / "images")
    (folder / "train" / "even" / "torn.png").write_bytes(b"no image")
    flags = (*SHORT, "--config.eval.knn_k=42")
    last, err = done(*tiny("simsiam", folder, tmp_path / "run", *flags))
    told, torn = warnings(err), folder / "train" / "even" / "torn.png"
    assert len(told) == 2 and last["knn_k"] == 40 and "k-NN, k 40 " in err
    reason = f"{torn} (not an image, or of another format)\n"
    assert (tmp_path / "run" / "left_out.txt").read_text() == reason and last["num_left_out"] == 1
    assert any("1 of 41 images" in line and "torn.png" in line for line in told)
    assert "warning: eval.knn_k is 42, 40 images can vote: k 40" in told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.run.num_epochs=1000000000", "--config.data.batch_size=8"], f"{2**31 // 5}"),
        (["--config.optim.warmup_epochs=2.5", "--config.run.num_epochs=2"], "longer than the run"),
    ],
)
def test_a_length_that_cannot_be_is_told_before_the_workdir_is_touched(
    images, tmp_path, flags, said
):
    flags = tiny("simsiam", images, tmp_path / "run", "--config.run.num_steps=0", *flags)
    assert said in refused(*flags, status=2) and not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_folder_is_halved_until_it_fits_and_recorded(tmp_path):
    folder = write_images(tmp_path / "images", num_train=40)
    flags = ("--config.data.batch_size=128", "--config.run.num_steps=1")
    flags = tiny("simsiam", folder, tmp_path / "run", *flags, "--config.eval.knn_every_epochs=0")
    err = done(*flags)[1]
    (told,) = warnings(err)
    assert "data.batch_size is lowered from 128 to 32, since 'folder' has 40 images" in told
    assert "on folder: 40 images in 2 classes, 8 to test; workdir" in err
    assert "\ntrain/ is the training set, test/ the test set\n" in err
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["batch_size"] == 32
    last, err = done(*flags)  # though the flag still says 128
    assert last["batch_size_asked"] == 128 and "nothing is left to train" in err
    assert "holds a run of another config" in refused(*flags, "--config.data.batch_size=64")


def test_missing_baselines_are_an_error_after_the_first_step(images, tmp_path):
    flags = tiny("simsiam", images, tmp_path, *SHORT)
    done(*flags)
    (tmp_path / "baselines.json").unlink()
    before = hashes(tmp_path)
    assert "baselines.json is missing" in refused(*flags)
    assert hashes(tmp_path) == before


def test_the_newest_checkpoints_and_the_best_by_k_nn_are_kept(images, tmp_path, monkeypatch):
    scores = iter([0.1, 0.4, 0.9, 0.2, 0.3, 0.2])
    monkeypatch.setattr(train.Monitor, "figures", lambda *_, **__: {"knn_top1": next(scores)})
    flags = ["--config.run.keep_checkpoints=1", "--config.run.checkpoint_every_steps=3"]
    flags += ["--config.eval.knn_pixels=false"]
    last, _ = done(*tiny("simsiam", images, tmp_path, *flags, "--config.run.num_steps=17"))
    assert [x["step"] for x in logged(tmp_path) if "knn_top1" in x] == [4, 8, 12, 16, 17]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [8, 17]
    assert (last["knn_top1"], last["knn_top1_untrained"]) == (0.2, 0.1)


def test_a_stop_before_the_first_step_leaves_no_record_so_another_config_may_start(
    images, tmp_path
):
    flags = tiny("simsiam", images, tmp_path, *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(lambda: True))
        last, err = done(*flags)
    assert (last["step"], last["loss"]) == (0, None)
    assert "stopped at step 0 with nothing to save: the same command" in err
    assert not (tmp_path / "config.json").exists() and (tmp_path / "metrics.jsonl").exists()
    assert done(*flags, "--config.run.seed=3")[0]["step"] == 2
    assert json.loads((tmp_path / "config.json").read_text())["run"]["seed"] == 3
    (tmp_path / "config.json").unlink()  # but a record that was lost is none that never was
    assert "metrics.jsonl" in refused(*flags) and "no config.json" in refused(*flags)


def test_an_imported_run_that_cannot_start_keeps_its_record(images, tmp_path):
    vit = [*VIT, "--config.model.patch_size=2", "--config.model.positions=learned"]
    flags = [*vit, "--config.data.crop=host", "--config.eval.knn_every_epochs=0"]
    flags = tiny("simsiam", images, tmp_path, *flags)
    save_untrained(tmp_path, resolve(parse_flags(["", *flags]).config), 3)
    (tmp_path / IMPORTED).mkdir()
    before = hashes(tmp_path)
    assert "is of another network" in refused(*flags, "--config.views.size=16")
    after = hashes(tmp_path)
    assert after.pop("run.lock") and after == before


@pytest.mark.extended
def test_a_collapse_is_warned_of_once_with_what_to_try(images, tmp_path):
    flags = ["--config.method.stop_gradient=false", "--config.method.predictor=none"]
    flags += ["--config.eval.min_projection_std=1", "--config.run.log_every_steps=1"]
    (told,) = warnings(done(*tiny("simsiam", images, tmp_path, *flags))[1])
    assert "the representations are collapsing" in told
    assert "--config.method.stop_gradient=true" in told and "predictor=mlp" in told


def test_a_queue_larger_than_the_data_is_refused_before_anything_is_written(images, tmp_path):
    flags = ["--config.method.queue_size=41"]
    said = refused(*tiny("moco_v2", images, tmp_path / "run", *flags))
    assert "--config.method.queue_size=41" in said and "has 40 images" in said
    assert "at most 40" in said and "batch_size" not in said
    flags = ["--config.method.queue_size=48", "--config.data.batch_size=24"]
    said = refused(*tiny("moco_v2", images, tmp_path / "run", *flags))
    assert "at most 40, and --config.data.batch_size to at most 20" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.extended
def test_a_network_without_batchnorm_trains_is_resumed_to_the_bit_and_scored(images, tmp_path):
    # The views are 12 pixels, the whole images that k-NN embeds 14: 2 divides both.
    values = ("patch_size=2", "positions=learned", "freeze_patches=true")
    network = [f"--config.model.{x}" for x in (*values, "drop_path=0.2", "head_norm=layer")]
    rate = "--config.optim.learning_rate=0.01"
    flags = tiny("byol_gsg", images, tmp_path, *VIT, *network, rate)
    whole, _ = done(*flags)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    last, err = done(*flags)
    assert "resuming from the checkpoint of step 8" in err
    assert last["state_digest"] == whole["state_digest"]
    knn = job("knn", f"--config.pretrained={tmp_path}", "--config.eval.knn_k=(3,)")
    assert done(*knn)[0]["knn_top1_k3"] == whole["knn_top1"]


def test_images_that_cannot_be_cut_into_patches_are_refused_before_anything_is_written(
    images, tmp_path
):
    flags = tiny("simsiam", images, tmp_path / "run", *VIT, "--config.model.patch_size=4")
    said = refused(*flags)
    assert "--config.model.patch_size=4: does not divide the 14 x 14 pixels of " in said
    assert '--config.data.crop="host"' in said and "--config.eval.knn_every_epochs=0" in said
    said = refused(*flags, "--config.model.patch_size=5", status=2)
    assert "--config.views.size=12: must be a multiple of model.patch_size, 5" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.extended
@pytest.mark.parametrize("flag", ["--config.data.crop=host", "--config.eval.knn_every_epochs=0"])
def test_the_advice_for_images_that_cannot_be_cut_into_patches_works(images, tmp_path, flag):
    done(*tiny("simsiam", images, tmp_path, *VIT, "--config.model.patch_size=4", *SHORT, flag))


@pytest.mark.extended
def test_a_run_ends_early_without_a_better_knn_and_goes_on_with_more_patience(
    images, tmp_path, monkeypatch
):
    """k-NN at steps 4, 8 and 12, there again as the last one, then 16 and 17; 2 steps an epoch."""
    scores = iter([0.1, 0.1, 0.5, 0.4, 0.5, 0.5, 0.6, 0.6])  # two baselines first
    monkeypatch.setattr(train.Monitor, "figures", lambda *_, **__: {"knn_top1": next(scores)})
    flags = tiny("simsiam", images, tmp_path, "--config.run.num_steps=17")
    patient = "--config.run.patience_epochs="
    last, err = done(*flags, patient + "4")
    assert (last["step"], last["num_steps"], last["patience_epochs"]) == (12, 12, 4)
    assert "the run ends at step 12 of 17: k-NN is not above the 0.5000 of epoch 2" in err
    again, err = done(*flags, patient + "4")
    assert again == last and "nothing is left to train" in err
    (tmp_path / "figures.json").unlink()  # killed just before its end
    assert done(*flags, patient + "4")[0]["step"] == 12
    whole, _ = done(*flags, patient + "0")
    assert (whole["step"], "patience_epochs" in whole) == (17, False)


@pytest.mark.extended
def test_ranks_are_logged_beside_the_knn(images, tmp_path):
    short = ("--config.run.num_steps=2", "--config.eval.lidar_views=2")
    _, err = done(*tiny("simsiam", images, tmp_path, *short))
    line = logged(tmp_path)[-1]
    assert 1 <= line["rankme"] <= 4 and 1 <= line["lidar"] <= 4  # 4 channels
    assert f"RankMe {line['rankme']:.1f}  LiDAR {line['lidar']:.1f}" in err


def test_images_without_labels_that_cannot_be_cut_into_patches_are_not_monitored():
    config = load("simsiam", "folder")
    config.model.update({"backbone": "vit_micro", "patch_size": 7})
    config.data.crop = "device"
    fitting, other = (np.zeros((4, side, 28, 3), np.uint8) for side in (28, 30))
    assert check_images(config, ArraySource("x", fitting), ArraySource("x", other))
    assert not check_images(config, ArraySource("x", other), None)
    with pytest.raises(UserError, match="does not divide the 30 x 28 pixels of 'x'"):
        check_images(config, ArraySource("x", other, np.zeros(4, int), ("a",)), None)


def test_what_to_do_next_is_by_the_test_images_of_the_run(tmp_path):
    labelled = ArraySource("x", np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a", "b"))
    unlabelled = ArraySource("x", labelled.images)
    assert not _has_labelled_test(tmp_path)
    for test, wanted in ((labelled, True), (unlabelled, False), (None, False)):
        now = identity({"train": labelled, "test": test}, "")
        (tmp_path / "identity.json").write_text(json.dumps(now))
        assert _has_labelled_test(tmp_path) == wanted
