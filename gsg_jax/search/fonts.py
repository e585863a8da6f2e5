"""Fonts for the names of files, which may be in any script."""

import functools
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

SIZE = 13  # pixels
# Pillow's own font has little more than ASCII. Then come those that a machine may have, found by
# their names in its folders of fonts, then the packages of gsg_jax[fonts].
_OF_MACHINES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),
    *("Arial Unicode.ttf", "PingFang.ttc", "segoeui.ttf", "msyh.ttc", "malgun.ttf"),
)
_PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")
_NOT_A_CHARACTER = "\U0010ffff"  # drawn as the box of what a font lacks


@functools.cache
def font_of(text: str) -> tuple[ImageFont.FreeTypeFont, str]:
    """Returns the first font that has all characters of a text, and the text.

    If there is none, it is the font that lacks the fewest, and these become code points, as do
    characters that cannot be printed.
    """
    text = "".join(c if c.isprintable() else _code_point(c) for c in text)
    fewest = None
    for font in itertools.chain.from_iterable(fonts() for fonts in (_own, _others)):
        lacking = {c for c in text if not _has(font, c)}
        if not lacking:
            return font, text
        if fewest is None or len(lacking) < len(fewest[1]):
            fewest = font, lacking
    font, lacking = fewest
    return font, "".join(_code_point(c) if c in lacking else c for c in text)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cuts a text to a width in pixels by leaving out its middle."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}...{text[-(kept // 2) :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "..."


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
            for path in sorted(Path(spec.origin).parent.glob("*.tt[cf]")):
                yield ImageFont.truetype(path, SIZE)


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return _drawn(font, character) != _drawn(font, _NOT_A_CHARACTER)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


ASCENT = ImageFont.load_default(SIZE).getmetrics()[0]  # pixels above the baseline
