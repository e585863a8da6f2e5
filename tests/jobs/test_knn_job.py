"""The k-NN job: on a checkpoint and on embeddings that are given, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.neighbors import KNeighborsClassifier

from gsg_jax.run.files import partial_path
from tests.runs import done, hashes, job, refused


def knn(*flags):
    """Runs the job: its last line and standard error."""
    return done(*job("knn", *flags))


def gaussians(folder, *, num_classes=3, sizes=(150, 61), missing=None, seed=0):
    """Writes embeddings with planted classes; returns them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, 5))
    parts = {}
    for split, size in zip(("train", "test"), sizes, strict=True):
        label = rng.integers(0, num_classes, size)
        label = np.where(label == missing, (label + 1) % num_classes, label)
        h = (centres[label] + rng.normal(size=(size, 5))).astype(np.float32)
        parts[split] = {"h": h, "label": label}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{split}.npz", **parts[split])
    return parts["train"], parts["test"]


def read_predictions(folder):
    """The rows of predictions.csv."""
    with (folder / "predictions.csv").open(errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_embeddings_that_are_given_score_as_with_scikit_learn(tmp_path, k=10):
    train, test = gaussians(tmp_path)
    last, _ = knn(
        f"--config.features={tmp_path}",
        f"--config.eval.knn_k=({k},)",
        "--config.eval.knn_temperature=0.1",
    )
    peer = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    )
    expected = peer.fit(train["h"], train["label"]).score(test["h"], test["label"])
    assert last["knn_top1"] == last[f"knn_top1_k{k}"] == pytest.approx(expected, abs=1e-9)
    assert 0.5 < expected < 1


def test_more_neighbours_than_images_are_cut_to_the_bank_and_what_was_used_is_said(tmp_path):
    train, _ = gaussians(tmp_path)
    flags = (f"--config.features={tmp_path}", "--config.eval.knn_k=(5000,3,6000)")
    for flag, most in (
        ("", len(train["h"])),
        ("--config.eval.leave_one_out=1", len(train["h"]) - 1),
    ):
        last, err = knn(*flags, *filter(None, [flag]))
        asked = f"--config.eval.knn_k=({most},3)"
        same, silent = knn(*flags[:1], asked, *filter(None, [flag]))
        assert last == same and last["knn_k"] == most
        assert [key for key in last if "_k" in key] == ["knn_k", f"knn_top1_k{most}", "knn_top1_k3"]
        assert f"warning: eval.knn_k is 6000, {most} images can vote" in err
        assert f"k {most}: {last['knn_top1']:.4f}" in err and "warning" not in silent


def test_one_image_alone_cannot_be_classified(tmp_path):
    np.savez(tmp_path / "train.npz", h=np.ones((1, 5), np.float32), label=np.zeros(1, int))
    assert "cannot vote on itself" in refused(*job("knn", f"--config.features={tmp_path}"))


def test_leave_one_out_judges_the_training_set_by_itself(tmp_path):
    train, _ = gaussians(tmp_path)
    flags = [f"--config.features={tmp_path}", "--config.eval.knn_k=(1,)"]
    last, err = knn(*flags, "--config.eval.leave_one_out=true")
    cosine = train["h"] / np.linalg.norm(train["h"], axis=1, keepdims=True)
    similarity = cosine @ cosine.T - 9 * np.eye(len(cosine))
    expected = np.mean(train["label"][similarity.argmax(axis=1)] == train["label"])
    assert last["knn_top1"] == pytest.approx(expected) and "vote on one another" in err
    (tmp_path / "test.npz").unlink()  # without test embeddings it is the same
    assert knn(*flags)[0] == last


def test_predictions_and_bank_are_written_to_a_workdir_that_is_given(tmp_path, monkeypatch):
    """The votes are counted by hand."""
    _, test = gaussians(tmp_path / "given")
    names = np.array(["=1+1.png", "@a.png", *(f"{n},\udcff.png" for n in range(59))])
    np.savez(tmp_path / "given" / "test.npz", id=names, **test)
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.features={tmp_path / 'given'}", "--config.eval.knn_k=(7,20)"]
    before = hashes(tmp_path)
    last, _ = knn(*flags)
    assert hashes(tmp_path) == before
    out = tmp_path / "out"
    out.mkdir()
    written = ("predictions.csv", "classifier.safetensors")
    for name in written:  # links in a folder of somebody else
        (out / name).symlink_to(tmp_path / "given" / "test.npz")
        partial_path(out / name).symlink_to(tmp_path / "given" / "test.npz")
    again, err = knn(*flags, f"--workdir={out}")
    assert again == last and f"predictions and classifier are in {out}" in err
    assert {name: sha for name, sha in hashes(tmp_path).items() if name[:4] != "out/"} == before
    assert {path.name for path in out.iterdir()} == {*written, "run.lock"}
    rows = read_predictions(out)
    formulas = ["'=1+1.png", "'@a.png"]  # texts to a spreadsheet
    assert [row["path"] for row in rows] == [*formulas, *names[2:]]
    assert [int(row["label"]) for row in rows] == test["label"].tolist()
    assert np.mean([row["predicted"] == row["label"] for row in rows]) == last["knn_top1_k7"]
    bank = load_file(out / "classifier.safetensors")
    assert (bank["k"], bank["temperature"]) == (7, 0.2)
    unit = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in (bank["h"], test["h"])]
    for row, cosine in zip(rows, unit[1] @ unit[0].T, strict=True):
        nearest = np.argsort(-cosine)[:7]
        votes = np.bincount(bank["label"][nearest], np.exp(cosine[nearest] / 0.2), 3)
        assert int(row["predicted"]) == votes.argmax()
        assert float(row["score"]) == pytest.approx(votes.max() / votes.sum(), abs=1e-4)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(*job("knn", *flags, f"--workdir={tmp_path / 'file'}"))


def test_predictions_name_images_and_classes(pretrained, images, tmp_path):
    flags = (f"--config.pretrained={pretrained}", "--config.eval.knn_k=(3,)")
    last, _ = knn(*flags, f"--workdir={tmp_path}")
    rows = read_predictions(tmp_path)
    assert rows[0]["path"] == str(images / "test" / "even" / "000.png") and len(rows) == 24
    assert {row["label"] for row in rows} == {"even", "uneven"}
    assert np.mean([row["predicted"] == row["label"] for row in rows]) == last["knn_top1"]


def test_rows_without_a_label_do_not_vote(tmp_path):
    train, _ = gaussians(tmp_path)
    flags = (f"--config.features={tmp_path}", "--config.eval.knn_k=(5,)")
    before, _ = knn(*flags)
    unknown = {"h": train["h"][:9], "label": np.full(9, -1)}
    np.savez(
        tmp_path / "train.npz", **{key: np.concatenate([unknown[key], train[key]]) for key in train}
    )
    assert knn(*flags)[0] == before


def test_an_untrained_encoder_scores_as_pretraining_has_measured(pretrained):
    common = (f"--config.pretrained={pretrained}", "--config.eval.knn_k=(3,)")
    last, _ = knn(*common, "--config.encoder=untrained")
    baselines = json.loads((pretrained / "baselines.json").read_text())
    assert (last["encoder"], last["step"]) == ("untrained", 0)
    assert last["knn_top1"] == baselines["knn_top1_untrained"]


def test_a_class_without_images_is_refused(tmp_path):
    gaussians(tmp_path / "given", missing=1)
    _, test = gaussians(tmp_path / "whole")
    np.savez(tmp_path / "given" / "test.npz", **test)
    assert "class '1' has no image" in refused(*job("knn", f"--config.features={tmp_path}/given"))


@pytest.mark.parametrize(
    ("group", "key", "value", "said"),
    [
        ("views", "size", "x", "config.json is damaged"),
        ("model", "width", 0, "config.json is damaged"),
        ("model", "width", 8, "is of another network"),
    ],
)
def test_a_damaged_record_is_reported(pretrained, tmp_path, group, key, value, said):
    shutil.copytree(pretrained, tmp_path / "other")
    record = json.loads((pretrained / "config.json").read_text())
    record[group][key] = value
    (tmp_path / "other" / "config.json").write_text(json.dumps(record))
    flags = (f"--config.pretrained={tmp_path / 'other'}", "--config.eval.knn_k=(3,)")
    line = refused(*job("knn", *flags))
    assert said in line and (value == 8 or key in line)
