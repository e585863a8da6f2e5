"""The documentation site: the root's files are its pages, and no page loads from another host."""

import importlib.util
import logging

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import PluginCollection
from mkdocs.structure.files import Files

from tests.runs import ROOT


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="HTTPS://cdn.example/x.css">',
        '<link href="https://cdn.example" rel="preconnect">',
        '<img alt="" src="http://cdn.example/x.png">',
        '<img srcset="https://cdn.example/x.png 2x">',
        '<iframe src="https://cdn.example"></iframe>',
        "<style>@import 'https://cdn.example/x.css';</style>",
        "<p style=\"background: url('https://cdn.example/x.png')\">",
    ],
)
def test_whatever_a_page_would_load_from_another_host_is_found(hooks, html):
    (address,) = hooks.foreign(f"<html><body>{html}</body></html>")
    assert "cdn.example" in address


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://arxiv.org/abs/2011.10566">the paper</a>',
        '<link rel="canonical" href="https://gsg.example/">',
        '<img src="report-1280.png"><script src="/assets/x.js"></script>',
        '<img src="data:image/png;base64,//8=">',
        "<style>a{}</style><code>url(https://cdn.example/x.png)</code>",
    ],
)
def test_links_and_what_the_site_holds_itself_are_left_alone(hooks, html):
    assert hooks.foreign(html) == []


def test_a_built_site_that_loads_from_another_host_is_warned_of(hooks, tmp_path, caplog):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "assets" / "x.css").write_text("@import url(//cdn.example/font.css); a{color:red}")
    (tmp_path / "fine.html").write_text('<a href="https://cdn.example">link</a>')
    config = MkDocsConfig(str(ROOT / "mkdocs.yml"))
    config.load_dict({"site_dir": str(tmp_path)})
    with caplog.at_level(logging.WARNING):
        hooks.on_post_build(config=config)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("cdn.example" in text for text in said)
    # The warnings are counted by `mkdocs build --strict`.
    assert {record.name.partition(".")[0] for record in caplog.records} == {"mkdocs"}


def test_the_roots_files_are_pages_whose_links_are_seen_from_docs(hooks):
    config = MkDocsConfig(str(ROOT / "mkdocs.yml"))
    config.plugins = PluginCollection()
    config.plugins._current_plugin = ""  # as where mkdocs calls a hook
    pages = {file.src_uri: file for file in hooks.on_files(Files([]), config=config)}
    assert pages.keys() == {"index.md", "contributing.md", "notebooks/quickstart.ipynb"}
    index = pages["index.md"].content_string
    assert "](methods.md)" in index and "](report-1280.png)" in index
    assert "](contributing.md)" in index and "](docs/" not in index
    assert (ROOT / "README.md").read_text().splitlines()[0] in index
