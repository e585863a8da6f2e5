"""A file is listed once, under its own name, whatever links lead to it."""

import contextlib
import os

import pytest

from gsg_jax.console import UserError
from gsg_jax.data import decode as decoding
from gsg_jax.data.files import list_images
from gsg_jax.search.images import list_folder, list_training_images
from tests.data.test_sources import opened
from tests.small import data_config
from tests.small import save_image as save


@pytest.fixture
def photos(tmp_path):
    """Three photographs, and what links to them and away."""
    for name in ("m.jpg", "z1.jpg", "trip/b.png"):
        save(tmp_path / "photos" / name)
    save(tmp_path / "outside" / "o.png")
    save(tmp_path / "outside" / "deep" / "p.png")
    return tmp_path / "photos"


def test_real_files_are_originals_and_no_link_is_another_image(photos):
    (photos / "cover.jpg").symlink_to("z1.jpg")  # before z1.jpg by name
    (photos / "a").symlink_to("trip")
    (photos / "self").symlink_to(".")
    (photos / "trip" / "up").symlink_to("..")
    os.link(photos / "m.jpg", photos / "trip" / "a.jpg")
    listed = list_images(photos)
    assert listed.names == ["m.jpg", "z1.jpg", "trip/b.png"]
    assert listed.num_same == 5 and listed.links_out == []
    assert list_folder(photos).id.tolist() == listed.names
    assert len(opened(photos / "..", follow_links=False)) == 5  # with outside/


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_that_lead_out_are_followed_only_if_the_user_says_so(photos, follow_links, capsys):
    (photos / "l.png").symlink_to("../outside/o.png")
    (photos / "n.png").symlink_to("../outside/o.png")  # the same file again
    (photos / "others").symlink_to("../outside")
    (photos / "top").symlink_to("..")  # holds the folder itself
    listed = list_images(photos, follow_links=follow_links)
    inside = ["m.jpg", "z1.jpg", "trip/b.png"]
    if follow_links:
        assert listed.names == ["l.png", *inside[:2], "others/deep/p.png", inside[2]]
        assert listed.links_out == []
    else:
        assert listed.names == inside
        assert listed.links_out == ["l.png", "n.png", "others", "top"]
    said = capsys.readouterr().err
    assert list_folder(photos, follow_links=follow_links).id.tolist() == listed.names
    said = capsys.readouterr().err
    assert ("4 links lead out of the folder (--follow_links follows them)" in said) != follow_links


def test_a_run_follows_links_by_its_key_and_warns_otherwise(photos, capsys):
    (photos / "trip" / "l.png").symlink_to("../../outside/o.png")
    (photos / "m.jpg").rename(photos / "trip" / "m.jpg")
    (photos / "z1.jpg").rename(photos / "trip" / "z1.jpg")
    assert len(opened(photos)) == 3
    said = capsys.readouterr().err
    assert "1 links" in said and "trip/l.png; --config.data.follow_links=true" in said
    assert len(opened(photos, follow_links=True)) == 4 and not capsys.readouterr().err
    for follow_links, count in ((False, 3), (True, 4)):
        data = data_config("folder", photos, follow_links=follow_links)
        assert len(list_training_images(data).id) == count


def test_a_link_within_the_data_set_is_followed_and_a_split_that_leads_out_is_refused(photos):
    save(photos / "train" / "x" / "1.png")
    (photos / "train" / "x" / "2.png").symlink_to("../../.store/two")
    save(photos / ".store" / "two.png")  # hidden, as git-annex does, so that only the link shows it
    (photos / ".store" / "two.png").rename(photos / ".store" / "two")
    (photos / "val").symlink_to("../outside")
    for name in ("m.jpg", "z1.jpg"):
        (photos / name).unlink()
    with pytest.raises(UserError, match="val leads out of the folder: set --config.data.follow"):
        opened(photos)
    assert len(opened(photos, follow_links=True)) == 2
    (photos / "val").unlink()
    (photos / "val").symlink_to("train")
    assert len(opened(photos)) == len(opened(photos, "test")) == 2


def test_a_folder_of_links_alone_is_refused_with_the_flag_that_follows_them(photos, capsys):
    links = photos / "links"
    links.mkdir()
    (links / "m.jpg").symlink_to("../m.jpg")
    with pytest.raises(UserError, match="no usable image"):
        opened(links)
    assert "--config.data.follow_links=true" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 links lead out of the folder"):
        list_folder(links)


def test_every_format_is_read_by_folder_and_search_and_others_are_counted(tmp_path, capsys):
    formats = {".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".jfif": "JPEG"}
    formats |= {".JPE": "JPEG", ".ppm": "PPM", ".avif": "AVIF"}
    for extension, name in formats.items():
        save(tmp_path / f"a{extension}", format=name)
    for name in ("a.mov", "b.MOV", "c.txt", "README"):
        (tmp_path / name).write_text("no image")
    if ".avif" not in decoding.extensions():
        del formats[".avif"]
    source = opened(tmp_path)
    assert len(source) == len(formats)
    assert all(source.image(n).shape == (4, 6, 3) for n in range(len(source)))
    (note,) = source.notes
    assert note.startswith("ignored: 2 .mov, ") and "1 .txt" in note
    assert "1 without extension" in note
    assert len(list_folder(tmp_path).id) == len(formats)
    assert "ignored 2 .mov" in capsys.readouterr().err


@pytest.fixture
def without_heif(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    decoding.readable_formats.cache_clear()
    yield
    decoding.readable_formats.cache_clear()


def test_heic_without_its_reader_is_counted_with_the_command_that_installs_it(
    tmp_path, without_heif
):
    save(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC"):
        (tmp_path / name).write_bytes(b"no reader looks at it")
    assert opened(tmp_path).notes == ("ignored: 2 .heic (pip install 'gsg_jax[heif]' reads .heic)",)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"found 2 \.heic \(pip install 'gsg_jax\[heif\]'"):
        opened(tmp_path)


@pytest.mark.extended
def test_heic_is_read_with_its_reader(tmp_path):
    pytest.importorskip("pillow_heif")
    decoding.readable_formats()
    save(tmp_path / "a.heic", (200, 100, 50), size=(64, 48), format="HEIF", quality=95)
    source = opened(tmp_path)
    pixels = source.image(0)
    assert pixels.shape == (48, 64, 3) and abs(pixels.astype(int) - (200, 100, 50)).max() < 8
    assert decoding.header_shape(tmp_path / "a.heic") == (48, 64, 3)


def test_a_file_is_what_its_own_numbers_say_and_not_what_its_folder_lists(photos, monkeypatch):
    (photos / "cover.jpg").symlink_to("z1.jpg")

    class Entry:  # of FUSE, whose listings have one number for all; those of overlays differ, too
        def __init__(self, entry):
            self._entry = entry

        def __getattr__(self, name):
            return getattr(self._entry, name)

        def inode(self):
            return -1

    scandir = os.scandir
    entries = lambda folder: contextlib.nullcontext([Entry(x) for x in scandir(folder)])  # noqa: E731
    monkeypatch.setattr(os, "scandir", entries)
    listed = list_images(photos)
    assert listed.names == ["m.jpg", "z1.jpg", "trip/b.png"] and listed.num_same == 1
