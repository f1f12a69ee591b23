"""What every plug-in must hold, checked on tiny models without a network: `harness check NAME`, or one line in pytest.

from harness.conformance import Conformance

class TestMine(Conformance):
    name = "mine"
"""

from __future__ import annotations

from typing import Any

from harness.conformance.kit import check
from harness.conformance.report import KIT, Report, Result


class Conformance:
    """One test per check of the kit. `kind`: where a name stands for several; `settings`: where defaults won't do."""

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
