"""Draws the four pairs of guided stop-gradient: `python docs/figures/guided_pairs.py`.

Two garments of the embedded images with two views each stand where their projections are. The lines
between them are the four distances, the arrows the two pulls of the loss.
"""

import base64
import io
import pathlib

import numpy as np
from PIL import Image

from gsg_jax.data.open import EMBEDDED_FILE

SIZE = 68  # of a view's picture
# Image of the test split, box that the view shows, mirrored, centre of its picture, is a source.
VIEWS = (
    (6, (0, 4, 20, 24), False, (62, 92), False),
    (6, (1, 1, 27, 27), True, (124, 246), True),
    (13, (0, 0, 28, 28), True, (276, 246), True),
    (13, (6, 2, 26, 22), False, (338, 92), False),
)
# Name of a distance, its ends in VIEWS, where its name stands.
DISTANCES = (
    ("11", 0, 2, (153, 151)),
    ("12", 0, 3, (200, 97)),
    ("22", 1, 3, (247, 151)),
    ("21", 1, 2, (200, 236)),
)
CLOSEST = "21"
STYLE = """
.card { fill: #fff; stroke: #d5d8e0 } text { font: 15px system-ui, sans-serif; fill: #23262f }
.far { stroke: #8b90a0; stroke-width: 1.5; stroke-dasharray: 5 5 } .faint { fill: #5d6271 }
.near { stroke: #b3261e; stroke-width: 3 } .nearest { fill: #b3261e; font-weight: 600 }
.pull { stroke: #2f4bc7; stroke-width: 4; fill: none } .pulls { fill: #2f4bc7; font-weight: 600 }
.head { fill: #2f4bc7 } .push { stroke: #b3261e; stroke-width: 2.5 } .pushed { fill: #b3261e }
.target { fill: none; stroke: #8b90a0; stroke-width: 2 }
.source { fill: none; stroke: #2f4bc7; stroke-width: 4 } .ground { fill: #fff }
@media (prefers-color-scheme: dark) {
.card, .ground { fill: #1b1d25 } .card { stroke: #3c404d } text { fill: #e6e8ef }
.far, .target { stroke: #8f95a8 } .faint { fill: #b4b9c9 }
.near, .push { stroke: #ff8a80 } .nearest, .pushed { fill: #ff8a80 }
.pull, .source { stroke: #94a8ff } .pulls, .head { fill: #94a8ff } }
"""


def picture(index: int, box: tuple, is_mirrored: bool) -> str:
    """A view of an embedded test image as the address of a PNG."""
    image = Image.fromarray(np.load(EMBEDDED_FILE)["test_images"][index, ..., 0]).crop(box)
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else image
    file = io.BytesIO()
    image.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words centred at x."""
    return f'<text x="{x}" y="{y}" text-anchor="middle" class="{kind}">{words}</text>'


def arrow(start: tuple, end: tuple, kind: str) -> str:
    """A line with a head at its end."""
    (x1, y1), (x2, y2) = start, end
    return f'<path d="M{x1} {y1} L{x2} {y2}" class="{kind}" marker-end="url(#{kind}-head)"/>'


def draw() -> str:
    """The figure as SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 340" role="img">',
        "<title>The four pairs of guided stop-gradient</title>",
        f"<style>{STYLE}</style>",
        '<marker id="pull-head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="4"',
        ' markerHeight="4" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 Z"/></marker>',
        '<marker id="push-head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="5"',
        ' markerHeight="5" orient="auto"><path class="pushed" d="M0 0 L8 4 L0 8 Z"/></marker>',
        '<rect class="card" x="0.5" y="0.5" width="399" height="339" rx="10"/>',
    ]
    places = [view[3] for view in VIEWS]
    for name, start, end, at in DISTANCES:
        (x1, y1), (x2, y2) = places[start], places[end]
        line, word = ("near", "nearest") if name == CLOSEST else ("far", "faint")
        parts.append(f'<path d="M{x1} {y1} L{x2} {y2}" class="{line}"/>')
        if line == "far":  # the line is broken where its name stands
            corner = f'x="{at[0] - 14}" y="{at[1] - 16}"'
            parts.append(f'<rect class="ground" {corner} width="28" height="22"/>')
        parts.append(text(*at, f"d{subscript(name)}", word))
    for index, box, is_mirrored, (x, y), is_source in VIEWS:
        corner = f'x="{x - SIZE / 2}" y="{y - SIZE / 2}" width="{SIZE}" height="{SIZE}"'
        parts.append(f'<image {corner} href="{picture(index, box, is_mirrored)}"/>')
        parts.append(f'<rect {corner} rx="2" class="{"source" if is_source else "target"}"/>')
    return "\n".join([*parts, *_words(), "</svg>", ""])


def subscript(digits: str) -> str:
    """Digits below the line."""
    return digits.translate(str.maketrans("12", "₁₂"))


def _words() -> list[str]:
    (t1, s1, s2, t2) = (view[3] for view in VIEWS)
    return [
        text(t1[0], 24, "image 1"),
        text(t2[0], 24, "image 2"),
        text(t1[0], 46, "view 1", "faint"),
        text(t2[0], 46, "view 2", "faint"),
        text(200, 36, "targets"),
        text(200, 54, "(stop-gradient)", "faint"),
        arrow((s1[0] - 18, s1[1] - 38), (t1[0] + 18, t1[1] + 42), "pull"),
        arrow((s2[0] + 18, s2[1] - 38), (t2[0] - 18, t2[1] + 42), "pull"),
        text(62, 182, "pull", "pulls"),
        text(338, 182, "pull", "pulls"),
        text(200, 264, "closest", "nearest"),
        text(s1[0], 300, "source, view 2"),
        text(s2[0], 300, "source, view 1"),
        arrow((174, 322), (100, 322), "push"),
        arrow((226, 322), (300, 322), "push"),
        text(200, 327, "push", "nearest"),
    ]


if __name__ == "__main__":
    pathlib.Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
