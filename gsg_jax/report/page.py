"""Pages: one HTML file that needs no network, from templates of gsg_jax/report/page/."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gsg_jax.report.charts import bar

FOLDER = Path(__file__).parent / "page"


def page(template: str, **content: Any) -> str:
    """Fills a template in.

    Args:
      template: a file of gsg_jax/report/page/.
      **content: what it names.

    Returns:
      The text of an HTML file: style, script, pictures and all.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "style": Markup((FOLDER / "style.css").read_text()),
        "script": Markup((FOLDER / "page.js").read_text()),
        "as_json": as_json,
        "bar": bar,
    }
    text = environment.get_template(template).render(**content) + "\n"
    return text.encode("utf-8", "replace").decode()  # a file's name may be no text


def as_json(value: Any) -> Markup:
    """A value for a script element: nothing in it can end the element, or is no JSON."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
