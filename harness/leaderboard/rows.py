"""From records to the rows of a page: seeds joined, budgets and recoveries apart, and who cannot be told from whom."""

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
from harness.resolve import unusual

LEVEL = 0.05  # differences that chance shows more often than this are no differences
VARIES = ("seed", "revision", "workloads", "sustain")  # in the rows of one method at one budget


@dataclass(frozen=True)
class Place:
    """What the rows of one page have in common."""

    model: str
    revision: str
    dtype: str
    device: str
    runtime: str
    machine: str
    clock: str
    workload: str


class Column(NamedTuple):
    """A score and how it was taken: what was taken differently stands in another column."""

    name: str
    how: str
    data: str  # what identifies the documents


@dataclass
class Row:
    """One method at one budget, its seeds together."""

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
        """Its name, without settings."""
        return _recovery_key(self.spec.recovery)[1]

    @property
    def trust(self) -> str:
        """That of the least trusted seed."""
        return min((entry.record.trust for entry in self.entries), key=TRUST.index)

    @property
    def speedup(self) -> float:
        return math.exp(statistics.fmean(math.log(timing.speedup) for timing in self.timings))

    @property
    def ms(self) -> float:
        return statistics.fmean(timing.pruned.median_ns for timing in self.timings) / 1e6

    @property
    def energy(self) -> float | None:
        """Millijoules of a token; energy is read under a record's first workload."""
        read = [e.record.energy.pruned for e in self.entries if self.workload == e.record.spec.workloads[0]]
        known = [joules for joules in read if joules is not None]
        return 1e3 * statistics.fmean(known) / Workload.parse(self.workload).items if known else None

    @cached_property
    def scores(self) -> dict[Column, ScoreRecord]:
        """The first seed's, by how they were taken."""
        return {column_of(name, score): score for name, score in ranked(self.record).items()}

    @cached_property
    def documents(self) -> dict[Column, dict[str, float]]:
        """Per score each document's, the mean over seeds."""
        if len(self.entries) == 1:
            return {column: dict(self.entries[0].documents(score)) for column, score in self.scores.items()}
        found = {}
        for column in self.scores:
            each = [entry.documents(score) for entry in self.entries if (score := taken(entry.record, column))]
            shared = set.intersection(*(set(one) for one in each))
            found[column] = {name: statistics.fmean(one[name] for one in each) for name in sorted(shared)}
        return found

    def values(self, column: Column) -> list[float]:
        """One per seed."""
        if len(self.entries) == 1:
            return [self.scores[column].value] if column in self.scores else []
        return [score.value for entry in self.entries if (score := taken(entry.record, column))]

    def value(self, column: Column) -> float | None:
        """Over the seeds; perplexities by their logarithms, as documents are."""
        values = self.values(column)
        if not values:
            return None
        if self.scores[column].scale == "exp-mean":
            return math.exp(statistics.fmean(map(math.log, values)))
        return statistics.fmean(values)


@dataclass
class Group:
    """Rows at one budget that recovered in one way, the best first."""

    budget: str
    rows: list[Row]
    failures: list[Entry]
    recovery: str = "none"
    sorted_by: list[Column] = field(default_factory=list)  # once they are: one figure, or the tasks of the mean

    @property
    def title(self) -> str:
        return self.budget if self.recovery == "none" else f"{self.budget}, after {self.recovery}"


@dataclass
class Board:
    """All of one page."""

    place: Place
    groups: list[Group]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]

    @property
    def columns(self) -> list[Column]:
        return sorted({column for row in self.rows for column in row.scores})


def boards(entries: Iterable[Entry]) -> tuple[list[Board], list[Entry]]:
    """The pages, and what no device measured."""
    places: dict[Place, list[Entry]] = defaultdict(list)
    outside, failed = [], []
    for entry in entries:
        words, spec = entry.words, entry.words["spec"]
        played = words["environment"]["device"].get("provenance", "device") != "device"
        measured = [w for w, timing in words["latency"].items() if timing["provenance"] == "device" and not played]
        if words["status"] != "ok":
            failed.append(entry)
        elif not measured:
            outside.append(entry)
        for workload in measured if words["status"] == "ok" else ():
            machine, clock = canonical(words["environment"]["device"]), words["latency"][workload]["clock"]
            known = (spec["model"], spec["revision"], spec["dtype"], spec["device"], spec["runtime"])
            places[Place(*known, machine, clock, workload)].append(entry)
    lost: dict[Place, list[Entry]] = defaultdict(list)
    for entry in failed:  # what has no latency has no place of its own: the first that it asked for
        spec, machine = entry.words["spec"], canonical(entry.words["environment"]["device"])
        asked = (spec["model"], spec["dtype"], spec["device"], spec["runtime"], spec["workloads"][0])
        alike = [p for p in places if (p.model, p.dtype, p.device, p.runtime, p.workload) == asked]
        same = [p for p in alike if p.machine == machine] or alike
        if same:
            lost[min(same, key=str)].append(entry)
        else:
            outside.append(entry)

    def order(place: Place) -> tuple[str, str, str, int, str]:
        """Of one page's boards the one with most records first."""
        return place.model, place.device, place.workload, -len(places[place]), str(place)

    return [_board(place, places[place], lost[place]) for place in sorted(places, key=order)], outside


def _board(place: Place, entries: Sequence[Entry], failed: Sequence[Entry]) -> Board:
    alike: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in [*entries, *failed]:
        spec = entry.words["spec"]
        alike[(*_budget_key(spec), *_recovery_key(spec["recovery"]))].append(entry)
    groups = []
    for key in sorted(alike):
        ok = [entry for entry in alike[key] if entry.words["status"] == "ok"]
        rows = [Row(found, place.workload) for found in _methods(ok).values()]
        rest = [entry for entry in alike[key] if entry.words["status"] != "ok"]
        groups.append(Group(budget_words(alike[key][0].words["spec"]), rows, rest, recovery=key[-1]))
    return Board(place, groups)


def _methods(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """By all that was asked but the seed; of one asked twice the later counts."""
    found: dict[str, dict[int, Entry]] = defaultdict(dict)
    for entry in sorted(entries, key=lambda e: (e.words["finished"], e.words["id"])):
        asked = {name: value for name, value in entry.words["spec"].items() if name not in VARIES}
        found[canonical(asked)][entry.words["spec"]["seed"]] = entry
    return {name: [seeds[seed] for seed in sorted(seeds)] for name, seeds in found.items()}


def _budget_key(spec: dict[str, Any]) -> tuple[Any, ...]:
    """Latencies of dense first, from the most that is left; then milliseconds, then ratios."""
    kind, unit, value = (spec["budget"][name] for name in ("kind", "unit", "value"))
    return (kind, unit == "ms", -value, spec["workloads"][0]) if kind == "latency" else (kind, False, value, "")


def _recovery_key(label: str) -> tuple[bool, str]:
    """By name, whatever its settings; what nothing followed comes first."""
    name = label.partition(":")[0]
    return name != "none", name


def budget_words(spec: dict[str, Any]) -> str:
    kind, unit, value = (spec["budget"][name] for name in ("kind", "unit", "value"))
    if kind == "ratio":
        return f"{value:.4g} of the prunable parameters removed" if value else "nothing removed"
    limit = f"{value:.4g}x of dense" if unit == "x" else f"{value:.4g} ms"
    return f"at most {limit}, {spec['workloads'][0]}"


def settings(record: Record) -> dict[str, Any]:
    """Parameters that are not their preset's. Where an older record does not say: by the method as it is here."""
    if record.unusual is not None:
        return record.unusual
    known = registry().specs["pruner"].get(record.spec.pruner)
    return unusual(known, record.spec) if known else record.spec.parameters


def ranked(record: Record) -> Mapping[str, ScoreRecord]:
    """What says how good a model is; footprints say how large."""
    return {name: score for name, score in record.scores.items() if not name.startswith("footprint")}


def column_of(name: str, score: ScoreRecord) -> Column:
    told = score.details
    how = [
        *([f"window {told['window']}"] if "window" in told else ()),
        *([f"{told['fewshot']}-shot"] if "fewshot" in told else ()),
        *([str(told["split"])] if "split" in told else ()),
        f"n={score.n}",
    ]
    return Column(name, ", ".join(how), canonical([told.get(word) for word in ("data", "task_version", "bos")]))


def taken(record: Record, column: Column) -> ScoreRecord | None:
    score = ranked(record).get(column.name)
    return score if score is not None and column_of(column.name, score) == column else None
