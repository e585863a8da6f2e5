"""Writes docs/keys.md, the page of every key of a pretraining.

python docs/make_keys.py
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from gsg_jax.config.keys import ALWAYS, GROUPS, KEYS, UNTIL_TRAINED, option_keys
from gsg_jax.methods import METHODS, Key

PAGE = pathlib.Path(__file__).with_name("keys.md")
HEAD = """\
# All keys

<!-- made by docs/make_keys.py -->

`--config.GROUP.KEY=VALUE` sets a key. The defaults below are those of the papers: a ResNet-50 on
ImageNet. A [recipe](runs.md#recipes) and a method's config change some of them:
`gsg-jax METHOD:RECIPE --print_config` prints every key with the value that would be used, and
`gsg-jax knn --print_config` those of an evaluation.

When a run resumes, a key must have the value that it had, except those marked *always*, and the
length if it [grows](runs.md#train-longer). What is marked *until trained* may change as long as an
imported checkpoint has not been trained on.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [HEAD]
    for group in (*GROUPS, ""):
        keys = {name: key for name, key in KEYS.items() if name.rpartition(".")[0] == group}
        parts += [f"## {group or 'Without a group'}\n", _table(keys)]
    parts += ["## Options of single methods\n", _table(option_keys())]
    return "\n".join(parts)


def _table(keys: Mapping[str, Key]) -> str:
    lines = ["| key | default | limits | may change | meaning |", "|---|---|---|---|---|"]
    for name, key in keys.items():
        may_change = key.may_change if key.may_change in (ALWAYS, UNTIL_TRAINED) else ""
        option = name.removeprefix("method.")
        methods = [f"`{method}`" for method, row in METHODS.items() if option in row.options]
        meaning = f"{key.meaning} ({', '.join(methods)})" if methods else key.meaning
        default = _value(key.default) if key.has_default else ""
        cells = (f"`{name}`", default, _limits(key), may_change, meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if value == "":
        return ""
    numbers = value if isinstance(value, tuple) else (value,)
    text = ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in numbers)
    return f"`({text})`" if isinstance(value, tuple) else f"`{text}`"


def _limits(key: Key) -> str:
    names = list(key.limits)
    if names and not isinstance(names[0], str):
        return f"{names[0]:.10g} to {names[1]:.10g}"
    return "" if key.limits is METHODS else ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
