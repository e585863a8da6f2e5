"""The features job: the same embeddings whatever the batches, the devices and the interruptions."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gsg_jax.data.open import open_source
from gsg_jax.evaluation import feature_files, features
from gsg_jax.evaluation.encoder import Encoder
from gsg_jax.jobs.features import file_stem
from gsg_jax.main import parse_flags
from tests.runs import call, config, figures, hashes


def embed(pretrained, workdir, *flags):
    """Runs the job: its last line and the files of it."""
    flags = (f"--config.pretrained={pretrained}", f"--workdir={workdir}", *flags)
    status, out, err = call(config("features"), *flags)
    assert status == 0, err
    return figures(out), {
        split: dict(np.load(workdir / f"{split}.npz")) for split in ("train", "test")
    }


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


def test_features_do_not_depend_on_the_batch_size(whole, pretrained, tmp_path):
    _, files = embed(pretrained, tmp_path, "--config.eval.batch_size=7")
    for split in files:
        np.testing.assert_allclose(files[split]["h"], whole[1][split]["h"], rtol=0, atol=1e-6)


def test_features_do_not_depend_on_the_number_of_devices(whole, pretrained, tmp_path, monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    monkeypatch.setattr("gsg_jax.evaluation.encoder.all_devices", lambda: mesh)
    _, files = embed(pretrained, tmp_path, "--config.eval.batch_size=10")
    for split in files:
        np.testing.assert_allclose(files[split]["h"], whole[1][split]["h"], rtol=0, atol=1e-6)


def test_an_image_alone_has_the_features_that_it_has_among_others(whole, pretrained, images):
    """So that neither padding nor the other images of a batch have a say."""
    encoder, source = open_encoder_of(pretrained)
    for n in (0, 39):
        alone = encoder.embed(source.image(n)[None])
        np.testing.assert_allclose(alone[0], whole[1]["train"]["h"][n], rtol=0, atol=1e-6)


def open_encoder_of(pretrained) -> tuple[Encoder, feature_files.Source]:
    from gsg_jax.evaluation.encoder import open_encoder, read_run

    flags, *_ = parse_flags(["main", config("features"), f"--config.pretrained={pretrained}"])
    run = read_run(flags)
    source = open_source(run.data, "train")
    return open_encoder(flags, run, source), source


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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.json",
        "test.npz",
        "train.json",
        "train.npz",
    ]


def test_finished_embeddings_and_those_of_another_encoder_or_program_are_left_alone(
    pretrained, tmp_path
):
    embed(pretrained, tmp_path)
    before = hashes(tmp_path)
    embed(pretrained, tmp_path)
    assert hashes(tmp_path) == before
    flags = (f"--config.pretrained={pretrained}", f"--workdir={tmp_path}")
    status, out, err = call(config("features"), *flags, "--config.encoder=untrained")
    assert (status, out) == (1, "") and "holds embeddings of something else" in err
    (tmp_path / "train.json").unlink()
    status, out, err = call(config("features"), *flags)
    assert (status, out) == (1, "") and "is not of this program" in err.splitlines()[-1]
    assert before.items() >= hashes(tmp_path).items()


def test_without_a_workdir_the_files_lie_beside_the_checkpoints(pretrained):
    _, workdir, *_ = parse_flags(["main", config("features"), f"--config.pretrained={pretrained}"])
    assert workdir == pretrained / "features"
    _, workdir, *_ = parse_flags(
        ["main", config("evaluate_all"), f"--config.pretrained={pretrained}"]
    )
    assert workdir == pretrained


def test_encoders_to_compare_with_are_the_run_before_its_first_step_and_the_pixels(
    whole, pretrained, tmp_path, images
):
    _, untrained = embed(pretrained, tmp_path / "untrained", "--config.encoder=untrained")
    assert np.abs(untrained["train"]["h"] - whole[1]["train"]["h"]).max() > 1e-3
    _, raw = embed(pretrained, tmp_path / "pixels", "--config.encoder=pixels")
    assert raw["test"]["h"].shape == (24, 14 * 14 * 3)
    assert json.loads((tmp_path / "pixels" / "test.json").read_text())["step"] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.splits=('train','holdout')"], "'folder' has no split 'holdout'"),
        (["--config.splits=('train[:50%]','train[50%:]')"], "file names are equal or empty"),
        (["--config.data.test_split=holdout"], "has no such split"),
    ],
)
def test_wrong_input_gets_one_line_before_anything_is_written(pretrained, tmp_path, flags, said):
    common = (f"--config.pretrained={pretrained}", f"--workdir={tmp_path / 'new'}")
    status, out, err = call(config("features"), *common, *flags)
    assert status in (1, 2) and out == "" and said in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


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
    ],
)
def test_files_of_other_programs_are_read_or_refused_with_what_is_wrong(tmp_path, arrays, said):
    if arrays is not None:
        np.savez(tmp_path / "train.npz", **arrays)
    status, out, err = call(config("knn"), f"--config.features={tmp_path}")
    assert (status, out) == (1, "") and said in err and err.count("\n") == 1


def test_a_damaged_file_is_refused(whole, pretrained, tmp_path):
    embed(pretrained, tmp_path)
    content = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "train.npz").write_bytes(content[: len(content) // 2])
    status, out, err = call(config("knn"), f"--config.features={tmp_path}")
    assert (status, out) == (1, "") and "cannot be read" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "num_done"),
    [
        (lambda x: x[:200], 16),
        (lambda x: x, 999),
    ],
)
def test_damaged_beginnings_are_made_anew(whole, pretrained, tmp_path, rows, num_done):
    embed(pretrained, tmp_path)
    record = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(record | {"num_done": num_done}))
    (tmp_path / "train.npz").unlink()
    zeros = tmp_path / "zeros.npy"
    np.save(zeros, np.zeros((40, 4), np.float32))
    (tmp_path / "train.partial").write_bytes(rows(zeros.read_bytes()))
    zeros.unlink()
    _, files = embed(pretrained, tmp_path)
    np.testing.assert_allclose(files["train"]["h"], whole[1]["train"]["h"], rtol=0, atol=1e-6)


def test_embeddings_of_other_images_are_left_alone(pretrained, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    flags = (f"--config.data.dir={folder}",)
    embed(pretrained, tmp_path / "out", *flags)
    (folder / "train" / "even" / "000.png").rename(folder / "train" / "uneven" / "000.png")
    common = (f"--config.pretrained={pretrained}", f"--workdir={tmp_path / 'out'}", *flags)
    status, out, err = call(config("features"), *common)
    assert (status, out) == (1, "") and "images_digest" in err and err.count("\n") == 1


def test_a_splits_name_is_a_files_name():
    assert [file_stem(split) for split in ("train", "train[:10%]", "a/b+c", "..")] == [
        "train",
        "train_10pct",
        "a_b_c",
        "..",
    ]
