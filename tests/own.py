"""Own parts in tests: what is registered goes again."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from gsg_jax.config import own
from gsg_jax.data.open import SOURCES
from gsg_jax.methods import METHODS
from gsg_jax.models.siamese import BACKBONES
from tests.runs import ROOT

OWN_METHOD, OWN_BACKBONE, OWN_DATASET = (
    ROOT / "examples" / f"own_{part}.py" for part in ("method", "backbone", "dataset")
)


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """As in another process: no own part is known, and what is registered goes again."""
    with contextlib.ExitStack() as stack:
        for table in (METHODS, BACKBONES, SOURCES, own._ORIGINS):
            stack.enter_context(mock.patch.dict(table))
        for kind, name in own._ORIGINS:
            del own._TABLES[kind][name]
        own._ORIGINS.clear()
        yield
