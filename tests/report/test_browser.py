"""The page as people use it: in Chromium, by mouse, keyboard and touch, wide and narrow.

Needs Chromium on the machine (Debian's package chromium, or Chrome). Without it these tests are
skipped; if the environment variable CI is set, they fail.
"""

import contextlib
import os
import re
import shutil

import pytest

from tests.runs import done, tiny, write_images

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.extended

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (  # unasked, Chromium sends requests of its own
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a tiny run."""
    folder = tmp_path_factory.mktemp("report")
    images = write_images(folder / "images", num_train=40, num_test=24)
    for split in ("train", "test"):
        (images / split / "even").rename(images / split / ("e" * 150))
    flags = ("--config.run.report=true", "--config.run.log_every_steps=2")
    done(*tiny("simsiam_gsg", images, folder / "run", *flags))
    return folder / "run" / "report.html"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium: .ci/run installs it")
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """Opens the report: call it with the width of the window; nothing may go wrong in it."""
    heard = []
    with contextlib.ExitStack() as pages:

        def open_page(width=1280, **options):
            context = browser.new_context(viewport={"width": width, "height": 800}, **options)
            pages.callback(context.close)
            page = context.new_page()
            page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: heard.append(f"error: {error}"))
            page.on("request", lambda request: heard.append(request.url))
            page.goto(report.as_uri())
            return page

        yield open_page
    allowed = (report.as_uri(), "data:", "blob:")
    assert [text for text in heard if not text.startswith(allowed)] == []


def test_pointing_at_a_point_of_the_map_shows_its_image(opened):
    page = opened()
    canvas = page.locator("#points")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    data = page.evaluate("JSON.parse(document.getElementById('map-data').textContent)")
    kind = next(iter(data["places"]))
    for image in (0, 11, 23):
        x, y = data["places"][kind][2 * image : 2 * image + 2]
        scale = (box["width"] - 24) / data["extent"]
        page.mouse.move(box["x"] + 12 + x * scale, box["y"] + 12 + y * scale)
        tip = page.locator("#tip")
        assert tip.is_visible()
        assert data["names"][image] in tip.inner_text()
        assert "url(" in tip.locator(".picture").evaluate("e => e.style.backgroundImage")
    page.mouse.move(2, 2)
    assert not page.locator("#tip").is_visible()


def test_an_image_is_chosen_from_the_start_and_small_images_show_their_pixels(opened):
    page = opened()
    chosen = page.locator("#chosen")
    data = page.evaluate("JSON.parse(document.getElementById('map-data').textContent)")
    assert data["names"][0] in chosen.locator("p").first.inner_text()
    assert chosen.locator(".near button").count() == data["numNear"]
    picture = chosen.locator(".picture").first
    assert picture.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    page.evaluate("document.body.classList.remove('small')")  # as with photographs
    assert picture.evaluate("e => getComputedStyle(e).imageRendering") == "auto"
    assert picture.bounding_box()["width"] >= 160
    assert page.locator("#neighbours img").first.bounding_box()["width"] >= 160


@pytest.mark.parametrize("width", [390, 1280])
def test_captions_lie_below_their_own_image(opened, width):
    boxes = """() => [...document.querySelectorAll(".row figure, .views figure")].map((e) => {
        const [image, caption] = [e.querySelector("img"), e.querySelector("figcaption")];
        const [a, b] = [image, caption].map((part) => part.getBoundingClientRect());
        return [a.bottom <= b.top, caption.scrollWidth <= caption.clientWidth, a.width > 40]; })"""
    found = opened(width).evaluate(boxes)
    assert found and all(all(flags) for flags in found)


def test_the_keyboard_reaches_every_image_of_the_map_and_its_neighbours(opened):
    page = opened()

    def press(key):
        page.keyboard.press(key)
        return page.locator("#chosen p").first.inner_text()

    page.locator("#points").focus()
    assert len({press("n") for _ in range(24)}) == 24
    first = press("Home")
    arrows = ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown") * 2
    assert len({first, *map(press, arrows)}) > 2
    page.locator("#chosen .near button").first.focus()
    said = [page.locator("#chosen p").first.inner_text()]
    said += [press("Enter") for _ in range(3)]  # the focus stays on a neighbour
    assert all(a != b for a, b in zip(said[:-1], said[1:], strict=True))


def test_the_keyboard_reads_the_curves_and_reaches_the_gallery(opened):
    page = opened()
    chart = page.locator(".chart").first
    chart.locator("svg").first.focus()
    page.keyboard.press("End")
    last = chart.locator("tbody tr").last.locator("th, td").all_text_contents()
    reading = chart.locator(".reading").inner_text()
    assert all(text in reading for text in last) and reading.startswith("epoch")
    page.keyboard.press("ArrowLeft")
    assert chart.locator(".reading").inner_text() != reading
    reachable = "#neighbours figure[tabindex='0'] img[alt]"
    assert page.locator(reachable).count() == page.locator("#neighbours img").count() > 0
    figure = page.locator("#neighbours figure").nth(1)
    figure.focus()
    enlarged = figure.locator("img").evaluate("e => getComputedStyle(e).transform")
    assert enlarged != "none"


def drawn(page):
    return page.locator("#points").evaluate("e => e.toDataURL()")


def test_choosing_a_class_sets_it_off(opened):
    page = opened()
    before, button = drawn(page), page.locator("#groups button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert drawn(page) != before
    button.click()
    assert drawn(page) == before


def test_the_maps_differ_and_their_coordinates_can_be_saved(opened):
    page = opened()
    before = drawn(page)
    page.locator(".kind", has_text="PCA").click()
    assert drawn(page) != before
    page.locator("#map summary").click()
    with page.expect_download() as download:
        page.locator("#coordinates").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "image,group,t-SNE x,t-SNE y,PCA x,PCA y"
    assert len(lines) == 25 and all(re.fullmatch(r'"[^"]*","[^"]*"(,\d+){4}', x) for x in lines[1:])


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_is_as_wide_as_the_window(opened, width):
    page = opened(width, has_touch=width < 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert text >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_dark(opened, scheme):
    page = opened(color_scheme=scheme)
    for selector in (
        "h1",
        ".verdict",
        ".note",
        ".unit",
        ".cards dt",
        ".origin dt",
        "pre code",
        "summary",
        "th",
        ".legend li",
    ):
        assert contrast(page, selector) >= 4.5, selector
    page.locator("#theme").click()  # as the device -> light
    page.locator("#theme").click()  # light -> dark
    assert contrast(page, "h1") >= 4.5
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60


def contrast(page, selector: str) -> float:
    """WCAG's contrast of a text and what is behind it."""

    def luminance(colour: str) -> float:
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    element = page.locator(selector).first
    ink = element.evaluate("e => getComputedStyle(e).color")
    behind = """e => { for (; e; e = e.parentElement) {
        const colour = getComputedStyle(e).backgroundColor;
        if (colour !== "rgba(0, 0, 0, 0)") return colour; } }"""
    dark, light = sorted(map(luminance, (ink, element.evaluate(behind))))
    return (light + 0.05) / (dark + 0.05)
