"""The features job: the same embeddings whatever the batches, the devices and the interruptions."""

import errno
import io
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from gsg_jax.config.command_line import parse_flags
from gsg_jax.data.crops import centre_cut
from gsg_jax.data.open import ArraySource, open_source
from gsg_jax.data.source import Subset, known_images
from gsg_jax.evaluation import feature_files, features
from gsg_jax.evaluation.encoder import open_encoder, read_run
from gsg_jax.jobs.features import file_stem
from tests.runs import config, done, hashes, job, refused, tiny
from tests.small import save_image


def embed(pretrained, workdir, *flags):
    """Runs the job: its last line and the files of it."""
    last, _ = done(*features_job(pretrained, workdir, *flags))
    return last, {split: dict(np.load(workdir / f"{split}.npz")) for split in ("train", "test")}


def features_job(pretrained, workdir, *flags):
    return job("features", f"--config.pretrained={pretrained}", f"--workdir={workdir}", *flags)


@pytest.fixture(scope="module")
def whole(pretrained, tmp_path_factory):
    return embed(pretrained, tmp_path_factory.mktemp("features"))


def test_the_files_hold_every_image_in_its_order_with_label_and_path(whole, images):
    last, files = whole
    assert (last["job"], last["num_images"], last["width"]) == ("features", 64, 4)
    assert [pathlib.Path(path).name for path in last["files"]] == ["train.npz", "test.npz"]
    for split, count in (("train", 40), ("test", 24)):
        h, label, names = (files[split][key] for key in ("h", "label", "id"))
        assert h.shape == (count, 4) and h.dtype == np.float32 and np.isfinite(h).all()
        assert label.tolist() == [0] * (count // 2) + [1] * (count // 2)
        assert names[0] == str(images / split / "even" / "000.png") and len(set(names)) == count


def test_features_depend_on_neither_batches_nor_devices(whole, pretrained, tmp_path, monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    monkeypatch.setattr("gsg_jax.evaluation.encoder.all_devices", lambda: mesh)
    _, files = embed(pretrained, tmp_path, "--config.eval.batch_size=7")
    for split in files:
        np.testing.assert_allclose(files[split]["h"], whole[1][split]["h"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [10, pytest.param(20, marks=pytest.mark.extended)])
def test_images_of_another_size_are_embedded_as_if_cut_by_hand(pretrained, images, tmp_path, size):
    """The short side is resized to 256/224 of the size, and the centre is cut."""
    short = round(size * 256 / 224)
    first = round((short - size) / 2)
    for path in images.rglob("*.png"):
        resized = Image.open(path).resize((short, short), Image.Resampling.BILINEAR)
        cut = tmp_path / "cut" / path.relative_to(images)
        cut.parent.mkdir(parents=True, exist_ok=True)
        resized.crop((first, first, first + size, first + size)).save(cut)
    _, files = embed(pretrained, tmp_path / "size", f"--config.views.size={size}")
    _, wanted = embed(pretrained, tmp_path / "hand", f"--config.data.dir={tmp_path / 'cut'}")
    for split in files:
        np.testing.assert_allclose(files[split]["h"], wanted[split]["h"], rtol=0, atol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_a_vit_takes_multiples_of_its_patches_and_resizes_learned_positions(
    images, tmp_path, positions
):
    run = tmp_path / "run"
    network = ["--config.model.backbone=vit_micro", "--config.model.patch_size=4"]
    network += ["--config.data.crop=host", f"--config.model.positions={positions}"]
    one = ("--config.run.num_steps=1", "--config.eval.knn_every_epochs=0")
    done(*tiny("simsiam", images, run, *network, *one))
    _, files = embed(run, tmp_path / "larger", "--config.views.size=20")
    flags, *_ = parse_flags(["main", config("features"), f"--config.pretrained={run}"])
    plain = read_run(flags)
    source = open_source(plain.data, "train")
    encoder = open_encoder(flags, plain, source)
    cut = np.stack([centre_cut(source.image(i), 20) for i in range(8)])
    x = (cut / 255 - np.float32(plain.views.mean)) / np.float32(plain.views.std)
    h = encoder.backbone.apply({"params": encoder.params}, x.astype(np.float32), train=False)
    np.testing.assert_allclose(files["train"]["h"][:8], h, rtol=0, atol=1e-4)
    line = refused(*features_job(run, tmp_path / "odd", "--config.views.size=18"), status=2)
    assert "--config.views.size=18: must be a multiple of the run's model.patch_size, 4" in line
    assert not (tmp_path / "odd").exists()


def test_a_size_does_not_go_with_whole_images(pretrained, tmp_path):
    flags = ("--config.views.size=8", "--config.data.crop=device")
    line = refused(*features_job(pretrained, tmp_path / "new", *flags), status=2)
    assert "--config.views.size=8: images are taken whole" in line
    assert not (tmp_path / "new").exists()


class Stopped(Exception):
    """The process is killed."""


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_job_that_was_killed_resumes_and_ends_with_the_same_file(
    whole, pretrained, tmp_path, monkeypatch, killed_at
):
    monkeypatch.setattr(feature_files, "SAVE_EVERY_SECONDS", 0.0)
    batches, embedded = features.embed_batches, []

    def killed(*args, **kwargs):
        for n, h in enumerate(batches(*args, **kwargs)):
            if n == killed_at:
                raise Stopped
            yield h

    monkeypatch.setattr(feature_files, "embed_batches", killed)
    flags = ["--config.eval.batch_size=8"]
    with pytest.raises(Stopped):
        embed(pretrained, tmp_path, *flags)
    assert not (tmp_path / "train.npz").exists()

    def counted(*args, first=0, **kwargs):
        embedded.append(first)
        return batches(*args, first=first, **kwargs)

    monkeypatch.setattr(feature_files, "embed_batches", counted)
    _, files = embed(pretrained, tmp_path, *flags)
    assert embedded[0] == 8 * killed_at
    np.testing.assert_array_equal(files["train"]["label"], whole[1]["train"]["label"])
    np.testing.assert_allclose(files["train"]["h"], whole[1]["train"]["h"], rtol=0, atol=1e-6)
    names = {f"{split}.{kind}" for split in ("train", "test") for kind in ("json", "npz")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"run.lock"}


def test_finished_embeddings_and_those_of_another_encoder_or_program_are_left_alone(
    pretrained, tmp_path
):
    embed(pretrained, tmp_path)
    before = hashes(tmp_path)
    embed(pretrained, tmp_path)
    assert hashes(tmp_path) == before
    flags = features_job(pretrained, tmp_path)
    assert "holds embeddings of something else" in refused(*flags, "--config.encoder=untrained")
    (tmp_path / "train.json").unlink()
    assert "is not of this program" in refused(*flags)
    assert before.items() >= hashes(tmp_path).items()


def test_without_a_workdir_the_files_lie_beside_the_checkpoints(pretrained):
    for name, folder in (("features", pretrained / "features"), ("evaluate_all", pretrained)):
        _, workdir, *_ = parse_flags(["main", config(name), f"--config.pretrained={pretrained}"])
        assert workdir == folder


def test_encoders_to_compare_with_are_the_run_before_its_first_step_and_the_pixels(
    whole, pretrained, tmp_path, images
):
    _, untrained = embed(pretrained, tmp_path / "untrained", "--config.encoder=untrained")
    assert np.abs(untrained["train"]["h"] - whole[1]["train"]["h"]).max() > 1e-3
    _, raw = embed(pretrained, tmp_path / "pixels", "--config.encoder=pixels")
    assert raw["test"]["h"].shape == (24, 14 * 14 * 3)
    assert json.loads((tmp_path / "pixels" / "test.json").read_text())["step"] == 0


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"h": np.zeros((3, 2))}, "cannot be read"),
        ({"h": np.zeros((3, 2)), "label": np.zeros(2, int)}, "do not fit together"),
        ({"h": np.zeros((3, 2)), "label": np.zeros(3)}, "do not fit together"),
        ({"h": np.array([[{}]]), "label": np.zeros(1, int)}, "cannot be read"),
        ({"h": np.zeros((3, 2)), "label": np.full(3, -1)}, "has no labels"),
        ({"h": np.zeros((3, 2)), "label": np.full(3, 2**40)}, "labels from 1099511627776"),
        ({"h": np.array([[1.0], [np.nan]]), "label": np.zeros(2, int)}, "1 of the 2 embeddings"),
        (None, "there is no"),
        (b"PK\x03\x04", "cannot be read"),
    ],
)
def test_files_of_other_programs_are_read_or_refused_with_what_is_wrong(tmp_path, arrays, said):
    if isinstance(arrays, bytes):
        (tmp_path / "train.npz").write_bytes(arrays)
    elif arrays:
        np.savez(tmp_path / "train.npz", **arrays)
    assert said in refused(*job("knn", f"--config.features={tmp_path}"))


@pytest.mark.parametrize(("num_bytes", "num_done"), [(200, 16), (None, 999)])
def test_damaged_beginnings_are_made_anew(whole, pretrained, tmp_path, num_bytes, num_done):
    embed(pretrained, tmp_path)
    record = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(record | {"num_done": num_done}))
    (tmp_path / "train.npz").unlink()
    zeros = io.BytesIO()
    np.save(zeros, np.zeros((40, 4), np.float32))
    (tmp_path / "train.partial").write_bytes(zeros.getvalue()[:num_bytes])
    _, files = embed(pretrained, tmp_path)
    np.testing.assert_allclose(files["train"]["h"], whole[1]["train"]["h"], rtol=0, atol=1e-6)


def test_embeddings_of_other_images_are_left_alone(pretrained, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    flags = (f"--config.data.dir={folder}",)
    embed(pretrained, tmp_path / "out", *flags)
    save_image(folder / "train" / "even" / "000.png", size=(90, 90))
    assert "sizes" in refused(*features_job(pretrained, tmp_path / "out", *flags))
    (folder / "train" / "even" / "000.png").rename(folder / "train" / "uneven" / "000.png")
    assert "labels" in refused(*features_job(pretrained, tmp_path / "out", *flags))


def test_a_flat_folder_without_labels_is_embedded_by_default(pretrained, images, tmp_path):
    shutil.copytree(images / "train" / "even", tmp_path / "flat")
    flags = features_job(pretrained, tmp_path / "out", f"--config.data.dir={tmp_path / 'flat'}")
    last, said = done(*flags)
    assert last["files"] == [str(tmp_path / "out" / "train.npz")] and last["num_images"] == 20
    assert "has no test split" in said
    with np.load(tmp_path / "out" / "train.npz") as arrays:
        assert arrays["label"].tolist() == [-1] * 20


def test_a_splits_name_is_a_files_name():
    names = {"train": "train", "train[:10%]": "train_10pct", "a/b+c": "a_b_c", "..": ".."}
    assert {split: file_stem(split) for split in names} == names


def test_an_image_is_named_by_its_place_in_the_split_and_rows_have_their_room_on_the_disk(tmp_path):
    labels = np.array([-1, 0, 1, -1, 0, 1])
    source = ArraySource("own", np.zeros((6, 2, 2, 3), np.uint8), labels, ("a", "b"))
    chosen = Subset(known_images(source), np.array([3, 1]))
    np.testing.assert_array_equal(feature_files.ids_of(chosen), [5, 2])
    rows = feature_files._open_rows(tmp_path / "rows", 0, (300, 50))
    assert rows.nbytes == 4 * 300 * 50
    if hasattr(os, "posix_fallocate"):
        assert (tmp_path / "rows").stat().st_blocks * 512 >= rows.nbytes


def test_a_full_disk_ends_it_in_one_line_and_is_given_back_its_room(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left") as error:
        feature_files._open_rows(tmp_path / "rows", 0, (300, 50))
    assert error.value.filename == str(tmp_path / "rows") and not any(tmp_path.iterdir())
