"""Results of a search of images: figures for programs, a table for people, pictures for both.

An image is named by its path, {"path": ...}, or by its number, {"number": ...}, if not a file.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from gsg_jax.console import UserError, say, shown
from gsg_jax.data.decode import read_photo
from gsg_jax.evaluation.knn import neighbours
from gsg_jax.search.contact_sheet import Picture
from gsg_jax.search.images import Listing
from gsg_jax.search.index import Index
from gsg_jax.search.similar import Groups, nearest_mean, similar_groups

MOST_OF_GROUP = 12  # images of a group of duplicates in table and sheet


class Found(NamedTuple):
    """Results of a search.

    Attributes:
      figures: for the last line.
      table: for people.
      pictures: for the contact sheet, in groups.
    """

    figures: dict[str, Any]
    table: Table
    pictures: list[list[Picture]]


def find_similar(
    images: Listing, index: Index, queries: Sequence[Path], query_h: np.ndarray, k: int
) -> Found:
    """The images of an index that are most similar to others.

    Args:
      images: those of the index, possibly more.
      index: their embeddings.
      queries: files of the other images.
      query_h: their embeddings, [Q, F].
      k: neighbours of each; all of the index if it has fewer.

    Returns:
      Figures k and neighbours: for each query its k nearest, {query, rank, path or number,
      similarity}.

    Raises:
      UserError: if an embedding is not finite.
    """
    k = _at_most(k, len(index.h))
    similarity, rows = _checked(neighbours, index.h, query_h, k)
    table = Table("rank", "similarity", "image", title="most similar")
    figures, pictures = [], []
    for query, of_query, found in zip(queries, similarity, rows, strict=True):
        if len(queries) > 1:
            table.add_row("", "", Text(shown(f"like {query}:")))
        pictures.append([Picture(partial(read_photo, query, 3), "query", query.name, True)])
        entries, of_ranks = _ranked(images, index.id[found], of_query, table)
        figures += [{"query": str(query)} | entry for entry in entries]
        pictures[-1] += of_ranks
    return Found({"k": k, "neighbours": figures}, table, pictures)


def find_outliers(images: Listing, index: Index, k: int, show: int) -> Found:
    """The images that are least similar to their nearest neighbours.

    Args:
      images: those of the index, possibly more.
      index: their embeddings.
      k: neighbours; all if there are fewer.
      show: outliers at most.

    Returns:
      Figures k and outliers: the worst first, {rank, path or number, similarity}, the mean cosine
      of the k nearest.

    Raises:
      UserError: if there is one image, or an embedding is not finite.
    """
    _check_several(images, index)
    k = _at_most(k, len(index.h) - 1)
    similarity = _checked(nearest_mean, index.h, k)
    table = Table("rank", "similarity", "image", title=f"least similar to their {k} nearest")
    rows = np.argsort(similarity, kind="stable")[:show]
    entries, pictures = _ranked(images, index.id[rows], similarity[rows], table)
    return Found({"k": k, "outliers": entries}, table, [pictures])


def _ranked(
    images: Listing, found: np.ndarray, similarity: np.ndarray, table: Table
) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Figures and pictures of images from rank 1 on, with a row of the table for each."""
    entries, pictures = [], []
    for rank, (image, cosine) in enumerate(zip(found, similarity, strict=True), 1):
        entries.append({"rank": rank, **_named(images, image, cosine)})
        said = f"{entries[-1]['similarity']:.4f}"
        table.add_row(str(rank), said, _path(images, image))
        pictures.append(_picture(images, image, f"{rank}   {said}"))
    return entries, pictures


def find_duplicates(images: Listing, index: Index, threshold: float, show: int) -> Found:
    """Images that are nearly the same, and those with the same bytes.

    Args:
      images: those of the index, possibly more.
      index: their embeddings.
      threshold: lowest cosine of two images in one group.
      show: groups in the table and on the sheet, at most; the figures have all.

    Returns:
      Figures threshold, num_groups, num_in_groups, num_copies (images with the bytes of another)
      and groups: the most certain first, {identical, images}; the original of a group first, then
      its copies, then the others by similarity; each image {path or number, similarity (the highest
      to another image), copy_of (the original with the same bytes, or null)}.

    Raises:
      UserError: if there is one image, one can no longer be read, or an embedding is not finite.
    """
    _check_several(images, index)
    found = _checked(similar_groups, index.h, threshold)
    if found.rows and len(found.rows[0]) > len(index.h) / 2:
        say(
            f"warning: one group holds {len(found.rows[0]):,} of the {len(index.h):,} images: give "
            "a higher --threshold; much looks alike to a briefly trained network"
        )
    groups = sorted((_group(images, index, rows, found) for rows in found.rows), key=_uncertainty)
    num_in_groups = sum(len(group.entries) for group in groups)
    copies = sum(image["copy_of"] is not None for group in groups for image in group.entries)
    say(
        f"similarity of {threshold:g} or more: {num_in_groups:,} images in {len(groups):,} groups, "
        f"{copies:,} of them byte-for-byte copies"
    )
    table, pictures = _shown_groups(images, groups[:show])
    if len(groups) > show:
        table.caption = f"the {show} most certain of {len(groups):,} groups; --show=N shows more"
    figures = {
        "threshold": threshold,
        "num_groups": len(groups),
        "num_in_groups": num_in_groups,
        "num_copies": copies,
        "groups": [{"identical": of.is_identical, "images": of.entries} for of in groups],
    }
    return Found(figures, table, pictures)


class _Group(NamedTuple):
    """Duplicates, the original first, then its copies, then the most similar."""

    ids: np.ndarray
    entries: list[dict[str, Any]]  # for the last line
    is_identical: bool  # whether all have the same bytes


def _uncertainty(group: _Group) -> tuple:
    """Sorts copies before what is similar; a group is as certain as its least similar image."""
    return not group.is_identical, -min(image["similarity"] for image in group.entries)


def _shown_groups(images: Listing, groups: Sequence[_Group]) -> tuple[Table, list[list[Picture]]]:
    """Table and pictures of groups, with the first images of each."""
    table, pictures = Table("group", "similarity", "image", title="duplicates"), []
    for number, group in enumerate(groups, 1):
        pictures.append([])
        shown = list(zip(group.ids, group.entries, strict=True))[:MOST_OF_GROUP]
        for place, (image, entry) in enumerate(shown):
            said = f"{entry['similarity']:.4f}" if entry["copy_of"] is None else "copy"
            said = "original" if not place else said
            table.add_row(str(number), said, _path(images, image))
            pictures[-1].append(_picture(images, image, f"group {number}   {said}"))
        if len(group.ids) > MOST_OF_GROUP:
            table.add_row(str(number), "", f"... {len(group.ids) - MOST_OF_GROUP:,} more")
    return table, pictures


def _group(images: Listing, index: Index, rows: np.ndarray, found: Groups) -> _Group:
    """Joined images in their order; copies of a smaller original are placed by similarity."""

    def originality(row: int) -> tuple:  # the larger file, then the older, then the shorter name
        size, time = index.stamp[row].tolist()
        name = str(images.name(index.id[row]))
        return -size, time, len(name), name

    rows = sorted(rows.tolist(), key=originality)
    copy_of = _copies(images, index, rows)

    def place(row: int) -> tuple:
        is_copy = copy_of.get(row) == rows[0]
        return row != rows[0], not is_copy, -found.closest[row], copy_of.get(row, row), row

    rows = sorted(rows, key=place)
    names = {row: images.name(index.id[original]) for row, original in copy_of.items()}
    entries = [
        {**_named(images, index.id[row], found.closest[row]), "copy_of": names.get(row)}
        for row in rows
    ]
    return _Group(index.id[rows], entries, is_identical=len(copy_of) == len(rows) - 1)


def _copies(images: Listing, index: Index, rows: Sequence[int]) -> dict[int, int]:
    """Maps rows to the earlier row with the same bytes; only files of equal size are read."""
    sizes = index.stamp[rows, 0].tolist()
    common = {size for size, count in Counter(sizes).items() if count > 1}
    first, copy_of = {}, {}
    for row, size in zip(rows, sizes, strict=True):
        if size in common:
            original = first.setdefault((size, images.digest(index.id[row])), row)
            if original != row:
                copy_of[row] = original
    return copy_of


def _check_several(images: Listing, index: Index) -> None:
    if len(index.h) < 2:
        raise UserError(f"{images.title} holds one image: give a --folder with two or more")


def _at_most(k: int, most: int) -> int:
    if k > most:
        say(f"--k={k}: there are {most:,} neighbours; using all")
    return min(k, most)


def _checked(search, *arguments):
    """Calls a search; its ValueError (embeddings that are not finite) becomes a UserError."""
    try:
        return search(*arguments)
    except ValueError as error:
        raise UserError(f"the index cannot be searched: {error}") from error


def _named(images: Listing, image: str | int, similarity: float) -> dict[str, Any]:
    """An image for the last line; its cosine is at most 1 despite rounding."""
    kind = "number" if images.root is None else "path"
    return {kind: images.name(image), "similarity": round(float(np.clip(similarity, -1, 1)), 6)}


def _path(images: Listing, image: str | int) -> Text:
    return Text(shown(str(images.name(image))), overflow="fold")


def _picture(images: Listing, image: str | int, caption: str) -> Picture:
    name = f"image {image}" if images.root is None else Path(str(image)).name
    return Picture(partial(images.read, image, 3), caption, name)
