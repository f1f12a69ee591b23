"""A plain Markdown table per model, device and workload. Only what a real device measured enters."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from harness.records import Latency, Record


def tables(records: Sequence[Record]) -> str:
    """All tables, and below them every cell that has no row, with its reason."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    outside = []
    for record in records:
        measured = {w: t for w, t in record.latency.items() if t.provenance == "device"}
        if record.status != "ok":
            outside.append(f"- {record.spec.pruner} on {record.spec.model}: **{record.status}**: {record.reason}")
        elif not measured:
            kinds = sorted({t.provenance for t in record.latency.values()})
            outside.append(
                f"- {record.spec.pruner} on {record.spec.model}: {', '.join(kinds)}, not measured on a device"
            )
        for workload in measured:
            groups.setdefault((record.spec.model, record.spec.device, workload), []).append(record)
    parts = [_group(*key, found) for key, found in sorted(groups.items())]
    if outside:
        parts.append("Not in a table:\n\n" + "\n".join(sorted(outside)))
    return "\n\n".join(parts)


def _group(model: str, device: str, workload: str, records: list[Record]) -> str:
    timings = [record.latency[workload] for record in records]
    floors = [t.noise_floor for t in timings if t.noise_floor is not None]
    names = sorted({n for record in records for n in record.scores if not n.startswith("footprint")})
    rows = []
    for record in sorted(records, key=lambda r: -r.latency[workload].speedup):
        artefact = record.artefact
        assert artefact is not None
        spec = record.spec
        row = {
            "pruner": spec.pruner,
            "settings": " ".join(f"{k}={v}" for k, v in spec.parameters.items()),
            "preset": spec.preset,
            "removed": f"{artefact.ratio_blocks:.2%}",
            "params": f"{artefact.params_nonzero:,}",
            "speed-up [95 %]": _speedup(record.latency[workload]),
            "ms": f"{record.latency[workload].pruned.median_ns / 1e6:.2f}",
        }
        for name in names:
            score = record.scores.get(name)
            row[name] = f"{score.value:.4g} (n={score.n})" if score else "-"
        rows.append(row | {"cell": record.id[:8]})
    clocks = " and ".join(sorted({t.clock for t in timings}))
    floor = f"; noise floor {max(floors):.1%}" if floors else ""
    return f"### {model} on {device}, {workload}, by {clocks} time{floor}\n\n" + tabulate(
        rows, headers="keys", tablefmt="github", disable_numparse=True
    )


def _speedup(timing: Latency) -> str:
    bounds = timing.speedup_ci95
    return f"{timing.speedup:.3f}x" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
