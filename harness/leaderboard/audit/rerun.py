"""Records made again in an empty folder, and whether what comes out agrees with what they say."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell.lifecycle import now
from harness.errors import EnvironmentFault, UsageError
from harness.leaderboard import significance
from harness.leaderboard.audit import history
from harness.leaderboard.audit.publish import exclusive
from harness.leaderboard.entries import Entry
from harness.leaderboard.rows import ranked
from harness.records.command_line import reproduce
from harness.records.files import put, text_of
from harness.records.schema import TRUST, Change, Latency, Record, Trust

SURE = 0.01  # chance of calling an honest score different
NEAR = 1e-3  # of a score: what other libraries' rounding may do


class CannotBeMade(EnvironmentFault):
    """A row that needs what this machine lacks."""


@dataclass
class Again:
    """A record, the one that was made to check it, and where they disagree."""

    entry: Entry
    made: Record
    differences: list[str]
    notes: list[str]


def drawn(entries: Sequence[Entry], count: int, seed: int | None) -> list[Entry]:
    """Some of the rows that claim something, at random."""
    known = [entry for entry in entries if entry.words["status"] == "ok"]
    if not known:
        raise UsageError("no finished record to verify among these", "harness status lists what there is")
    return random.Random(seed).sample(known, min(count, len(known)))


def again(entry: Entry, folder: Path, told: Callable[[str], None]) -> Again:
    """The record's command in a folder that knows nothing of it."""
    words = shlex.split(reproduce(entry.record))
    told(shlex.join(words))
    asked = [sys.executable, "-m", "harness", *words[1:], "--json"]
    environment = {**os.environ, "HARNESS_RUNS": str(folder)}
    answer = subprocess.run(asked, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    try:
        made = Record.model_validate(json.loads(answer.stdout))
    except ValueError:
        raise CannotBeMade(
            f"{entry.record.id[:12]} cannot be made here: harness ended with {answer.returncode}",
            "what it said stands above",
        ) from None
    fresh = Entry(folder / "records" / f"{made.id}.json", folder / "samples")
    return Again(entry, made, list(differences(entry, fresh)), list(notes(entry.record, made)))


def differences(entry: Entry, fresh: Entry) -> Iterator[str]:
    """Where two records of one command cannot both be right."""
    told, made = entry.record, fresh.record
    if made.status != told.status:
        yield f"{made.status} instead of {told.status}: {made.reason}"
        return
    for name, score in ranked(told).items():
        theirs = ranked(made).get(name)
        if theirs is None:
            yield f"{name} was not scored"
            continue
        ours, others = entry.documents(score), fresh.documents(theirs)
        gap = significance.gap([[others[at] - ours[at] for at in ours if at in others]]) if ours else None
        apart = abs(theirs.value - score.value) > NEAR * abs(score.value)
        if gap is None and apart:
            yield f"{name}: {theirs.value:.4g} instead of {score.value:.4g}"
        elif gap is not None and gap.p < SURE and apart:
            yield f"{name}: {theirs.value:.4g} instead of {score.value:.4g} on the same documents (p = {gap.p:.2g})"
    same = told.environment.device == made.environment.device
    for workload, latency in told.latency.items():
        found = made.latency.get(workload)
        if found is None:
            yield f"{workload} was not timed"
        elif not _overlap(latency.speedup_ci95, found.speedup_ci95, _floor(latency, found)):
            yield f"{workload}: {found.speedup:.3f}x as fast as dense instead of {latency.speedup:.3f}x"
        elif same and not _overlap(latency.pruned.ci95_ns, found.pruned.ci95_ns, _floor(latency, found)):
            yield f"{workload}: {found.pruned.median_ns / 1e6:.4g} ms instead of {latency.pruned.median_ns / 1e6:.4g}"


def notes(told: Record, made: Record) -> Iterator[str]:
    """What differs without making either wrong."""
    if told.environment.device != made.environment.device:
        yield "another machine: absolute times are not compared"
    if told.artefact and made.artefact and told.artefact.shape != made.artefact.shape:
        why = ": a latency is met by measuring, and measurements differ" if told.spec.budget.kind == "latency" else ""
        yield f"other units were kept{why}"
    elif told.artefact and made.artefact and told.artefact.sha256 != made.artefact.sha256:
        yield "the same units, other weights"
    theirs = made.environment.packages
    if other := sorted(name for name, version in told.environment.packages.items() if theirs.get(name) != version):
        yield f"other versions of {', '.join(other)}"


def note(found: Again, trust: Trust, command: str) -> Record:
    """Write what was learned of a row into its file, unless another process changed that file meanwhile."""
    entry = found.entry
    with exclusive(entry.path.parent):
        if Entry(entry.path, entry.side).words != entry.words:
            raise CannotBeMade(f"{entry.path} was changed while its row was made again", "verify it once more")
        record = learned(found, trust, command)
        put(entry.path, text_of(record.words()))
    return record


def learned(found: Again, trust: Trust, command: str) -> Record:
    """The record with what was learned of it, which its digest does not cover. What nobody can confirm is no more
    than what its author says."""
    git, record = found.made.environment.git, found.entry.record
    commit = f" at {git.commit[:12]}{' and uncommitted changes' if git.dirty else ''}" if git else ""
    if found.differences:
        trust, what = TRUST[0], history.disagreement(commit, found.differences)
    else:
        trust = max(trust, record.trust, key=TRUST.index)
        what = history.agreement(trust, commit)
    change = Change(when=now(), what=what, command=command)
    return record.model_copy(update={"trust": trust, "history": [*record.history, change]}).sealed()


def _overlap(one: tuple[float, float] | None, other: tuple[float, float] | None, floor: float) -> bool:
    """Two intervals, each as wide as the noise of its machine allows."""
    if one is None or other is None:
        return True
    return one[0] * (1 - floor) <= other[1] and other[0] * (1 - floor) <= one[1]


def _floor(*timings: Latency) -> float:
    return max((timing.noise_floor for timing in timings if timing.noise_floor is not None), default=0.0)
