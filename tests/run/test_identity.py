"""A run resumes with the images and the settings that it began with, or says what differs."""

import json
import os

import jax
import numpy as np
import pytest

from gsg_jax.config.load import as_json, differences
from gsg_jax.console import UserError
from gsg_jax.data.open import ArraySource, open_source
from gsg_jax.run.identity import IDENTITY, check_identity, identity
from tests.runs import write_images
from tests.small import data_config, save_image, small_config


def of(folder):
    data = data_config("folder", folder)
    sources = {split: open_source(data, split) for split in ("train", "test")}
    return identity(sources, str(folder))


def refusal(workdir, now):
    with pytest.raises(UserError) as error:
        check_identity(workdir, now, may_differ=False)
    assert "\n" not in str(error.value) and "--config.run.accept_changes=true" in str(error.value)
    return str(error.value)


def differs(workdir, now):
    """The keys that are said to differ."""
    said = refusal(workdir, now).partition(f"in {workdir}: ")[2].partition(": bring")[0]
    return {part.partition(" ")[0] for part in said.split("; ")}


@pytest.fixture
def begun(tmp_path):
    """A folder of images, and a workdir of a run that began with it."""
    folder = write_images(tmp_path / "images", 6, 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / IDENTITY).write_text(json.dumps(of(folder)))
    check_identity(tmp_path / "run", of(folder), may_differ=False)
    return folder, tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: save_image(f / "train/even/new.png"), {"count", "names", "sizes", "labels"}),
        (lambda f: (f / "train/even/002.png").unlink(), {"count", "names", "sizes", "labels"}),
        (lambda f: (f / "train/even/002.png").rename(f / "train/even/0021.png"), {"names"}),
        (lambda f: save_image(f / "train/even/002.png", size=(90, 90)), {"sizes"}),
        (
            lambda f: (f / "train/even/002.png").rename(f / "train/uneven/002.png"),
            {"names", "sizes", "labels"},
        ),
        (lambda f: (f / "train/even").rename(f / "train/eves"), {"names", "classes"}),
    ],
)
def test_a_changed_folder_is_refused_and_what_differs_is_named(begun, change, told, capsys):
    folder, workdir = begun
    change(folder)
    if "classes" in told:
        (folder / "test/even").rename(folder / "test/eves")
    now = of(folder)
    found = {key for key in differs(workdir, now) if key.startswith("train.")}
    assert found == {f"train.{key}" for key in told}
    check_identity(workdir, now, may_differ=True)
    assert capsys.readouterr().err.startswith("warning: the images or JAX's settings are not")


def test_another_test_set_is_another_runs_figures(begun):
    folder, workdir = begun
    save_image(folder / "test/even/new.png")
    said = refusal(workdir, of(folder))
    assert "test.count (4 there, 5 here)" in said and "train." not in said


def test_a_folder_that_moves_or_is_written_otherwise_is_the_same(begun, tmp_path, monkeypatch):
    folder, workdir = begun
    folder.rename(tmp_path / "moved")
    check_identity(workdir, of(tmp_path / "moved"), may_differ=False)
    monkeypatch.chdir(tmp_path)
    for path in ("moved", "moved/", "./moved", f"{tmp_path}//moved/."):
        check_identity(workdir, of(path), may_differ=False)
    (tmp_path / "link").symlink_to("moved")
    config, record = small_config("byol"), small_config("byol")
    record.data.dir = "moved"
    recorded = json.loads(as_json(record))
    for path in ("moved/", "./moved", f"{tmp_path}/moved", "link"):
        config.data.dir = path
        assert not differences(config, recorded)
    config.data.dir = "link/train"
    assert differences(config, recorded) == ["data.dir (moved there, link/train here)"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_default_matmul_precision", "bfloat16"),
    ],
)
def test_settings_of_jax_that_change_the_numbers_are_named(begun, name, value):
    folder, workdir = begun
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        now = of(folder)
    finally:
        jax.config.update(name, before)
    assert refusal(workdir, now).count(f"jax.{name} ({before} there, {value} here)") == 1


def test_images_without_files_are_told_apart_by_their_pixels_and_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 1), np.uint8)
    labels = np.array([0, 1, 0], np.int32)
    first = identity({"train": ArraySource("a", pixels, labels, ("x", "y"))}, "")
    assert first == identity({"train": ArraySource("b", pixels, labels, ("x", "y"))}, "")
    other = pixels.copy()
    other[2, 4, 3, 0] ^= 1
    changed = identity({"train": ArraySource("a", other, labels, ("x", "y"))}, "")
    assert {k for k in changed["train"] if changed["train"][k] != first["train"][k]} == {"pixels"}
    changed = identity({"train": ArraySource("a", pixels, 1 - labels, ("x", "y"))}, "")
    assert {k for k in changed["train"] if changed["train"][k] != first["train"][k]} == {"labels"}


def test_a_run_of_an_earlier_version_resumes_without_an_identity(tmp_path):
    check_identity(tmp_path, of(write_images(tmp_path / "images", 4, 2)), may_differ=False)
    assert os.listdir(tmp_path) == ["images"]
