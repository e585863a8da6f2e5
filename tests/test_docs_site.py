"""The site: whole, searchable when opened as a file, formulas typeset, no foreign requests."""

import importlib.util
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import types
import urllib.parse
from html.parser import HTMLParser

import pytest

from tests.report.test_browser import browser  # noqa: F401
from tests.runs import ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")
import markdown  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config():
    config = MkDocsConfig(str(ROOT / "mkdocs.yml"))
    with open(ROOT / "mkdocs.yml", "rb") as file:
        config.load_file(file)
    return config


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="HTTPS://cdn.example/x.css">',
        '<link href="https://cdn.example" rel="preconnect">',
        '<img srcset="https://cdn.example/x.png 2x">',
        "<style>@import 'https://cdn.example/x.css';</style>",
        "<p style=\"background: url('https://cdn.example/x.png')\">",
    ],
)
def test_whatever_a_page_would_load_from_another_host_is_found(hooks, html):
    (address,) = hooks.foreign(f"<html><body>{html}</body></html>")
    assert "cdn.example" in address


def test_links_and_what_the_site_holds_itself_are_left_alone(hooks):
    for text in (
        '<a href="https://arxiv.org/abs/2011.10566">the paper</a>',
        '<link rel="canonical" href="https://gsg.example/">',
        '<img src="report-1280.png"><script src="/assets/x.js"></script>',
        '<img src="data:image/png;base64,//8=">',
        "<style>a{}</style><code>url(https://cdn.example/x.png)</code>",
    ):
        assert hooks.foreign(text) == []


def warnings_of(caplog) -> list[str]:
    """The warnings that `mkdocs build --strict` counts."""
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"mkdocs"}
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_built_site_that_loads_from_another_host_is_reported(hooks, config, tmp_path, caplog):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "assets" / "x.css").write_text("@import url(//cdn.example/font.css); a{color:red}")
    (tmp_path / "fine.html").write_text('<a href="https://cdn.example">link</a>')
    config.site_dir = str(tmp_path)
    with caplog.at_level(logging.WARNING):
        hooks.on_post_build(config=config)
    said = warnings_of(caplog)
    assert len(said) == 2 and all("cdn.example" in text for text in said)


def built(hooks, config, text: str) -> str:
    """The HTML of a page, with the site's own Markdown extensions."""
    config.load_dict({"plugins": [], "theme": "mkdocs"})
    assert config.validate()[0] == []
    converter = markdown.Markdown(
        extensions=[name for name in config.markdown_extensions if name.startswith("pymdownx")],
        extension_configs=config.mdx_configs,
    )
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="methods.md"))
    return hooks.on_page_content(converter.convert(text), page=page, config=config, files=None)


def test_formulas_are_typeset(hooks, config, caplog):
    page = built(
        hooks,
        config,
        r"""
A cosine $-\frac{p_1 \cdot t_2}{\lVert p_1 \rVert \lVert t_2 \rVert}$ costs $5 in `$HOME`.

$$
\sum_{i < j} C_{ij}^2 + \log x
$$
""",
    )
    assert page.count("<math") == 2 and 'display="block"' in page
    assert "<mfrac>" in page and "<munder>" in page and "<msubsup>" in page and ">log</mo>" in page
    assert "\\" not in page and "$$" not in page
    assert "costs $5 in <code>$HOME</code>" in page
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("latex", [r"\cosnie(x)", r"\frac{1}{2", r"x_1_2", r"\begin{aligned}a&b"])
def test_a_formula_that_cannot_be_typeset_is_reported(hooks, config, caplog, latex):
    with caplog.at_level(logging.WARNING):
        built(hooks, config, f"Here ${latex}$ stands.")
    (said,) = warnings_of(caplog)
    assert said.startswith("methods.md: cannot typeset ")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """What a page points to, and the names that can be pointed to in it."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.names, self.addresses, self.untold = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.names |= {given.get("id"), given.get("name") if tag == "a" else None} - {None}
        self.addresses += [given[name] for name in ("src", "href", "poster") if name in given]
        if tag == "img" and not given.get("alt"):
            self.untold.append(given.get("src", "")[:80])


def broken(site: pathlib.Path) -> list[str]:
    """Every src and href of a site's pages that leads to no file, or to no place in its page."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for address in page.addresses:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            target = path if not parts.path else target
            place = urllib.parse.unquote(parts.fragment)
            is_there = target.is_file() and (not place or place in pages[target].names)
            if not is_there:
                found.append(f"{path.relative_to(site)}: {address}")
    return found


def test_every_link_picture_and_anchor_of_the_site_leads_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 15
    assert broken(site) == []


def test_a_missing_picture_page_or_anchor_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="b.html#there"><a href="https://x.example/no">'
        '<a href="#nowhere"><a href="c.html"><img src="docs/x.png"><a href="b.html#here"></p>'
    )
    (tmp_path / "b.html").write_text('<a name="there" href="a.html#here"></a>')
    names = ("#nowhere", "c.html", "docs/x.png", "b.html#here")
    assert broken(tmp_path) == [f"a.html: {name}" for name in names]


def test_every_picture_of_the_site_has_words_for_those_who_do_not_see_it(site):
    assert [text for path in site.rglob("*.html") for text in Page(path).untold] == []


@pytest.mark.parametrize("start", ["index.html", "tutorials/quickstart.html"])
def test_the_search_works_when_the_site_is_opened_as_a_file(site, browser, start):  # noqa: F811
    heard = []
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.on("requestfailed", lambda request: heard.append(request.url))
    page.on("request", lambda request: heard.append(request.url))
    page.goto((site / start).as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("inspector", delay=20)
    hit = page.locator(".md-search-result__item a").first
    hit.wait_for(timeout=20_000)
    hit.click()
    page.wait_for_url(re.compile(r"methods\.html"))
    page.close()
    assert [url for url in heard if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


def test_the_notebook_is_a_page_with_what_its_cells_showed(hooks, site):
    cells = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())["cells"]
    page = (site / "tutorials" / "quickstart.html").read_text(encoding="utf-8")
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", ())]
    assert len(pictures) == page.count("data:image/png;base64,") > 0
    assert page.count("<polyline") == 4 and "k-NN top-1" in page


def test_a_notebook_becomes_text_code_and_the_best_form_of_each_output(hooks):
    def output(**data):
        return {"output_type": "display_data", "data": data}

    forms = output(**{"image/png": "AAAA\n", "text/plain": ["<PIL>"]})
    table = output(**{"text/markdown": ["| a |\n", "|---|"], "text/plain": "<Markdown>"})
    stream = {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]}
    line = output(**{"text/html": "<pre>three</pre>", "text/plain": "three\n"})
    code = {
        "cell_type": "code",
        "source": ["x = 1\n", "x"],
        "outputs": [stream, line, forms, table],
    }
    text = {"cell_type": "markdown", "source": ["# Title\n", "words"]}
    assert hooks.notebook_page(json.dumps({"cells": [text, code]})) == (
        "# Title\nwords\n\n```python\nx = 1\nx\n```\n\n```text\none\ntwo\nthree\n```\n\n"
        '<img alt="What this cell shows" src="data:image/png;base64,AAAA">\n\n| a |\n|---|'
    )


def test_the_committed_figure_is_the_one_that_its_script_draws():
    script = ROOT / "docs" / "figures" / "guided_pairs.py"
    spec = importlib.util.spec_from_file_location("guided_pairs", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    packed = re.compile('base64,[^"]*')  # two versions of zlib pack a picture differently
    committed = script.with_suffix(".svg").read_text(encoding="utf-8")
    assert packed.sub("", module.draw()) == packed.sub("", committed)
