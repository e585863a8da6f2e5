"""A contact sheet shows each image in its place, with its caption below and its group in a row."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gsg_jax.console import UserError
from gsg_jax.search import contact_sheet, fonts
from gsg_jax.search.contact_sheet import (
    COLUMNS,
    EDGE,
    FRAME,
    INK,
    MARGIN,
    PAPER,
    THUMBNAIL,
    TILE,
    Picture,
    write_sheet,
)


def plain(colour, caption="1", name="a.png", **options):
    pixels = np.full((30, 30, len(colour)), colour, np.uint8)
    return Picture(lambda: pixels, caption, name, **options)


def colours(count):
    rng = np.random.default_rng(count)
    return [tuple(int(c) for c in rng.integers(0, 200, 3)) for _ in range(count)]


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def middle(sheet, place):
    """The colour in the middle of an image, by its place on the sheet."""
    row, column = divmod(place, COLUMNS)
    return tuple(sheet[row * TILE + MARGIN + THUMBNAIL // 2, column * TILE + TILE // 2].tolist())


def test_each_group_begins_a_row_and_what_is_left_of_a_row_is_paper(tmp_path):
    first, second = colours(COLUMNS + 2), colours(3)
    path = tmp_path / "sheet.png"
    assert write_sheet(path, [[plain(c) for c in first], [plain(c) for c in second]]) == (
        COLUMNS + 5
    )
    sheet = read(path)
    assert sheet.shape == (3 * TILE, COLUMNS * TILE, 3)
    paper = [PAPER] * COLUMNS
    expected = [*first, *paper[: COLUMNS - 2], *second, *paper[: COLUMNS - 3]]
    assert [middle(sheet, place) for place in range(3 * COLUMNS)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_the_caption_is_below_its_image_and_only_a_framed_image_has_a_frame(tmp_path):
    path = tmp_path / "sheet.png"
    colour = (90, 120, 150)
    write_sheet(path, [[plain(colour, "query", "a.png", is_framed=True), plain(colour, "", "")]])
    framed, bare = read(path)[:, :TILE], read(path)[:, TILE : 2 * TILE]
    top, left = MARGIN, (TILE - THUMBNAIL) // 2
    for tile in (framed, bare):
        image = tile[top : top + THUMBNAIL, left : left + THUMBNAIL]
        np.testing.assert_array_equal(image, np.broadcast_to(colour, image.shape))
    assert (framed[0, TILE // 2] == FRAME).all() and (bare[0, TILE // 2] == PAPER).all()
    below = slice(THUMBNAIL + 2 * MARGIN, TILE)
    assert (bare[below] == PAPER).all()

    font = ImageFont.load_default(fonts.SIZE)
    written = Image.new("RGB", (TILE, TILE), PAPER)
    ImageDraw.Draw(written).text((TILE // 2, below.start), "query", INK, font, anchor="ma")
    line = slice(below.start, below.start + contact_sheet.LINE_HEIGHT - 1)
    np.testing.assert_array_equal(framed[line], np.asarray(written)[line])


def test_an_image_keeps_its_proportions_and_gray_ones_are_shown(tmp_path):
    wide, gray = np.zeros((10, 40, 3), np.uint8), np.full((8, 8, 1), 77, np.uint8)
    path = tmp_path / "sheet.png"
    write_sheet(path, [[Picture(lambda: wide, "", ""), Picture(lambda: gray, "", "")]])
    sheet = read(path)
    column = sheet[MARGIN : MARGIN + THUMBNAIL, TILE // 2]
    black = (column == 0).all(axis=1)
    assert black.sum() == THUMBNAIL // 4
    edges = (column == EDGE).all(axis=1)
    assert edges.sum() == 2 and (column[~black & ~edges] == PAPER).all()
    assert middle(sheet, 1) == (77, 77, 77)


def test_a_sheet_holds_so_many_images_and_says_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_IMAGES", 8)
    shown = colours(12)
    groups = [[plain(c) for c in shown[:5]], [plain(c) for c in shown[5:]], [plain((1, 1, 1))]]
    path = tmp_path / "sheet.png"
    assert write_sheet(path, groups) == 8
    sheet = read(path)
    assert sheet.shape[0] == 2 * TILE
    assert [middle(sheet, COLUMNS + n) for n in range(4)] == [*shown[5:8], PAPER]


@pytest.mark.parametrize("suffix", contact_sheet.FORMATS)
def test_every_ending_gives_a_picture_of_its_format(tmp_path, suffix):
    path = tmp_path / f"sheet{suffix}"
    write_sheet(path, [[plain((5, 100, 200))]])
    with Image.open(path) as image:
        assert image.format == contact_sheet.FORMATS[suffix]
    np.testing.assert_allclose(middle(read(path), 0), (5, 100, 200), atol=6)


@pytest.mark.parametrize("name", ["a\nb.png", "\udcff.png", "x" * 300])
def test_names_of_any_kind_fit_into_their_line(tmp_path, name):
    write_sheet(tmp_path / "sheet.png", [[plain((0, 0, 0), name=name), plain((9, 9, 9))]])
    edges = read(tmp_path / "sheet.png")[THUMBNAIL + 2 * MARGIN :, [0, TILE - 1, TILE]]
    assert (edges == PAPER).all()


def test_a_character_that_no_font_has_is_its_code_point_and_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fonts, "_others", list)
    fonts.runs.cache_clear()
    sheets = []
    for name in ("sea 海.png", "sea \\u6d77.png"):
        write_sheet(tmp_path / "sheet.png", [[plain((0, 0, 0), name=name)]])
        sheets.append(read(tmp_path / "sheet.png"))
        said = capsys.readouterr().err
        assert ("pip install 'gsg_jax[fonts]'" in said) == ("海" in name)
    np.testing.assert_array_equal(*sheets)
    fonts.runs.cache_clear()


# The name of the font that has a script.
SCRIPTS = {
    **{
        "Zürich": "Noto Sans",
        "Привет": "Noto Sans",
        "Ελλάδα": "Noto Sans",
        "cafe\u0301": "Noto Sans",
    },
    **dict.fromkeys(("海边照片", "東京タワー", "서울"), "Noto Sans CJK JP"),
    **{"שלום": "Noto Sans Hebrew", "مرحبا": "Noto Sans Arabic", "नमस्ते": "Noto Sans Devanagari"},
    **{"สวัสดี": "Noto Sans Thai", "😀": "Noto Emoji"},
}


@pytest.mark.extended
@pytest.mark.parametrize(("name", "family"), SCRIPTS.items())
def test_the_extra_has_fonts_of_all_scripts(name, family, monkeypatch):
    pytest.importorskip("manimgx_fonts")
    pytest.importorskip("noto_cjk_sans_otc")
    monkeypatch.setattr(fonts, "_OF_MACHINES", ())
    for function in (fonts.runs, fonts._others):
        function.cache_clear()
    found = fonts.runs(f"{name}x1.jpg")
    assert "".join(part for _, part in found) == f"{name}x1.jpg"
    font, part = found[0]
    assert part.startswith(name) and font.getname()[0] == family
    for function in (fonts.runs, fonts._others):
        function.cache_clear()


def test_an_image_that_cannot_be_read_leaves_no_half_sheet(tmp_path):
    def fail():
        raise UserError("cannot decode")

    with pytest.raises(UserError):
        write_sheet(tmp_path / "sheet.png", [[plain((0, 0, 0)), Picture(fail, "", "")]])
    assert not list(tmp_path.iterdir())
