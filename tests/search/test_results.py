"""What a search finds is what a plain loop over all pairs finds, by the names of the images."""

import os

import numpy as np
import pytest
from PIL import Image

from gsg_jax.console import UserError
from gsg_jax.search.images import list_folder
from gsg_jax.search.index import Index
from gsg_jax.search.results import MOST_OF_GROUP, find_duplicates, find_outliers, find_similar

NUM = 30


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images; 4 and 20 are one file twice, 21 has as many bytes and others."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(NUM):
        Image.new("RGB", (8, 8), (n, 2 * n, 255 - n)).save(folder / f"{n:02}.bmp.png", "BMP")
    (folder / "20.bmp.png").write_bytes((folder / "04.bmp.png").read_bytes())
    return list_folder(folder)


def indexed(images, seed=0, width=7):
    h = np.random.default_rng(seed).normal(size=(len(images.id), width)).astype(np.float32)
    h[20] = 3 * h[4]
    h[21] = h[4] + np.float32(1e-2)
    return Index(h, images.id, images.stamp.copy())


def cosines_of(h, query):
    h, query = np.asarray(h, np.float64), np.asarray(query, np.float64)
    return query @ h.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(h, axis=1)[None, :]


def captions(found):
    return [[(picture.caption, picture.name) for picture in group] for group in found.pictures]


def test_neighbours_are_those_of_the_highest_cosines_in_their_order(photos, tmp_path):
    index = indexed(photos)
    index.h[20] += 1  # equal cosines come in no fixed order
    queries = [tmp_path / "x.png", tmp_path / "y.png"]
    query_h = np.random.default_rng(100).normal(size=(2, 7)).astype(np.float32)
    found = find_similar(photos, index, queries, query_h, 6)
    expected = []
    for query, cosines in zip(queries, cosines_of(index.h, query_h), strict=True):
        order = np.argsort(-cosines)[:6]
        expected += [
            (str(query), rank, photos.name(photos.id[row]), pytest.approx(cosines[row], abs=2e-6))
            for rank, row in enumerate(order, 1)
        ]
    keys = ("query", "rank", "path", "similarity")
    assert [tuple(entry[key] for key in keys) for entry in found.figures["neighbours"]] == expected
    best = found.figures["neighbours"][6]
    assert captions(found)[1][:2] == [
        ("query", "y.png"),
        (f"1   {best['similarity']:.4f}", best["path"].rpartition("/")[2]),
    ]
    assert [picture.is_framed for picture in found.pictures[0]] == [True] + 6 * [False]


def test_more_neighbours_than_there_are_images_are_all_of_them(photos, capsys):
    index = indexed(photos)
    found = find_similar(photos, index, [photos.root / "00.bmp.png"], index.h[:1], 50)
    assert found.figures["k"] == NUM == len(found.figures["neighbours"])
    assert "--k=50: there are 30 neighbours; using all" in capsys.readouterr().err
    assert found.figures["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("k", [4, 99])
def test_outliers_are_those_of_the_lowest_mean_cosine_the_worst_first(photos, k):
    index = indexed(photos, seed=k)
    cosines = cosines_of(index.h, index.h)
    np.fill_diagonal(cosines, -np.inf)
    near = np.sort(cosines, axis=1)[:, ::-1][:, : min(k, NUM - 1)].mean(axis=1)
    found = find_outliers(photos, index, k, 8)
    order = np.argsort(near, kind="stable")[:8]
    told = found.figures["outliers"]
    assert [entry["path"] for entry in told] == [photos.name(photos.id[row]) for row in order]
    np.testing.assert_allclose([e["similarity"] for e in told], near[order], atol=3e-6)
    assert found.figures["k"] == min(k, NUM - 1)
    assert captions(found)[0][0] == (f"1   {near[order[0]]:.4f}", photos.id[order[0]])


def test_duplicates_are_told_with_what_is_a_copy_byte_for_byte(photos, capsys):
    index = indexed(photos)
    index.h[[8, 9]] = [[1, 0, 0, 0, 0, 0, 0], [1, 0.02, 0, 0, 0, 0, 0]]
    found = find_duplicates(photos, index, 0.9995, 20)
    figures, cosines = found.figures, cosines_of(index.h, index.h)
    first, second = figures["groups"]
    names = [photos.name(photos.id[row]) for row in (4, 20, 21, 8, 9)]
    assert [image["path"] for image in first["images"] + second["images"]] == names
    assert [image["copy_of"] for image in first["images"]] == [None, names[0], None]
    similar = [image["similarity"] for image in first["images"] + second["images"]]
    near = [cosines[4, 20], cosines[4, 20], cosines[4, 21], cosines[8, 9], cosines[8, 9]]
    np.testing.assert_allclose(similar, near, atol=3e-6)
    assert not first["identical"] and not second["identical"]
    assert (figures["num_groups"], figures["num_in_groups"], figures["num_copies"]) == (2, 5, 1)
    assert captions(found)[0][1] == ("group 1   copy", "20.bmp.png")
    assert "5 images in 2 groups, 1 of them byte-for-byte copies" in capsys.readouterr().err
    index.h[21] = -index.h[4]
    (group,) = find_duplicates(photos, index, 0.99999, 20).figures["groups"]
    assert group["identical"] and len(group["images"]) == 2  # nothing but copies


def test_groups_come_by_certainty_and_begin_with_the_largest_oldest_shortest_file(tmp_path):
    rng = np.random.default_rng(0)
    made = ("pair/big.png", "pair/a.png", "four/old.png", "four/copy of it.png", "four/it.png")
    made += ("four/like.png", "copies/a long name.png", "copies/b.png", "alone.png")
    for number, name in enumerate(made):
        side = 40 if name == "pair/big.png" else 8
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    for name, of in ((made[3], made[2]), (made[4], made[2]), (made[7], made[6])):
        (tmp_path / name).write_bytes((tmp_path / of).read_bytes())
        os.utime(tmp_path / name, (2000, 2000))
    os.utime(tmp_path / made[6], (2000, 2000))  # as old as its copy, whose name is shorter
    (tmp_path / made[5]).write_bytes((tmp_path / made[2]).read_bytes()[:-12])  # a smaller file
    images = list_folder(tmp_path)
    at = {name: row for row, name in enumerate(images.id)}
    h = np.eye(len(made), dtype=np.float32)
    for name, like, cosine in (
        ("pair/a.png", "pair/big.png", 0.999),
        ("four/copy of it.png", "four/old.png", 1),
        ("four/it.png", "four/old.png", 1),
        ("four/like.png", "four/old.png", 0.99),
        ("copies/b.png", "copies/a long name.png", 1),
    ):
        h[at[name]] = cosine * h[at[like]] + np.sqrt(1 - cosine**2) * h[at[name]]
    groups = find_duplicates(images, Index(h, images.id, images.stamp), 0.98, 20).figures["groups"]
    listed = [
        [
            (image["path"].removeprefix(f"{tmp_path}/"), image["copy_of"] is not None)
            for image in group["images"]
        ]
        for group in groups
    ]
    assert listed == [
        [("copies/b.png", False), ("copies/a long name.png", True)],
        [("pair/big.png", False), ("pair/a.png", False)],
        [
            ("four/old.png", False),
            *(("four/copy of it.png", True), ("four/it.png", True)),
            ("four/like.png", False),
        ],
    ]
    assert [group["identical"] for group in groups] == [True, False, False]


def test_what_is_shown_has_a_limit_and_what_is_told_has_none(photos, capsys):
    index = indexed(photos)
    found = find_duplicates(photos, index._replace(h=np.eye(NUM, dtype=np.float32)), 0.5, 20)
    assert found.pictures == [] and found.figures["groups"] == []
    pairs = np.repeat(np.eye(NUM // 2, dtype=np.float32), 2, axis=0)
    found = find_duplicates(photos, index._replace(h=pairs), 0.9, 3)
    assert len(found.pictures) == 3 and found.figures["num_groups"] == NUM // 2
    assert "the 3 most certain of 15 groups" in found.table.caption
    alike = np.ones((NUM, 2), np.float32)
    found = find_duplicates(photos, index._replace(h=alike), 0.9, 20)
    assert "one group holds 30 of the 30 images: give a higher --threshold" in (
        capsys.readouterr().err
    )
    assert len(found.pictures[0]) == MOST_OF_GROUP
    assert len(found.figures["groups"][0]["images"]) == NUM


def test_one_image_has_no_others(photos):
    one = Index(np.ones((1, 2), np.float32), photos.id[:1], photos.stamp[:1])
    with pytest.raises(UserError, match="holds one image"):
        find_outliers(photos, one, 3, 5)
    with pytest.raises(UserError, match="holds one image"):
        find_duplicates(photos, one, 0.9, 5)
    found = find_similar(photos, one, [photos.root / "00.bmp.png"], one.h, 5)
    assert len(found.figures["neighbours"]) == 1


def test_embeddings_that_are_not_finite_are_told_in_one_line(photos):
    index = indexed(photos)
    index.h[3, 2] = np.nan
    for find in (
        lambda: find_outliers(photos, index, 3, 5),
        lambda: find_duplicates(photos, index, 0.9, 5),
        lambda: find_similar(photos, index, [photos.root / "00.bmp.png"], index.h[:1], 5),
    ):
        with pytest.raises(UserError, match="has the encoder diverged"):
            find()
