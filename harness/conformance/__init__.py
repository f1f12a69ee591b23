"""The conformance kit: checks for every plug-in, on tiny models and without a network.

Run it with `harness check NAME`, or in pytest:

from harness.conformance import Conformance

class TestMine(Conformance):
    name = "mine"
"""

from __future__ import annotations

from typing import Any

from harness.conformance.kit import check
from harness.conformance.report import KIT, Report, Result


class Conformance:
    """A test class with one test per check of the kit.

    `kind` is needed where plug-ins of several kinds share the name, `settings` where the defaults do not suit.
    """

    name = ""
    kind = ""
    settings: dict[str, Any] = {}  # noqa: RUF012

    def test_conforms(self, harness_check: tuple[str, Any]) -> None:
        title, run = harness_check
        result: Result = run()
        if result.outcome == "skipped":
            import pytest

            pytest.skip(result.detail)
        assert result.outcome in ("passed", "expected"), f"{title}: {result.detail}"


__all__ = ["KIT", "Conformance", "Report", "Result", "check"]
