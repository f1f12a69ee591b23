"""Records grouped for pages: a board per setup, a group per budget and recovery, a row per method."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from harness.api import Workload
from harness.leaderboard.entries import Entry
from harness.plugins import registry
from harness.records.keys import canonical
from harness.records.schema import TRUST, Latency, Record, RunSpec, ScoreRecord
from harness.resolve import changed_parameters

LEVEL = 0.05  # of significance
VARYING = ("seed", "revision", "workloads", "sustain")  # fields of a spec that may differ between the seeds of a row


@dataclass(frozen=True)
class Setup:
    """What all rows of a board have in common."""

    model: str
    revision: str
    dtype: str
    device: str
    runtime: str
    machine: str
    clock: str
    workload: str


class Column(NamedTuple):
    """A score and how it was taken. Scores that were taken differently are in different columns."""

    name: str
    protocol: str  # window, shots, split and number of documents
    data: str  # identifies the documents, as canonical JSON


@dataclass
class Row:
    """One method at one budget, with one record per seed."""

    entries: list[Entry]
    workload: str
    letters: dict[Column, str] = field(default_factory=dict)

    @property
    def record(self) -> Record:
        return self.entries[0].record

    @property
    def spec(self) -> RunSpec:
        return self.record.spec

    @property
    def timings(self) -> list[Latency]:
        return [entry.record.latency[self.workload] for entry in self.entries]

    @property
    def settings(self) -> str:
        return " ".join(f"{name}={value}" for name, value in settings(self.record).items())

    @property
    def recovery(self) -> str:
        """The recovery's name, without settings."""
        return _recovery_key(self.spec.recovery)[1]

    @property
    def trust(self) -> str:
        """The trust of the least trusted seed."""
        return min((entry.record.trust for entry in self.entries), key=TRUST.index)

    @property
    def speedup(self) -> float:
        return math.exp(statistics.fmean(math.log(timing.speedup) for timing in self.timings))

    @property
    def ms(self) -> float:
        return statistics.fmean(timing.pruned.median_ns for timing in self.timings) / 1e6

    @property
    def energy(self) -> float | None:
        """Millijoules per token. Energy is measured under a record's first workload only."""
        readings = [e.record.energy.pruned for e in self.entries if self.workload == e.record.spec.workloads[0]]
        joules = [reading for reading in readings if reading is not None]
        return 1e3 * statistics.fmean(joules) / Workload.parse(self.workload).items if joules else None

    @cached_property
    def scores(self) -> dict[Column, ScoreRecord]:
        """The scores of the first seed, by column."""
        return {column_of(name, score): score for name, score in quality_scores(self.record).items()}

    @cached_property
    def documents(self) -> dict[Column, dict[str, float]]:
        """Each document's score, by column: the mean over the seeds."""
        if len(self.entries) == 1:
            return {column: dict(self.entries[0].documents(score)) for column, score in self.scores.items()}
        means = {}
        for column in self.scores:
            by_seed = []
            for entry in self.entries:
                if (score := score_in(entry.record, column)) is not None:
                    by_seed.append(entry.documents(score))
            shared = set.intersection(*map(set, by_seed))
            means[column] = {name: statistics.fmean(scores[name] for scores in by_seed) for name in sorted(shared)}
        return means

    def values(self, column: Column) -> list[float]:
        """The score of each seed that has it."""
        if len(self.entries) == 1:
            return [self.scores[column].value] if column in self.scores else []
        scores = [score_in(entry.record, column) for entry in self.entries]
        return [score.value for score in scores if score is not None]

    def value(self, column: Column) -> float | None:
        """The mean over the seeds: geometric for perplexities, as it is over documents."""
        values = self.values(column)
        if not values:
            return None
        if self.scores[column].scale == "exp-mean":
            return math.exp(statistics.fmean(map(math.log, values)))
        return statistics.fmean(values)


@dataclass
class Group:
    """The rows at one budget with one kind of recovery, the best first once `ranking.rank_group` has sorted them."""

    budget: str
    rows: list[Row]
    failures: list[Entry]
    recovery: str = "none"
    sorted_by: list[Column] = field(default_factory=list)  # one score, or the tasks of the mean accuracy

    @property
    def title(self) -> str:
        return self.budget if self.recovery == "none" else f"{self.budget}, after {self.recovery}"


@dataclass
class Board:
    """All groups of one setup."""

    setup: Setup
    groups: list[Group]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]

    @property
    def columns(self) -> list[Column]:
        return sorted({column for row in self.rows for column in row.scores})


def boards(entries: Iterable[Entry]) -> tuple[list[Board], list[Entry]]:
    """The boards of these records, and the records that are on none: no real device measured them."""
    measured: dict[Setup, list[Entry]] = defaultdict(list)
    outside, failed = [], []
    for entry in entries:
        payload, spec = entry.payload, entry.payload["spec"]
        device = payload["environment"]["device"]
        if payload["status"] != "ok":
            failed.append(entry)
            continue
        # One board per workload that a real device timed.
        is_real = device.get("provenance", "device") == "device"
        workloads = [w for w, timing in payload["latency"].items() if is_real and timing["provenance"] == "device"]
        if not workloads:
            outside.append(entry)
        for workload in workloads:
            names = (spec["model"], spec["revision"], spec["dtype"], spec["device"], spec["runtime"])
            setup = Setup(*names, canonical(device), payload["latency"][workload]["clock"], workload)
            measured[setup].append(entry)

    # A failed run has no latency. It goes to the board of the first workload that it requested.
    failed_of: dict[Setup, list[Entry]] = defaultdict(list)
    for entry in failed:
        spec, machine = entry.payload["spec"], canonical(entry.payload["environment"]["device"])
        request = (spec["model"], spec["dtype"], spec["device"], spec["runtime"], spec["workloads"][0])
        candidates = [s for s in measured if (s.model, s.dtype, s.device, s.runtime, s.workload) == request]
        candidates = [s for s in candidates if s.machine == machine] or candidates
        if candidates:
            failed_of[min(candidates, key=str)].append(entry)
        else:
            outside.append(entry)

    def order(setup: Setup) -> tuple[str, str, str, int, str]:
        """Boards of one page are neighbours, the one with most records first."""
        return setup.model, setup.device, setup.workload, -len(measured[setup]), str(setup)

    return [_board(setup, measured[setup], failed_of[setup]) for setup in sorted(measured, key=order)], outside


def _board(setup: Setup, entries: Sequence[Entry], failed: Sequence[Entry]) -> Board:
    by_group: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in [*entries, *failed]:
        spec = entry.payload["spec"]
        by_group[(*_budget_key(spec), *_recovery_key(spec["recovery"]))].append(entry)
    groups = []
    for key in sorted(by_group):
        members = by_group[key]
        ok = [entry for entry in members if entry.payload["status"] == "ok"]
        rows = [Row(seeds, setup.workload) for seeds in _seeds_of_methods(ok)]
        failures = [entry for entry in members if entry.payload["status"] != "ok"]
        groups.append(Group(budget_text(members[0].payload["spec"]), rows, failures, recovery=key[-1]))
    return Board(setup, groups)


def _seeds_of_methods(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The records of each row, by seed. Records of a row differ in the seed only; of one seed the latest counts."""
    by_request: dict[str, dict[int, Entry]] = defaultdict(dict)
    for entry in sorted(entries, key=lambda e: (e.payload["finished"], e.payload["id"])):
        request = {name: value for name, value in entry.payload["spec"].items() if name not in VARYING}
        by_request[canonical(request)][entry.payload["spec"]["seed"]] = entry
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in by_request.values()]


def _budget_key(spec: dict[str, Any]) -> tuple[Any, ...]:
    """The order of budgets: shares of the dense latency from the largest, then milliseconds, then ratios."""
    kind, unit, value = (spec["budget"][name] for name in ("kind", "unit", "value"))
    return (kind, unit == "ms", -value, spec["workloads"][0]) if kind == "latency" else (kind, False, value, "")


def _recovery_key(label: str) -> tuple[bool, str]:
    """The order of recoveries: none first, then by name. Settings do not count."""
    name = label.partition(":")[0]
    return name != "none", name


def budget_text(spec: dict[str, Any]) -> str:
    kind, unit, value = (spec["budget"][name] for name in ("kind", "unit", "value"))
    if kind == "ratio":
        return f"{value:.4g} of the prunable parameters removed" if value else "nothing removed"
    limit = f"{value:.4g}x of dense" if unit == "x" else f"{value:.4g} ms"
    return f"at most {limit}, {spec['workloads'][0]}"


def settings(record: Record) -> dict[str, Any]:
    """The parameters that differ from their preset's.

    Older records do not list them; they are then compared with the presets of the installed method.
    """
    if record.unusual is not None:
        return record.unusual
    method = registry().specs["pruner"].get(record.spec.pruner)
    return changed_parameters(method, record.spec) if method else record.spec.parameters


def quality_scores(record: Record) -> Mapping[str, ScoreRecord]:
    """The scores of quality, which rank a model. Footprints are left out."""
    return {name: score for name, score in record.scores.items() if not name.startswith("footprint")}


def column_of(name: str, score: ScoreRecord) -> Column:
    details = score.details
    protocol = [
        *([f"window {details['window']}"] if "window" in details else ()),
        *([f"{details['fewshot']}-shot"] if "fewshot" in details else ()),
        *([str(details["split"])] if "split" in details else ()),
        f"n={score.n}",
    ]
    data = canonical([details.get(field) for field in ("data", "task_version", "bos")])
    return Column(name, ", ".join(protocol), data)


def score_in(record: Record, column: Column) -> ScoreRecord | None:
    """The record's score that belongs to this column, if it has one."""
    score = quality_scores(record).get(column.name)
    return score if score is not None and column_of(column.name, score) == column else None
