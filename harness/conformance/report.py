"""Results of conformance checks, and how errors of plug-ins are shown."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KIT = "2"  # raise when a check is added or means something else


class Fault(Exception):
    """Raised by a check that fails. The text tells the author of the plug-in what is wrong."""


class NotApplicable(Exception):
    """Raised by a check that does not apply here. The text says why."""


@dataclass(frozen=True)
class Result:
    check: str
    outcome: str  # passed, failed, skipped, expected
    detail: str = ""
    trace: str = field(default="", repr=False)  # traceback of an exception that the check did not expect


@dataclass
class Report:
    """The results of all checks of one plug-in. `passed` of `of` is its score; skipped checks do not count."""

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

    def to_dict(self) -> dict[str, Any]:
        results = [{"check": r.check, "outcome": r.outcome, "detail": r.detail} for r in self.results]
        return {**asdict(self), "results": results, "passed": self.passed, "of": self.of, "ok": self.ok}


def first_line(text: str) -> str:
    """The beginning of the first line that is not blank."""
    return text.strip().splitlines()[0][:80]


def error_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160]


def plugin_line(error: BaseException, spec: Any) -> str:
    """File and line of the innermost frame inside the plug-in; of the innermost frame of all, if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    module = spec.target.partition(":")[0].partition(".")[0]
    plugin_frames = [frame for frame in frames if module in Path(frame.filename).with_suffix("").parts]
    last = (plugin_frames or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
