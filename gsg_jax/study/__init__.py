"""Studies: named configs by several seeds, run one after another, with intervals and a verdict.

A study is a Python file with a function get_study() that returns a Study; configs/studies/ has
some. docs/studies.md explains how to write and run one.
"""

from gsg_jax.study.cells import Cell, Study

__all__ = ["Cell", "Study"]
