"""An index holds every image that can be decoded, and embeds none that it has already."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.data import decode
from gsg_jax.evaluation.feature_files import read_features
from gsg_jax.evaluation.image_encoder import Preparation
from gsg_jax.run.lock import LOCK, writing
from gsg_jax.search import index as indexes
from gsg_jax.search.images import list_folder
from gsg_jax.search.index import update_index

PREPARE = Preparation(size=8, resize=1.0, channels=3)
ABOUT = {"backbone_digest": "ab", "step": 5}


def save(path, seed, size=(9, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def as_embedded(images):
    """What stands for an encoder: some pixels, as they are."""
    return images.reshape(len(images), -1)[:, ::7].astype(np.float32)


@pytest.fixture
def photos(tmp_path):
    """Ten photographs of three sizes."""
    for n in range(10):
        save(tmp_path / "photos" / f"album {n % 2}" / f"{n}.png", n, (9 + n % 3, 12))
    return tmp_path / "photos"


def updated(photos, tmp_path, about=ABOUT, prepare=PREPARE):
    """The index, and how many images were embedded at once, the padding included."""
    sizes = []

    def embed(images):
        sizes.append(len(images))
        return as_embedded(images)

    path = tmp_path / "search" / "photos.npz"
    return update_index(path, list_folder(photos), embed, prepare, about), sizes


def test_one_process_at_a_time_writes_and_an_index_that_is_whole_needs_no_lock(photos, tmp_path):
    with writing(tmp_path / "search"), pytest.raises(UserError, match="is written by process"):
        updated(photos, tmp_path)
    wanted, _ = updated(photos, tmp_path)
    with writing(tmp_path / "search"):
        found, sizes = updated(photos, tmp_path)
    assert found.id.tolist() == wanted.id.tolist() and not sizes


def assert_holds(index, photos, prepare=PREPARE):
    """Rows of the index are those of the images, one by one."""
    images = list_folder(photos)
    assert index.id.tolist() == images.id.tolist()
    np.testing.assert_array_equal(index.stamp, images.stamp)
    alone = [prepare(images.read(name, prepare.channels)) for name in images.id]
    np.testing.assert_array_equal(index.h, as_embedded(np.stack(alone)))


def test_the_file_is_one_of_features_too(photos, tmp_path):
    index, sizes = updated(photos, tmp_path)
    assert_holds(index, photos)
    assert index.num_embedded == 10 and sum(sizes) == 10
    features = read_features(tmp_path / "search" / "photos.npz")
    np.testing.assert_array_equal(features.h, index.h)
    assert features.id.tolist() == index.id.tolist() and set(features.label) == {-1}
    assert set(os.listdir(tmp_path / "search")) == {"photos.npz", LOCK}
    with np.load(tmp_path / "search" / "photos.npz") as arrays:
        about = json.loads(str(arrays["about"]))
    whose = {"version": indexes.VERSION, "images": str(photos), **ABOUT}
    assert about == whose | {"size": 8, "resize": 1.0, "channels": 3}


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_is_dropped(
    photos, tmp_path, capsys
):
    first, _ = updated(photos, tmp_path)
    before = (tmp_path / "search" / "photos.npz").stat()
    again, sizes = updated(photos, tmp_path)
    assert sizes == [] and again.num_embedded == 0
    np.testing.assert_array_equal(again.h, first.h)
    after = (tmp_path / "search" / "photos.npz").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "10 embeddings, nothing has changed" in capsys.readouterr().err
    save(photos / "a new.png", 100)
    save(photos / "album 0" / "4.png", 101)
    (photos / "album 1" / "7.png").unlink()
    (photos / "album 1" / "9.png").rename(photos / "z.png")
    index, sizes = updated(photos, tmp_path)
    assert_holds(index, photos)
    assert sizes == [3] and index.num_embedded == 3
    assert "3 are new or changed and embedded, 7 are as they were, 2 are gone" in (
        capsys.readouterr().err
    )
    assert updated(photos, tmp_path)[1] == []
    (photos / "album 0" / "0.png").unlink()
    index, sizes = updated(photos, tmp_path)
    assert_holds(index, photos)
    assert sizes == [] and len(read_features(tmp_path / "search" / "photos.npz").h) == 9
    path = photos / "album 0" / "2.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # of the same size
    assert updated(photos, tmp_path)[1] == [1]


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_killed_process_resumes_from_what_it_had(photos, tmp_path, monkeypatch, killed_at):
    monkeypatch.setattr(indexes, "BATCH_SIZE", 3)
    monkeypatch.setattr(indexes, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(indexes, "SAVING_SHARE", 1e9)
    batches = 0

    def dying(images):
        nonlocal batches
        batches += 1
        if batches > killed_at:
            raise KeyboardInterrupt
        return as_embedded(images)

    path = tmp_path / "search" / "photos.npz"
    with pytest.raises(KeyboardInterrupt):
        update_index(path, list_folder(photos), dying, PREPARE, ABOUT)
    index, _ = updated(photos, tmp_path)
    assert index.num_embedded == 10 - 3 * killed_at
    assert_holds(index, photos)


@pytest.mark.parametrize(
    ("about", "prepare", "said"),
    [
        ({"backbone_digest": "cd", "step": 9}, PREPARE, "(step 5 there, 9 here): it is rebuilt"),
        (ABOUT, PREPARE.__class__(8, 1.25, 3), "(resize 1.0 there, 1.25 here): it is rebuilt"),
    ],
)
def test_another_checkpoint_or_preparation_rebuilds_it(
    photos, tmp_path, capsys, about, prepare, said
):
    updated(photos, tmp_path)
    index, sizes = updated(photos, tmp_path, about, prepare)
    assert sum(sizes) == 10 and said in capsys.readouterr().err
    assert_holds(index, photos, prepare)


def flipped(content, mark, behind=0):
    """The same bytes but for one, so far behind a mark."""
    place = content.index(mark) + behind
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(flipped(path.read_bytes(), b"'<f4'", 200)),
        lambda path: np.savez(
            path, h=np.ones((3, 2)), label=np.ones(3, int), stamp=np.ones(3), about="{}"
        ),
        lambda path: np.savez(path, **{**np.load(path), "about": "[" * 100_000}),
        lambda path: np.savez(path, **{**np.load(path), "broken": '[["a.png", 1e999, 1]]'}),
    ],
)
def test_a_damaged_file_is_rebuilt(photos, tmp_path, capsys, damage):
    updated(photos, tmp_path)
    damage(tmp_path / "search" / "photos.npz")
    index, _ = updated(photos, tmp_path)
    assert index.num_embedded == 10 and "photos.npz is damaged" in capsys.readouterr().err
    assert_holds(index, photos)


def test_broken_files_are_named_left_out_and_tried_again_when_they_change(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(indexes, "BATCH_SIZE", 4)
    broken = photos / "album 0" / "4.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (photos / "last.jpg").write_bytes(b"no image")
    os.symlink("nowhere", photos / "link.png")
    index, _ = updated(photos, tmp_path)
    told = capsys.readouterr().err
    assert "3 of the 12 images" in told
    texts = [
        f"{photos}/link.png (not a file)",
        f"{photos}/last.jpg (not an image, or of another format)",
        f"{broken} (image file is truncated",
    ]
    listed = (tmp_path / "search" / "photos.left_out.txt").read_text().splitlines()
    for text, line in zip(texts, listed, strict=True):
        assert text in told and line.startswith(text)
    names = [name for name in list_folder(photos).id if name not in ("album 0/4.png", "last.jpg")]
    assert index.id.tolist() == names and index.num_embedded == 9
    again, sizes = updated(photos, tmp_path)
    np.testing.assert_array_equal(again.h, index.h)
    told = capsys.readouterr().err
    assert sizes == [] and "9 embeddings, nothing has changed" in told and " new" not in told
    assert "3 of the 12 images" in told and all(text in told for text in texts)
    save(photos / "another.png", 77)
    updated(photos, tmp_path)
    assert "1 are new or changed and embedded, 9 are as they were" in capsys.readouterr().err
    (photos / "another.png").unlink()
    broken.write_bytes(whole)
    (photos / "last.jpg").unlink()
    (photos / "link.png").unlink()
    assert_holds(updated(photos, tmp_path)[0], photos)
    assert set(os.listdir(tmp_path / "search")) == {"photos.npz", LOCK}


def test_a_file_that_is_too_large_for_the_memory_is_named_and_tried_again(
    photos, tmp_path, monkeypatch, capsys
):
    large, plain = photos / "album 1" / "3.png", decode.image_pixels

    def pixels(image, **options):
        if image.filename == str(large):
            raise MemoryError
        return plain(image, **options)

    with monkeypatch.context() as patched:
        patched.setattr(decode, "image_pixels", pixels)
        index, _ = updated(photos, tmp_path)
    assert len(index.h) == 9 and not index.broken
    assert f"{large} (not enough memory)" in capsys.readouterr().err
    assert_holds(updated(photos, tmp_path)[0], photos)


def test_a_file_that_cannot_be_opened_is_tried_again(photos, tmp_path, monkeypatch):
    locked, images = "album 1/3.png", list_folder(photos)

    def refuse(name, channels):
        if name == locked:
            raise UserError("cannot decode") from PermissionError(13, "Permission denied")
        return images.read(name, channels)

    path = tmp_path / "search" / "photos.npz"
    index = update_index(path, images._replace(read=refuse), as_embedded, PREPARE, ABOUT)
    assert locked not in index.id and not index.broken
    assert_holds(updated(photos, tmp_path)[0], photos)


def test_a_folder_of_nothing_but_broken_files_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images can be decoded: give .*webp .gif"):
        updated(tmp_path / "photos", tmp_path)
    assert os.listdir(tmp_path / "search") == [LOCK]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (8, 40), (50, 10), (3, 2)])
def test_every_size_becomes_the_square_of_the_network_and_one_that_has_it_stays(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    square = PREPARE(pixels)
    assert square.shape == (8, 8, 3)
    if (height, width) == (8, 8):
        np.testing.assert_array_equal(square, pixels)
    elif height == 8:
        np.testing.assert_array_equal(square, pixels[:, 16:24])  # the ends of the long side go
