"""The documentation site: pages from the root's files, typeset formulas, no foreign requests."""

import importlib.util
import logging
import types

import pytest

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
    for html in (
        '<a href="https://arxiv.org/abs/2011.10566">the paper</a>',
        '<link rel="canonical" href="https://gsg.example/">',
        '<img src="report-1280.png"><script src="/assets/x.js"></script>',
        '<img src="data:image/png;base64,//8=">',
        "<style>a{}</style><code>url(https://cdn.example/x.png)</code>",
    ):
        assert hooks.foreign(html) == []


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
