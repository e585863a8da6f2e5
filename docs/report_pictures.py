"""Takes screenshots of a run's report for the README in Chromium: wide and light, narrow and dark.

pip install -e '.[dev]'
python docs/report_pictures.py runs/quickstart/report.html docs
"""

import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

# File, width of the window, colour scheme, section at the top, height.
PICTURES = (
    ("report-1280.png", 1280, "light", "#curves", 1400),
    ("report-390.png", 390, "dark", "#map", 1400),
)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


def main(report: str, folder: str) -> None:
    """Writes the screenshots of a report into a folder."""
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        for name, width, scheme, section, height in PICTURES:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(pathlib.Path(report).resolve().as_uri())
            page.locator(section).evaluate("e => e.scrollIntoView()")
            if section == "#map":
                page.locator("#points").focus()
                for key in ("End", "ArrowUp", "ArrowLeft"):
                    page.keyboard.press(key)
            else:
                page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=pathlib.Path(folder) / name)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
