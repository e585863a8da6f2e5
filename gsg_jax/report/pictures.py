"""Pictures of a report: thumbnails, sheets of them, single images and views of an image."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image

from gsg_jax.config.load import view_recipe
from gsg_jax.data.augment import make_local_views, make_views
from gsg_jax.data.open import Source
from gsg_jax.data.source import BrokenImage, num_decode_threads

BACKGROUND = (127, 127, 127)  # beside an image that is not square, in light and in dark
COLUMNS, ROWS = 32, 32  # thumbnails of one sheet
SHEET_CHARACTERS = 4_000_000  # of all sheets together
SHEET_PIXELS = 12_800_000  # of all sheets together: 500 photographs, or more that are smaller
QUALITIES = (80, 60, 40, 20)  # of WebP, tried until the sheets fit
PHOTO_SIDE = 160  # pixels of a photograph on the map and in the gallery
SMALL_SIDE = 96  # images below this are shown pixel by pixel
LARGEST_SIDE = 512  # pixels of the image that views are drawn from
NUM_VIEWS = 16

_draw = jax.jit(make_views, static_argnums=(2, 3))
_draw_local = jax.jit(make_local_views, static_argnums=(2, 3))


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Fits a whole image into a square and keeps its proportions.

    Args:
      image: uint8 [H, W, C], C 1 or 3.
      side: of the square, pixels.

    Returns:
      uint8 [side, side, 3].
    """
    picture, square = fitted(image, side), Image.new("RGB", (side, side), BACKGROUND)
    square.paste(picture, tuple((side - length) // 2 for length in picture.size))
    return np.asarray(square)


def fitted(image: np.ndarray, side: int) -> Image.Image:
    """Scales an image, uint8 [H, W, C], so that its long side is `side` pixels."""
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert("RGB")
    scale = side / max(picture.size)
    size = tuple(max(1, round(scale * length)) for length in picture.size)
    # An enlarged image keeps its pixels; in a smaller one each pixel is a mean.
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, kind)


def filled(image: np.ndarray, side: int) -> np.ndarray:
    """Fills a square, uint8 [side, side, 3], with the middle of an image, uint8 [H, W, C]."""
    length = min(image.shape[:2])
    top, left = ((size - length) // 2 for size in image.shape[:2])
    return thumbnail(image[top : top + length, left : left + length], side)


def sheet(thumbnails: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays out thumbnails in rows, in their order.

    Args:
      thumbnails: one or more, uint8 [side, side, 3] each.
      columns: in a row.

    Returns:
      uint8 [rows x side, columns x side, 3], grey after the end of the last row.
    """
    side = len(thumbnails[0])
    rows = -(-len(thumbnails) // columns)
    laid = np.full((rows, side, columns, side, 3), BACKGROUND, np.uint8)
    for place, pixels in enumerate(thumbnails):
        laid[place // columns, :, place % columns] = pixels
    return laid.reshape(rows * side, columns * side, 3)


def data_uri(pixels: np.ndarray, quality: int = 80) -> str:
    """Encodes an image as text for the src of a page's picture.

    Args:
      pixels: uint8 [H, W, 3], neither side above 16,383.
      quality: of WebP, from 0 to 100.

    Returns:
      "data:image/webp;base64,..."
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


class Sheets(NamedTuple):
    """Thumbnails of many images.

    Attributes:
      uris: of the sheets, ROWS x COLUMNS thumbnails each, in the order of the images.
      side: of a thumbnail, pixels.
      num: number of images that have a thumbnail; they are the first.
    """

    uris: list[str]
    side: int
    num: int


def thumbnail_sheets(source: Source, limit: int = SHEET_CHARACTERS) -> Sheets:
    """Makes a thumbnail of every image, in the best quality that fits.

    Args:
      source: the images.
      limit: characters of all sheets together; if even the lowest quality exceeds it, the last
        images get no thumbnail.

    Returns:
      The sheets.
    """
    side = thumbnail_side(source)
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


def thumbnail_side(source: Source) -> int:
    """The side of the thumbnails, pixels: less for many images, and never above the images'."""
    return min(PHOTO_SIDE, math.isqrt(SHEET_PIXELS // len(source)), shortest_side(source))


def image_uris(source: Source, rows: Iterable[int]) -> dict[int, str]:
    """Encodes single images for a page.

    Args:
      source: the images.
      rows: which of them; the same row may come twice.

    Returns:
      {row: text for the src of a picture}.
    """
    rows = sorted(set(map(int, rows)))
    side = min(PHOTO_SIDE, shortest_side(source))
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
    """Draws views of an image as a run does.

    Args:
      image: uint8 [H, W, C].
      config: of the run; reads views, data.crop and run.seed.

    Returns:
      The image, NUM_VIEWS global views, and as many local ones as the run draws of an image.
    """
    image = _at_most(image, LARGEST_SIDE)
    recipe = view_recipe(config.views)
    keys = jax.random.split(jax.random.key(config.run.seed))
    views = _draw(image[None], keys[0], recipe, NUM_VIEWS)
    whole = _at_most(image, 2 * PHOTO_SIDE)
    shown = [View("image", data_uri(np.broadcast_to(whole, (*whole.shape[:2], 3))))]
    shown += [View(f"view {n}", _view_uri(v, recipe)) for n, v in enumerate(np.asarray(views), 1)]
    if recipe.num_local:
        views = np.asarray(_draw_local(image[None], keys[1], recipe, 0))
        shown += [View(f"local view {n}", _view_uri(v, recipe)) for n, v in enumerate(views, 1)]
    return shown


def _view_uri(view: np.ndarray, recipe) -> str:
    """Encodes a normalised view [size, size, C] in its colours."""
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    colours = view * std[None, None] + mean[None, None]
    pixels = np.round(255 * colours.clip(0, 1)).astype(np.uint8)
    return data_uri(thumbnail(pixels, min(128, len(pixels))))


def shortest_side(source: Source) -> int:
    """The shorter side of the largest of some images, pixels."""
    some = np.linspace(0, len(source) - 1, min(len(source), 16)).round().astype(int)
    return max(min(_picture(source, int(row)).shape[:2]) for row in some)


def _picture(source: Source, row: int) -> np.ndarray:
    """An image to show; black if it is damaged, as in its embedding."""
    try:
        return source.image(row)
    except BrokenImage:
        return np.zeros((1, 1, 3), np.uint8)


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image [H, W, C] in its proportions until no side exceeds `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((width, height))).reshape(height, width, -1)


def _thumbnails(source: Source, rows: Iterable[int], side: int) -> Iterable[np.ndarray]:
    with ThreadPoolExecutor(num_decode_threads()) as pool:
        yield from pool.map(lambda row: filled(_picture(source, row), side), rows)
