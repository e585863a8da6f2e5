"""Images to be searched are listed by their names alone, and read as they were trained on."""

import os

import pytest

from gsg_jax.config.recipes import pretraining
from gsg_jax.console import UserError
from gsg_jax.search import images as listing
from tests.small import save_image as save


def test_images_are_listed_however_they_are_filed_and_none_is_opened(tmp_path, monkeypatch):
    for name in ("b.JPG", "a.png", "trip/c.webp", "trip/deeper/d.jpeg"):
        save(tmp_path / name)
    for name in (".hidden/e.png", ".f.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    os.symlink(tmp_path / "nowhere", tmp_path / "lost.png")
    os.mkfifo(tmp_path / "pipe.png")

    def refuse(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(listing, "read_photo", refuse)
    images = listing.list_folder(tmp_path)
    assert images.id.tolist() == ["a.png", "b.JPG", "trip/c.webp", "trip/deeper/d.jpeg"]
    found = (tmp_path / "trip" / "c.webp").stat()
    assert images.stamp[2].tolist() == [found.st_size, found.st_mtime_ns]
    assert images.not_files == (tmp_path / "lost.png", tmp_path / "pipe.png")
    assert images.name(images.id[2]) == str(tmp_path / "trip" / "c.webp")


def test_one_folder_has_one_key_however_it_is_reached(tmp_path, monkeypatch):
    save(tmp_path / "photos" / "a.png")
    os.symlink(tmp_path / "photos", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    keys = {
        listing.list_folder(folder).key
        for folder in (tmp_path / "photos", tmp_path / "link", tmp_path / "link" / ".." / "photos")
    }
    assert keys == {str(tmp_path / "photos")}


def test_digests_tell_bytes_apart_and_not_names(tmp_path):
    for name, colour in (("a.png", (1, 2, 3)), ("b.png", (1, 2, 3)), ("c.png", (1, 2, 4))):
        save(tmp_path / name, colour)
    images = listing.list_folder(tmp_path)
    a, b, c = (images.digest(name) for name in images.id)
    assert a == b != c
    (tmp_path / "c.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*c\.png"):
        images.digest("c.png")


def test_a_run_on_a_folder_lists_its_training_images(tmp_path):
    for name in ("train/x/a.png", "train/y/b.png", "test/x/c.png"):
        save(tmp_path / name)
    data = pretraining("folder").data
    data.dir = str(tmp_path)
    images = listing.list_training_images(data)
    assert images.root == tmp_path / "train" and images.id.tolist() == ["x/a.png", "y/b.png"]
