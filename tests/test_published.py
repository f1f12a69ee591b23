"""Published tables are what their records give, and the records tell nothing of the machine but what a reader needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.leaderboard.table import tables
from harness.records import Record

BOARDS = Path(__file__).parent.parent / "leaderboards"
RESULTS = sorted(path for path in (BOARDS / "results").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_a_table_is_what_its_records_give(folder):
    records = [Record.model_validate_json(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    assert records
    assert all(record.sealed().digest == record.digest for record in records)
    page = (BOARDS / f"{folder.name}.md").read_text(encoding="utf-8")
    assert page.endswith(tables(records) + "\n")


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_records_hold_no_paths(folder):
    for path in folder.glob("*.json"):
        assert not re.findall(r'"(?:[^"]* )?/\w[^"]*"', path.read_text(encoding="utf-8")), path
