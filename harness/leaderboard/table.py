"""A plain Markdown table per model, precision, device and workload. Only what a real device measured enters.

Scores that were taken differently (window, number of documents) stand in different columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness import stats
from harness.accounting import tokens
from harness.api import Workload
from harness.keys import canonical
from harness.plugins import registry
from harness.records import Latency, Record, RunSpec, ScoreRecord


def tables(records: Sequence[Record]) -> str:
    """All tables, and below them every cell that has no row, with its reason."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    outside = []
    for record in records:
        spec = record.spec
        who = f"- {spec.pruner} on {spec.model} ({record.id[:8]})"
        measured = [w for w, t in record.latency.items() if t.provenance == "device"]
        if record.status != "ok":
            outside.append(f"{who}: **{record.status}**: {record.reason}")
            continue
        elif not measured:
            kinds = sorted({t.provenance for t in record.latency.values()})
            outside.append(f"{who}: {', '.join(kinds)}, not measured on a device")
        for workload in measured:
            machine = canonical(record.environment.device)
            clock = record.latency[workload].clock
            key = (spec.model, spec.revision, spec.dtype, spec.device, spec.runtime, machine, clock, workload)
            groups.setdefault(key, []).append(record)
    parts = [_group(workload, found) for (*_, workload), found in sorted(groups.items())]
    if outside:
        parts.append("Not in a table:\n\n" + "\n".join(sorted(outside)))
    return "\n\n".join(parts)


def _group(workload: str, records: list[Record]) -> str:
    timings = [record.latency[workload] for record in records]
    floors = [t.noise_floor for t in timings if t.noise_floor is not None]
    healed = any(record.spec.recovery != "none" for record in records)
    metered = any(_energy(record, workload) for record in records)
    columns = sorted({_column(name, score) for record in records for name, score in _scores(record).items()})
    rows = []
    for record in sorted(records, key=lambda r: -r.latency[workload].speedup):
        artefact, spec = record.artefact, record.spec
        assert artefact is not None
        settings = _unusual(spec) | ({"seed": spec.seed} if spec.seed else {})
        row = {
            "pruner": spec.pruner,
            "settings": " ".join(f"{k}={v}" for k, v in settings.items()),
            "preset": spec.preset,
            "budget": f"{spec.budget.kind} {spec.budget.value:g}{spec.budget.unit}",
            "recovery": spec.recovery,
            "removed": f"{artefact.ratio_blocks:.2%}",
            "params": f"{artefact.params_nonzero:,}",
            "speed-up [95 %]": _speedup(record.latency[workload]),
            "ms": f"{record.latency[workload].pruned.median_ns / 1e6:.2f}",
        }
        if not healed:
            del row["recovery"]
        if metered:
            row["mJ per token"] = _energy(record, workload) or "not read"
        values = {
            _column(name, score): stats.spread(score.value, score.stderr) for name, score in _scores(record).items()
        }
        rows.append(row | {column: values.get(column, "-") for column in columns} | {"cell": record.id[:8]})
    spec, machine = records[0].spec, records[0].environment.device
    clocks = " and ".join(sorted({t.clock for t in timings}))
    floor = f"; noise floor {max(floors):.1%}" if floors else ""
    where = f"{spec.device} {spec.runtime} ({machine.get('model', '')}, {machine.get('threads', '?')} threads)"
    title = f"### {spec.model}, {spec.dtype}, on {where}, {workload}, by {clocks} time{floor}"
    return f"{title}\n\n{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}"


def _energy(record: Record, workload: str) -> str:
    """What a token of the pruned model takes; energy is read under a record's first workload."""
    joules = record.energy.pruned if workload == record.spec.workloads[0] else None
    return "" if joules is None else f"{1e3 * joules / tokens(Workload.parse(workload)):.4g}"


def _unusual(spec: RunSpec) -> dict[str, Any]:
    """Parameters that are not their preset's; all of them, where the method is not installed here."""
    known = registry().specs["pruner"].get(spec.pruner)
    usual = {n: p.default(spec.preset) for n, p in known.parameters.items()} if known else {}
    return {name: value for name, value in spec.parameters.items() if name not in usual or usual[name] != value}


def _scores(record: Record) -> dict[str, ScoreRecord]:
    return {name: score for name, score in record.scores.items() if not name.startswith("footprint")}


def _column(name: str, score: ScoreRecord) -> str:
    window = f", window {score.details['window']}" if "window" in score.details else ""
    split = f", {score.details['split']}" if "split" in score.details else ""
    return f"{name}{window}{split}, n={score.n}"


def _speedup(timing: Latency) -> str:
    bounds = timing.speedup_ci95
    return f"{timing.speedup:.3f}x" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
