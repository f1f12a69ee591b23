"""Published pages are what their records give; records follow from their samples and hold no paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.leaderboard import site
from harness.leaderboard.audit.validate import orphans, verdicts
from harness.leaderboard.entries import read

BOARDS = Path(__file__).parent.parent.parent / "leaderboards"
RECORDS = sorted((BOARDS / "results").rglob("*.json"))


def test_pages_are_what_their_records_give():
    assert site.find_changes(BOARDS, site.page_files(BOARDS, read(BOARDS))) == {}


def test_records_are_fit_to_be_published():
    known = read(BOARDS)
    assert {
        v.path.name: (v.faults, v.reservations) for v in verdicts(known, BOARDS) if v.faults or v.reservations
    } == {}
    assert orphans(known) == []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem[:8])
def test_records_hold_no_paths(path):
    assert not re.findall(r'"(?:[^"]* )?/\w[^"]*"', path.read_text(encoding="utf-8"))
