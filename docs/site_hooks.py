"""Hooks of the site: pages from the root's files, typeset formulas, no foreign requests."""

import html
import json
import logging
import pathlib
import re
from html.parser import HTMLParser

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.gsg_jax")  # below mkdocs, whose warnings --strict counts

# Pages made from files of the root, with their names on the site.
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "notebooks/quickstart.ipynb": "tutorials/quickstart.md",
}
# Files that those pages link to, copied as they are.
COPIED = ("LICENSE",)
# What a notebook shows of an output that has several forms, the best first.
SHOWN = ("text/markdown", "image/svg+xml", "image/png", "text/plain")
# Attributes that load an address; a <link> is left alone if its rel is in NOT_LOADED.
LOADING = {"src", "srcset", "poster", "data"}
NOT_LOADED = {"canonical", "alternate", "prev", "next", "author", "license"}
FOREIGN = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
FOREIGN_CSS = re.compile(r"""(?:@import\s*|url\(\s*)["']?\s*((?:https?:)?//[^"')\s]+)""")
# What pymdownx.arithmatex makes of $...$ and $$...$$.
FORMULA = re.compile(r'(?<=class="arithmatex">)(\\\(|\\\[)(.*?)(\\\)|\\\])(?=</)', re.DOTALL)
# What latex2mathml writes for the bars of a norm, and for a function's name: log, Cov.
BARS = re.compile("<mo>(&#x02016;|&#x0007C;)</mo>")
NAME = re.compile(r"<m([io])>([A-Za-z]{2,})</m\1>(?P<bracket>(?=<mo[^>]*>&#x00028;))?")
# What it copies or writes, and no browser shows as it was meant.
NOT_SHOWN = re.compile(r"\\\w*|&(?!#|amp;|lt;|gt;)|mathvariant=\"(?!normal)[^>]*>[^<]*")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages made from the root's files, with their links rewritten to start in docs/."""
    root = pathlib.Path(config.config_file_path).parent
    for source, page in FROM_ROOT.items():
        text = (root / source).read_text(encoding="utf-8")
        text = notebook_page(text) if source.endswith(".ipynb") else text
        text = text.replace("](docs/", "](").replace('="docs/', '="')
        for other, name in FROM_ROOT.items():
            text = text.replace(f"]({other}", f"]({name}")
        files.append(File.generated(config, page, content=text))
    for name in COPIED:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files of the root to their pages; the search leaves records out."""
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}
    up = "../" * page.file.src_uri.count("/")
    for source, name in FROM_ROOT.items():
        markdown = markdown.replace(f"]({up}../{source}", f"]({up}{name}")
    return markdown


def notebook_page(text: str) -> str:
    """A notebook as Markdown: its text, its code, and what its cells showed when it was run.

    Args:
      text: the .ipynb file.

    Returns:
      The page.
    """
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for shown in map(_shown, cell.get("outputs", ())):
            if shown.startswith("```text") and parts[-1].startswith("```text"):
                parts[-1] = parts[-1].removesuffix("```") + shown.removeprefix("```text\n")
            else:
                parts.append(shown)
    return "\n\n".join(parts)


def _shown(output: dict) -> str:
    """An output of a cell as Markdown: text, a picture or a table."""
    data = output.get("data") or {"text/plain": output["text"]}
    kind = next(kind for kind in SHOWN if kind in data)
    value = "".join(data[kind]).strip()
    if kind == "image/png":
        return f'<img alt="What this cell shows" src="data:image/png;base64,{value}">'
    if kind == "image/svg+xml":
        return f"<div>{value}</div>"
    return value if kind == "text/markdown" else f"```text\n{value}\n```"


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Typesets the formulas of a page, and warns about those that it cannot."""

    def typeset(match: re.Match) -> str:
        latex = html.unescape(match[2]).strip()
        try:
            return mathml(latex, "block" if match[1] == r"\[" else "inline")
        except Exception as error:  # latex2mathml's errors have no class in common
            log.warning("%s: cannot typeset %r: %r", page.file.src_uri, latex, error)
            return match[0]

    return FORMULA.sub(typeset, content)


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML, which browsers show without a script or a font of their own.

    Args:
      latex: the formula, without dollars.
      display: "inline" or "block".

    Returns:
      A <math> element.

    Raises:
      ValueError: if braces are missing, or the result has what a browser does not show, such as the
        name of a misspelt command.
    """
    if latex.count("{") != latex.count("}"):
        raise ValueError("a brace has no partner")
    if display == "block":
        latex = latex.replace(r"\sum_", r"\sum\limits_")
    formula = latex2mathml.converter.convert(latex, display=display)
    if unknown := NOT_SHOWN.search(formula):
        raise ValueError(f"{unknown[0]!r} is not shown by browsers")
    # As in TeX: norms as tall as a letter, a thin space around a name, but none before its bracket.
    formula = BARS.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', formula)
    return NAME.sub(_named, formula)


def _named(match: re.Match) -> str:
    after = "0" if match["bracket"] is not None else "0.1667em"
    return f'<mo lspace="0.1667em" rspace="{after}">{match[2]}</mo>'


def on_post_build(*, config: MkDocsConfig) -> None:
    """Warns about everything that a built page would load from another host."""
    for path in sorted(pathlib.Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            text = path.read_text(encoding="utf-8")
            for address in foreign(text) if path.suffix == ".html" else FOREIGN_CSS.findall(text):
                log.warning("%s loads %s: copy it into docs/ or leave it out", path, address)


def foreign(text: str) -> list[str]:
    """The addresses on other hosts that a page loads when it is opened.

    Args:
      text: the page's HTML.

    Returns:
      Addresses of scripts, style sheets, pictures, frames and hints to connect, but not of links.
    """
    parser = _Page()
    parser.feed(text)
    return parser.found


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
