"""The pictures of a report: sheets of thumbnails for the map, single images, views of an image."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image

from gsg_jax.config.check import view_recipe
from gsg_jax.data.augment import make_local_views, make_views
from gsg_jax.data.open import Source
from gsg_jax.data.source import num_decode_threads
from gsg_jax.report.thumbnails import data_uri, sheet, thumbnail

COLUMNS, ROWS = 32, 32  # thumbnails of one sheet
SHEET_CHARACTERS = 4_000_000  # of all sheets together
QUALITIES = (80, 60, 40, 20)  # of WebP, tried until the sheets fit
IMAGE_SIDE = 72  # pixels of an image in the gallery
LARGEST_SIDE = 512  # of an image that views are drawn of, pixels
NUM_VIEWS = 16


class Sheets(NamedTuple):
    """Thumbnails of many images.

    Attributes:
      uris: of the sheets, ROWS x COLUMNS thumbnails each, in the order of the images.
      side: of a thumbnail, pixels.
      num: images that have one; they are the first.
    """

    uris: list[str]
    side: int
    num: int


def thumbnail_sheets(source: Source, limit: int = SHEET_CHARACTERS) -> Sheets:
    """Makes a thumbnail of every image, as good as fits.

    Args:
      source: the images.
      limit: characters of all sheets together; where the lowest quality is above it, the images
        at the end go without.

    Returns:
      The sheets.
    """
    side = _side(source)
    thumbnails = list(_thumbnails(source, range(len(source)), side))
    size = ROWS * COLUMNS
    sheets = [
        sheet(thumbnails[start : start + size], COLUMNS)
        for start in range(0, len(thumbnails), size)
    ]
    for quality in QUALITIES:
        uris = [data_uri(pixels, quality) for pixels in sheets]
        if sum(map(len, uris)) <= limit:
            break
    kept = int(np.searchsorted(np.cumsum([len(uri) for uri in uris]), limit, side="right"))
    return Sheets(uris[:kept], side, min(len(source), kept * size))


def image_uris(source: Source, rows: Iterable[int]) -> dict[int, str]:
    """Single images, for a page.

    Args:
      source: the images.
      rows: which of them.

    Returns:
      {row: text for the src of a picture}.
    """
    rows = sorted(set(map(int, rows)))
    side = min(IMAGE_SIDE, _longest(source))
    pictures = _thumbnails(source, rows, side)
    return {row: data_uri(pixels, 85) for row, pixels in zip(rows, pictures, strict=True)}


class View(NamedTuple):
    """A picture of the augmentation sheet.

    Attributes:
      name: "image", "view 1", "local view 1".
      uri: text for the src of a picture.
    """

    name: str
    uri: str


def augmentation_sheet(image: np.ndarray, config: ml_collections.ConfigDict) -> list[View]:
    """An image, and views of it as a run draws them.

    Args:
      image: uint8 [H, W, C].
      config: of the run; reads views, data.crop and run.seed.

    Returns:
      The image, NUM_VIEWS global views, and as many local ones as the run draws of an image.
    """
    image = _at_most(image, LARGEST_SIDE)
    recipe = view_recipe(config.views)
    keys = jax.random.split(jax.random.key(config.run.seed))
    draw = jax.jit(make_views, static_argnums=(2, 3))
    views = draw(image[None], keys[0], recipe, NUM_VIEWS)
    shown = [View("image", data_uri(thumbnail(image, min(160, max(image.shape[:2])))))]
    shown += [View(f"view {n}", _view_uri(v, recipe)) for n, v in enumerate(np.asarray(views), 1)]
    if recipe.num_local:
        local = jax.jit(partial(make_local_views, recipe=recipe, first_number=0))
        views = np.asarray(local(image[None], keys[1]))
        shown += [View(f"local view {n}", _view_uri(v, recipe)) for n, v in enumerate(views, 1)]
    return shown


def _view_uri(view: np.ndarray, recipe) -> str:
    """A normalised view [size, size, C] as colours again."""
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    colours = view * std[None, None] + mean[None, None]
    pixels = np.round(255 * colours.clip(0, 1)).astype(np.uint8)
    return data_uri(thumbnail(pixels, min(128, len(pixels))))


def _side(source: Source) -> int:
    """Of the map's thumbnails: smaller where there are many."""
    return min(48 if len(source) <= 2500 else 32, _longest(source))


def _longest(source: Source) -> int:
    """The longest side of some images, pixels."""
    some = np.linspace(0, len(source) - 1, min(len(source), 16)).round().astype(int)
    return max(max(source.image(int(row)).shape[:2]) for row in some)


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """An image [H, W, C] whose longest side is at most so many pixels, in its own proportions."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((width, height))).reshape(height, width, -1)


def _thumbnails(source: Source, rows: Iterable[int], side: int) -> Iterable[np.ndarray]:
    with ThreadPoolExecutor(num_decode_threads()) as pool:
        yield from pool.map(lambda row: thumbnail(source.image(row), side), rows)
