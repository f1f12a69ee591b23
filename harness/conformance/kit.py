"""Runs the checks of one plug-in and keeps score."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import plugins
from harness.errors import HarnessError, UsageError
from harness.host import cache_dir

KIT = "1"  # raise when a check is added or means something else
KINDS = ("pruner", "device", "evaluator")


class Fault(Exception):
    """A check that does not hold; the text names the fault as the author will want to read it."""


class NotApplicable(Exception):
    """A check that has nothing to look at here, and why."""


@dataclass(frozen=True)
class Result:
    check: str
    outcome: str  # passed, failed, skipped, expected
    detail: str = ""


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
        return {**asdict(self), "passed": self.passed, "of": self.of, "ok": self.ok}


def bench_of(kind: str, name: str, settings: Mapping[str, Any], work: Path) -> Any:
    """The bench that a plug-in of this kind is put on; its methods named `check_*` are the checks."""
    from harness.conformance import devices, evaluators, pruner_checks

    made = {"pruner": pruner_checks.PrunerChecks, "device": devices.DeviceBench, "evaluator": evaluators.EvaluatorBench}
    return made[kind](name, settings, work)


def checks(bench: Any) -> Iterator[tuple[str, Callable[[], None], str]]:
    """Name, function and meaning of every check, in the order they are written."""
    for name, function in type(bench).__dict__.items():
        if name.startswith("check_"):
            yield name.removeprefix("check_").replace("_", "-"), getattr(bench, name), inspect.getdoc(function) or ""


def judged(bench: Any, name: str, function: Callable[[], None]) -> Result:
    """One check, with what its plug-in declares to fail, and why."""
    excused = bench.spec.exceptions.get(name)
    try:
        function()
        outcome, detail = "passed", ""
    except NotApplicable as reason:
        outcome, detail = "skipped", str(reason)
    except Fault as fault:
        outcome, detail = "failed", str(fault)
    except HarnessError as error:
        outcome, detail = "failed", f"{error.cause}" + (f" ({error.remedy})" if error.remedy else "")
    except (Exception, SystemExit) as error:
        outcome, detail = "failed", f"{type(error).__name__}: {error}"
    if excused is not None:
        if outcome == "failed":
            return Result(name, "expected", f"{excused} [{detail}]")
        if outcome == "passed":  # strict: what was mended must be struck off
            return Result(name, "failed", f"it passes, but is declared to fail: {excused}")
    return Result(name, outcome, detail)


def kinds_of(name: str, kind: str = "") -> list[str]:
    specs = plugins.registry().specs
    found = [k for k in KINDS if name in specs[k] and kind in ("", k)]
    if not found:
        known = {n for k in KINDS if kind in ("", k) for n in specs[k]}
        raise plugins.unknown(kind or "plug-in", name, known, plugins.registry()._elsewhere(name))
    return found


def check(
    name: str,
    kind: str = "",
    settings: Mapping[str, Any] | None = None,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Report]:
    """All checks of everything registered under a name."""
    reports = []
    for found in kinds_of(name, kind):
        report = Report(found, name)
        with tempfile.TemporaryDirectory(prefix="harness-check-") as folder:
            bench = bench_of(found, name, settings or {}, Path(folder))
            if stale := set(bench.spec.exceptions) - {title for title, *_ in checks(bench)}:
                raise UsageError(f"{name} excuses {sorted(stale)[0]!r}, which the kit does not check", "strike it off")
            try:
                for title, function, _ in checks(bench):
                    report.results.append(judged(bench, title, function))
                    told(report.results[-1])
            finally:
                bench.close()
        reports.append(report)
        if not settings:
            remember(report)
    return reports


# --- the score that records carry ---


def _key(kind: str, name: str) -> str:
    words = f"{KIT} {kind} {name} {plugins.code_version(kind, name)} {plugins.source_mark('harness.conformance')}"
    return hashlib.sha256(words.encode()).hexdigest()[:24]


def _notes() -> Path:
    return cache_dir() / "conformance.json"


def remembered(kind: str, name: str) -> dict[str, Any] | None:
    """The score of a plug-in as it is now, if it was checked."""
    try:
        return json.loads(_notes().read_text(encoding="utf-8")).get(_key(kind, name))
    except (OSError, ValueError):
        return None


def remember(report: Report) -> None:
    try:
        known = json.loads(_notes().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known[_key(report.kind, report.name)] = {"kit": report.kit, "passed": report.passed, "of": report.of}
    try:
        _notes().parent.mkdir(parents=True, exist_ok=True)
        scratch = _notes().with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(known), encoding="utf-8")
        scratch.replace(_notes())
    except OSError:
        pass  # it will be checked again


def score(pruner: str, stage: Callable[[str], Any]) -> Any:
    """A method's score for its records; a version that was never checked is checked now, once."""
    from harness.records import Conformance

    if remembered("pruner", pruner) is None and os.environ.get("HARNESS_CHECK") != "0":
        with stage("check the method"):
            check(pruner, "pruner")
    known = remembered("pruner", pruner)
    return None if known is None else Conformance(**known)
