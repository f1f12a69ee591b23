"""Runs the checks of one plug-in and keeps score."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import plugins
from harness.conformance.report import KIT, Fault, NotApplicable, Report, Result, in_a_line, where
from harness.errors import HarnessError, UsageError
from harness.system.host import note, notes
from harness.system.isolation import plugin_code

KINDS = ("pruner", "device", "evaluator")


def bench_of(kind: str, name: str, settings: Mapping[str, Any], work: Path) -> Any:
    """The bench that a plug-in of this kind is put on; its methods named `check_*` are the checks."""
    from harness.conformance import device_checks, evaluator_checks, pruner_checks

    made = {
        "pruner": pruner_checks.PrunerChecks,
        "device": device_checks.DeviceBench,
        "evaluator": evaluator_checks.EvaluatorBench,
    }
    return made[kind](name, settings, work)


def checks(bench: Any) -> Iterator[tuple[str, Callable[[], None], str]]:
    """Name, function and meaning of every check, in the order they are written."""
    for name, function in type(bench).__dict__.items():
        if name.startswith("check_"):
            yield name.removeprefix("check_").replace("_", "-"), getattr(bench, name), inspect.getdoc(function) or ""


def judged(bench: Any, name: str, function: Callable[[], None]) -> Result:
    """One check, with what its plug-in declares to fail, and why."""
    excused, trace = bench.spec.exceptions.get(name), ""
    try:
        with plugin_code(bench.spec.name):
            function()
        outcome, detail = "passed", ""
    except NotApplicable as reason:
        outcome, detail = "skipped", str(reason)
    except Fault as fault:
        outcome, detail = "failed", str(fault)
    except HarnessError as error:
        outcome, detail = "failed", f"{error.cause}" + (f" ({error.remedy})" if error.remedy else "")
    except (Exception, SystemExit) as error:
        outcome, detail = "failed", f"{in_a_line(error)} ({where(error, bench.spec)})"
        trace = "".join(traceback.format_exception(error))
    if excused is not None:
        if not excused.strip():
            return Result(name, "failed", f"it is excused without a reason: {detail or 'and it passes'}")
        if outcome == "failed":
            return Result(name, "expected", f"{excused} [{detail}]")
        if outcome == "passed":  # strict: what was mended must be struck off
            return Result(name, "failed", f"it passes, but is declared to fail: {excused}")
    return Result(name, outcome, detail, trace)


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
    from harness.conformance import second_process

    reports = []
    for found in kinds_of(name, kind):
        report = Report(found, name)
        with tempfile.TemporaryDirectory(prefix="harness-check-") as folder:
            bench = bench_of(found, name, settings or {}, Path(folder))
            if stale := set(bench.spec.exceptions) - {title for title, *_ in checks(bench)}:
                raise UsageError(f"{name} excuses {sorted(stale)[0]!r}, which the kit does not check", "strike it off")
            known: dict[str, str] = {}  # what failed first, by what it said
            try:
                for title, function, _ in checks(bench):
                    result = judged(bench, title, function)
                    if result.outcome == "failed" and (first := known.setdefault(result.detail, title)) != title:
                        result = Result(title, "failed", f"see {first}")
                    report.results.append(result)
                    told(result)
            finally:
                bench.close()
                second_process.end()
        reports.append(report)
        if not settings:
            remember(report)
    return reports


# --- the score that records carry ---


def _key(kind: str, name: str) -> str:
    words = f"{KIT} {kind} {name} {plugins.code_version(kind, name)} {plugins.source_mark('harness.conformance')}"
    return hashlib.sha256(words.encode()).hexdigest()[:24]


NOTES = "conformance.json"


def remembered(kind: str, name: str) -> dict[str, Any] | None:
    """The score of a plug-in as it is now, if it was checked."""
    score = notes(NOTES).get(_key(kind, name))
    if not isinstance(score, dict) or not isinstance(score.get("kit"), str):
        return None
    return score if all(isinstance(score.get(part), int) for part in ("passed", "of")) else None


def remember(report: Report) -> None:
    note(NOTES, {_key(report.kind, report.name): {"kit": report.kit, "passed": report.passed, "of": report.of}})


def score(pruner: str, stage: Callable[[str], Any]) -> Any:
    """A method's score for its records; a version that was never checked is checked now, once."""
    from harness.records.schema import Conformance

    if remembered("pruner", pruner) is None and os.environ.get("HARNESS_CHECK") != "0":
        with stage("check the method"):
            check(pruner, "pruner")
    known = remembered("pruner", pruner)
    return None if known is None else Conformance(**known)
