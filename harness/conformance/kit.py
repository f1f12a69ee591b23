"""Runs the conformance checks of a plug-in and stores its score."""

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
from harness.conformance.report import KIT, Fault, NotApplicable, Report, Result, error_line, plugin_line
from harness.errors import HarnessError, UsageError
from harness.system.host import add_cache_notes, read_cache_notes
from harness.system.isolation import plugin_code

KINDS = ("pruner", "device", "evaluator")


def bench_of(kind: str, name: str, settings: Mapping[str, Any], work: Path) -> Any:
    """A bench for a plug-in of this kind. Its methods named `check_*` are the checks."""
    from harness.conformance import device_checks, evaluator_checks, pruner_checks

    benches = {
        "pruner": pruner_checks.PrunerChecks,
        "device": device_checks.DeviceBench,
        "evaluator": evaluator_checks.EvaluatorBench,
    }
    return benches[kind](name, settings, work)


def checks(bench: Any) -> Iterator[tuple[str, Callable[[], None], str]]:
    """Name, function and docstring of every check, in the order in which they are written."""
    for name, function in type(bench).__dict__.items():
        if name.startswith("check_"):
            yield name.removeprefix("check_").replace("_", "-"), getattr(bench, name), inspect.getdoc(function) or ""


def run_check(bench: Any, name: str, function: Callable[[], None]) -> Result:
    """Run one check. A failure that the spec declares in `exceptions` is expected."""
    excuse = bench.spec.exceptions.get(name)
    trace = ""
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
        outcome, detail = "failed", f"{error_line(error)} ({plugin_line(error, bench.spec)})"
        trace = "".join(traceback.format_exception(error))
    if excuse is not None:
        if not excuse.strip():
            return Result(name, "failed", f"it is excused without a reason: {detail or 'and it passes'}")
        if outcome == "failed":
            return Result(name, "expected", f"{excuse} [{detail}]")
        if outcome == "passed":  # strict: an exception that is no longer needed must be deleted
            return Result(name, "failed", f"it passes, but is declared to fail: {excuse}")
    return Result(name, outcome, detail, trace)


def kinds_of(name: str, kind: str = "") -> list[str]:
    """The kinds of plug-in that are registered under this name; `kind` selects one of them."""
    specs = plugins.registry().specs
    kinds = [k for k in KINDS if name in specs[k] and kind in ("", k)]
    if not kinds:
        names = {n for k in KINDS if kind in ("", k) for n in specs[k]}
        raise plugins.unknown_name(kind or "plug-in", name, names, plugins.registry().why_missing(name))
    return kinds


def check(
    name: str,
    kind: str = "",
    settings: Mapping[str, Any] | None = None,
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Report]:
    """Run all checks of every plug-in that is registered under this name; one report for each."""
    from harness.conformance import second_process

    reports = []
    for plugin_kind in kinds_of(name, kind):
        report = Report(plugin_kind, name)
        with tempfile.TemporaryDirectory(prefix="harness-check-") as folder:
            bench = bench_of(plugin_kind, name, settings or {}, Path(folder))
            if stale := set(bench.spec.exceptions) - {title for title, *_ in checks(bench)}:
                raise UsageError(
                    f"{name} excuses {sorted(stale)[0]!r}, which is no check of the kit",
                    "delete it from the spec's exceptions",
                )
            first_checks: dict[str, str] = {}  # by detail: the check that failed with it first
            try:
                for title, function, _ in checks(bench):
                    result = run_check(bench, title, function)
                    if result.outcome == "failed":
                        first = first_checks.setdefault(result.detail, title)
                        if first != title:
                            result = Result(title, "failed", f"see {first}")
                    report.results.append(result)
                    on_result(result)
            finally:
                bench.close()
                second_process.stop_shared_process()
        reports.append(report)
        if not settings:
            store_score(report)
    return reports


# --- the score that goes into records ---


def _key(kind: str, name: str) -> str:
    """A hash of the kit and the plug-in with their sources: a score holds for exactly these."""
    text = f"{KIT} {kind} {name} {plugins.code_version(kind, name)} {plugins.source_hash('harness.conformance')}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


NOTES = "conformance.json"


def cached_score(kind: str, name: str) -> dict[str, Any] | None:
    """The stored score of the present version of a plug-in, or None if it was never checked."""
    score = read_cache_notes(NOTES).get(_key(kind, name))
    if not isinstance(score, dict) or not isinstance(score.get("kit"), str):
        return None
    return score if all(isinstance(score.get(part), int) for part in ("passed", "of")) else None


def store_score(report: Report) -> None:
    """Store the score of a report for later records."""
    add_cache_notes(
        NOTES, {_key(report.kind, report.name): {"kit": report.kit, "passed": report.passed, "of": report.of}}
    )


def record_score(pruner: str, stage: Callable[[str], Any]) -> Any:
    """The score of a pruner for its records. A version that was never checked is checked now."""
    from harness.records.schema import Conformance

    if cached_score("pruner", pruner) is None and os.environ.get("HARNESS_CHECK") != "0":
        with stage("check the method"):
            check(pruner, "pruner")
    cached = cached_score("pruner", pruner)
    return None if cached is None else Conformance(**cached)
