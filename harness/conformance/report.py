"""What checks found, and how it is shown."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KIT = "2"  # raise when a check is added or means something else


class Fault(Exception):
    """A check that does not hold; the text names the fault as the author will want to read it."""


class NotApplicable(Exception):
    """A check that has nothing to look at here, and why."""


@dataclass(frozen=True)
class Result:
    check: str
    outcome: str  # passed, failed, skipped, expected
    detail: str = ""
    trace: str = field(default="", repr=False)  # of an exception that is neither a fault nor a refusal


@dataclass
class Report:
    kind: str
    name: str
    kit: str = KIT
    results: list[Result] = field(default_factory=list)

    @property
    def passed(self) -> int:
        return sum(result.outcome == "passed" for result in self.results)

    @property
    def of(self) -> int:
        return sum(result.outcome != "skipped" for result in self.results)

    @property
    def ok(self) -> bool:
        return all(result.outcome != "failed" for result in self.results)

    def words(self) -> dict[str, Any]:
        results = [{"check": r.check, "outcome": r.outcome, "detail": r.detail} for r in self.results]
        return {**asdict(self), "results": results, "passed": self.passed, "of": self.of, "ok": self.ok}


def in_a_line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160]


def where(error: BaseException, spec: Any) -> str:
    """The line of the plug-in that an exception came through last; its origin, if it came through none."""
    frames = traceback.extract_tb(error.__traceback__)
    module = spec.target.partition(":")[0].partition(".")[0]
    own = [frame for frame in frames if module in Path(frame.filename).with_suffix("").parts]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
