"""Counts the faults that were tried and survived, and prints one table of them.

The short form, which `make test-all` runs, has a few tries of each kind; `make faults` sets
FAULTS=full and runs all of them.
"""

import collections
import os

import pytest
from rich.console import Console
from rich.table import Table

FULL = os.environ.get("FAULTS") == "full"
NAME = "fault"


@pytest.fixture
def tally(record_property):
    """Takes a kind of fault, how many were tried, and how many the run survived; all by default."""

    def count(kind: str, tried: int, survived: int | None = None) -> None:
        survived = tried if survived is None else survived
        record_property(NAME, [kind, tried, survived])
        assert survived == tried, f"{kind}: {survived} of {tried} survived"

    return count


def faults_of(report):
    """The faults that a test has counted; one that failed elsewhere has not survived its own."""
    if report.when == "teardown":  # it has those of the call again
        return []
    properties = getattr(report, "user_properties", [])
    found = [value for name, value in properties if name == NAME]
    is_told = any(survived < tried for _, tried, survived in found)
    if report.failed and not is_told and report.nodeid.startswith("tests/faults/"):
        found.append([report.nodeid, 1, 0])
    return found


def pytest_terminal_summary(terminalreporter):
    """Prints the table, even if a test has failed."""
    counts = collections.defaultdict(lambda: [0, 0])
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, tried, survived in faults_of(report):
                counts[kind][0] += tried
                counts[kind][1] += survived
    if not counts:
        return
    table = Table("fault", "tried", "survived", title="Faults")
    for kind, (tried, survived) in counts.items():
        table.add_row(kind, str(tried), str(survived))
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    table.add_section()
    table.add_row("all", *map(str, total))
    Console(width=100).print(table)
