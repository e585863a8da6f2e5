"""Fonts for the names of files, which may be in any script."""

import functools
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageDraw, ImageFont

SIZE = 13  # pixels
# Pillow's own font has little more than ASCII. Then come those that a machine may have, found by
# their names in its folders of fonts, then the packages of gsg_jax[fonts].
_OF_MACHINES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),
    *("Arial Unicode.ttf", "PingFang.ttc", "segoeui.ttf", "msyh.ttc", "malgun.ttf"),
)
_PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")
_NOT_A_CHARACTER = "\U0010ffff"  # drawn as the box for what a font lacks
Run = tuple[ImageFont.FreeTypeFont, str]  # a part of a text, and its font


@functools.cache
def runs(text: str) -> list[Run]:
    """Splits a text into the longest parts that one font has, since few have all scripts.

    Characters that no font has, or that cannot be printed, become code points.
    """
    text = "".join(c if c.isprintable() else _code_point(c) for c in text)
    found = []
    while text:
        font, num = _longest(text)
        found.append((font, text[:num] or _code_point(text[0])))
        text = text[max(num, 1) :]
    return found


def _longest(text: str) -> tuple[ImageFont.FreeTypeFont, int]:
    """The font that has the most characters from the start of a text, and their number."""
    longest = _own()[0], 0
    for font in itertools.chain.from_iterable(fonts() for fonts in (_own, _others)):
        num = sum(1 for _ in itertools.takewhile(functools.partial(_has, font), text))
        if num == len(text):
            return font, num
        if num > longest[1]:
            longest = font, num
    return longest


def shorten(text: str, width: int) -> str:
    """Cuts a text to a width in pixels by leaving out its middle."""
    if length(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}...{text[-(kept // 2) :]}"
        if length(shorter) <= width:
            return shorter
    return "..."


def length(text: str) -> float:
    """Width of a text in pixels."""
    return sum(font.getlength(part) for font, part in runs(text))


def draw_centred(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int]
) -> None:
    """Draws a text around the middle of its baseline.

    It reads from the left, with a name's ending last, even if it begins with Arabic or Hebrew.
    """
    x, baseline = place[0] - length(text) / 2, place[1]
    for font, part in runs(text):
        direction = "ltr" if font.layout_engine == ImageFont.Layout.RAQM else None
        draw.text((x, baseline), part, colour, font, anchor="ls", direction=direction)
        x += font.getlength(part)


def _code_point(character: str) -> str:
    return f"\\u{ord(character):04x}"


@functools.cache
def _own() -> list[ImageFont.FreeTypeFont]:
    return [ImageFont.load_default(SIZE)]


@functools.cache
def _others() -> list[ImageFont.FreeTypeFont]:
    """The fonts beside Pillow's own, opened when a name first needs one."""
    return list(_found())


def _found() -> Iterator[ImageFont.FreeTypeFont]:
    for name in _OF_MACHINES:
        try:
            yield ImageFont.truetype(name, SIZE)
        except OSError:  # this machine has none of that name
            continue
    for package in _PACKAGES:
        if spec := importlib.util.find_spec(package):
            paths = Path(spec.origin).parent.glob("*.tt[cf]")
            for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
                if "Italic" not in path.name:
                    yield ImageFont.truetype(path, SIZE)


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return _drawn(font, character) != _drawn(font, _NOT_A_CHARACTER)


@functools.cache
def _basic(font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """The font with characters drawn one by one: no circle below a mark, which would hide a box."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _basic(font).getmask(character)
    return mask.size, bytes(mask)


ASCENT = ImageFont.load_default(SIZE).getmetrics()[0]  # pixels above the baseline
