"""Contact sheets: many images on one picture, each with a caption, in groups of rows."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from gsg_jax.console import say
from gsg_jax.data.source import num_decode_threads
from gsg_jax.report.pictures import fitted, sheet
from gsg_jax.run.files import replacing
from gsg_jax.search.fonts import ASCENT, draw_centred, runs, shorten

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST_IMAGES = 240  # on a sheet
COLUMNS = 6
TILE = 184  # pixels, a square that holds an image and its caption
THUMBNAIL = 136
MARGIN = 5  # above an image, in which a frame is drawn
LINE_HEIGHT = 17
PAPER, INK, FAINT, FRAME = (255, 255, 255), (20, 20, 20), (110, 110, 110), (214, 90, 20)
EDGE = (213, 217, 222)  # around an image, which may be as white as the paper


class Picture(NamedTuple):
    """An image on a sheet.

    Attributes:
      read: gives its pixels, uint8 [H, W, C], C 1 or 3.
      caption: what is written below it.
      name: what is written below that, shortened if it is long.
      is_framed: whether it has a coloured frame.
    """

    read: Callable[[], np.ndarray]
    caption: str
    name: str
    is_framed: bool = False


def write_sheet(path: Path, groups: Sequence[Sequence[Picture]]) -> int:
    """Writes a contact sheet; each group starts a row.

    Args:
      path: of the picture; its ending is one of FORMATS.
      groups: of one or more pictures each; only the first MOST_IMAGES pictures are shown.

    Returns:
      The number of pictures on it.

    Raises:
      UserError: if an image cannot be read.
      OSError: if the file cannot be written.
    """
    before = [0, *itertools.accumulate(map(len, groups))]
    shown = [
        of[: MOST_IMAGES - n] for of, n in zip(groups, before, strict=False) if n < MOST_IMAGES
    ]
    with ThreadPoolExecutor(num_decode_threads()) as pool:
        tiles = pool.map(_tile, [picture for group in shown for picture in group])
        laid = []
        for group in shown:
            laid += [next(tiles) for _ in group]
            laid += [_paper()] * (-len(group) % COLUMNS)
    with replacing(path) as file:
        Image.fromarray(sheet(laid, COLUMNS)).save(file, FORMATS[path.suffix.lower()])
    names = {picture.name for group in shown for picture in group}
    if any("".join(part for _, part in runs(name)) != name for name in names):
        say(
            "some characters of the names are shown as code points, since no font here has them: "
            "pip install 'gsg_jax[fonts]' brings fonts of all scripts"
        )
    return sum(map(len, shown))


def _tile(picture: Picture) -> np.ndarray:
    """The image with its caption below, uint8 [TILE, TILE, 3]."""
    tile = Image.fromarray(_paper())
    draw = ImageDraw.Draw(tile)
    image = fitted(picture.read(), THUMBNAIL)
    x, y = (TILE - image.width) // 2, MARGIN + (THUMBNAIL - image.height) // 2
    right, bottom = x + image.width, y + image.height
    if picture.is_framed:
        edges = x - MARGIN, y - MARGIN, right + MARGIN - 1, bottom + MARGIN - 1
        draw.rectangle(edges, outline=FRAME, width=MARGIN - 1)
    draw.rectangle((x - 1, y - 1, right, bottom), outline=EDGE)
    tile.paste(image, (x, y))
    baseline = THUMBNAIL + 2 * MARGIN + ASCENT
    for text, colour in ((picture.caption, INK), (picture.name, FAINT)):
        draw_centred(draw, (TILE / 2, baseline), shorten(text, TILE - 2 * MARGIN), colour)
        baseline += LINE_HEIGHT
    return np.asarray(tile)


def _paper() -> np.ndarray:
    return np.full((TILE, TILE, 3), PAPER, np.uint8)
