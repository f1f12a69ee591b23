"""The fault suite: each test is one distinct fault, and ends in something that a user can act on.

`uv run pytest -m faults` runs all of it. A test that keeps a store says how many of its records were lost with the
fixture `lost`; the closing table adds up.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def lost(record_property):
    """Say how many records a fault cost: `lost(expected_ids, store)` counts those that are missing or unreadable."""

    def count(expected, store):
        records = {path.stem for path in store.path("records").glob("*.json")}
        gone = [cell for cell in expected if cell not in records or store.record(cell) is None]
        record_property("records_lost", len(gone))
        assert not gone, f"records lost: {gone}"

    return count


def pytest_terminal_summary(terminalreporter):
    tried, survived, records, rooms = 0, 0, 0, Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if not report.nodeid.startswith("tests/faults/") or (report.when != "call" and outcome == "passed"):
                continue
            tried += 1
            survived += outcome == "passed"
            rooms[Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_")] += 1
            records += sum(value for name, value in report.user_properties if name == "records_lost")
    if not tried:
        return
    terminalreporter.section("faults")
    for room, count in sorted(rooms.items()):
        terminalreporter.write_line(f"{room:24}{count:6}")
    terminalreporter.write_line(f"{'distinct faults tried':24}{tried:6}")
    terminalreporter.write_line(f"{'survived':24}{survived:6}")
    terminalreporter.write_line(f"{'records lost':24}{records:6}")
