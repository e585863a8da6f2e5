"""Hooks of the documentation site: pages made from the root's files, and no foreign requests."""

import logging
import pathlib
import re
from html.parser import HTMLParser

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.gsg_jax")  # below mkdocs, whose warnings --strict counts

# Pages that are files of the root, each with its name on the site.
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
# What these link to, and the site holds as it is.
COPIED = ("notebooks/quickstart.ipynb",)
# Attributes by which a page loads what it names; of <link> those whose rel is none of NOT_LOADED.
LOADING = {"src", "srcset", "poster", "data"}
NOT_LOADED = {"canonical", "alternate", "prev", "next", "author", "license"}
FOREIGN = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
FOREIGN_CSS = re.compile(r"""(?:@import\s*|url\(\s*)["']?\s*((?:https?:)?//[^"')\s]+)""")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are the root's files, their links as seen from docs/."""
    root = pathlib.Path(config.config_file_path).parent
    for source, page in FROM_ROOT.items():
        text = (root / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, name in FROM_ROOT.items():
            text = text.replace(f"]({other}", f"]({name}")
        files.append(File.generated(config, page, content=text))
    for name in COPIED:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_post_build(*, config: MkDocsConfig) -> None:
    """Warns of everything that a built page would load from another host."""
    for path in sorted(pathlib.Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            text = path.read_text(encoding="utf-8")
            for address in foreign(text) if path.suffix == ".html" else FOREIGN_CSS.findall(text):
                log.warning("%s loads %s: take it into docs/, or leave it out", path, address)


def foreign(html: str) -> list[str]:
    """The addresses on other hosts that a page loads when it is opened.

    Args:
      html: the page.

    Returns:
      Of scripts, style sheets, pictures, frames and hints to connect; links are not among them.
    """
    page = _Page()
    page.feed(html)
    return page.found


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self._is_style = [], False

    def handle_starttag(self, tag, attrs):
        self._is_style = tag == "style"
        given = {name: value or "" for name, value in attrs}
        loaded = [given[name] for name in LOADING & given.keys()]
        if tag == "link" and not set(given.get("rel", "").split()) & NOT_LOADED:
            loaded.append(given.get("href", ""))
        self.found += [address for address in loaded if FOREIGN.match(address)]
        self.found += FOREIGN_CSS.findall(given.get("style", ""))

    def handle_data(self, data):
        if self._is_style:
            self.found += FOREIGN_CSS.findall(data)

    def handle_endtag(self, tag):
        self._is_style = False
