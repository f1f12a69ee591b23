"""Runs the commands of records again in an empty folder, and compares the new records with the old ones."""

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
from harness.leaderboard.rows import quality_scores
from harness.records.command_line import command_of
from harness.records.files import json_text, write_file
from harness.records.schema import TRUST, Change, Latency, Record, Trust

ERROR_RATE = 0.01  # probability of calling an honest score different
ROUNDING = 1e-3  # share of a score that other versions of libraries may change by rounding


class CannotRerun(EnvironmentFault):
    """The command of a record cannot be run on this machine."""


@dataclass
class Rerun:
    """A record, the one that was made to check it, where they contradict each other, and what else differs."""

    entry: Entry
    new: Record
    differences: list[str]
    notes: list[str]


def sample_entries(entries: Sequence[Entry], count: int, seed: int | None) -> list[Entry]:
    """A random sample of the finished records."""
    finished = [entry for entry in entries if entry.payload["status"] == "ok"]
    if not finished:
        raise UsageError("no finished record to verify among these", "harness status lists what there is")
    return random.Random(seed).sample(finished, min(count, len(finished)))


def rerun_record(entry: Entry, folder: Path, on_start: Callable[[str], None]) -> Rerun:
    """Run the record's command with an empty runs folder. `on_start` gets the command line."""
    arguments = shlex.split(command_of(entry.record))
    on_start(shlex.join(arguments))
    command = [sys.executable, "-m", "harness", *arguments[1:], "--json"]
    environment = {**os.environ, "HARNESS_RUNS": str(folder)}
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    try:
        new = Record.model_validate(json.loads(process.stdout))
    except ValueError:
        raise CannotRerun(
            f"{entry.record.id[:12]} cannot be run again here: harness ended with {process.returncode}",
            "its messages are above",
        ) from None
    fresh = Entry(folder / "records" / f"{new.id}.json", folder / "samples")
    return Rerun(entry, new, list(differences(entry, fresh)), list(notes(entry.record, new)))


def differences(entry: Entry, fresh: Entry) -> Iterator[str]:
    """Where two records of one command cannot both be right."""
    old, new = entry.record, fresh.record
    if new.status != old.status:
        yield f"{new.status} instead of {old.status}: {new.reason}"
        return
    # Scores on the same documents must not differ significantly.
    for name, score in quality_scores(old).items():
        new_score = quality_scores(new).get(name)
        if new_score is None:
            yield f"{name} was not scored"
            continue
        before, after = entry.documents(score), fresh.documents(new_score)
        gap = significance.gap([[after[document] - before[document] for document in before if document in after]])
        differs = abs(new_score.value - score.value) > ROUNDING * abs(score.value)
        values = f"{name}: {new_score.value:.4g} instead of {score.value:.4g}"
        if gap is None and differs:
            yield values
        elif gap is not None and gap.p < ERROR_RATE and differs:
            yield f"{values} on the same documents (p = {gap.p:.2g})"
    # Intervals of speed-ups must overlap, and those of times too on the same machine.
    same_machine = old.environment.device == new.environment.device
    for workload, latency in old.latency.items():
        new_latency = new.latency.get(workload)
        if new_latency is None:
            yield f"{workload} was not timed"
            continue
        floor = _noise_floor(latency, new_latency)
        if not _overlap(latency.speedup_ci95, new_latency.speedup_ci95, floor):
            yield f"{workload}: {new_latency.speedup:.3f}x as fast as dense instead of {latency.speedup:.3f}x"
        elif same_machine and not _overlap(latency.pruned.ci95_ns, new_latency.pruned.ci95_ns, floor):
            new_ms, old_ms = new_latency.pruned.median_ns / 1e6, latency.pruned.median_ns / 1e6
            yield f"{workload}: {new_ms:.4g} ms instead of {old_ms:.4g}"


def notes(old: Record, new: Record) -> Iterator[str]:
    """What differs although both records may be right."""
    if old.environment.device != new.environment.device:
        yield "another machine: absolute times are not compared"
    if old.artefact and new.artefact and old.artefact.shape != new.artefact.shape:
        is_latency = old.spec.budget.kind == "latency"
        why = ": under a latency budget the shape depends on measurements, which differ" if is_latency else ""
        yield f"other units were kept{why}"
    elif old.artefact and new.artefact and old.artefact.sha256 != new.artefact.sha256:
        yield "the same units, other weights"
    versions = new.environment.packages
    changed = sorted(name for name, version in old.environment.packages.items() if versions.get(name) != version)
    if changed:
        yield f"other versions of {', '.join(changed)}"


def save_outcome(result: Rerun, trust: Trust, command: str) -> Record:
    """Write the outcome into the record's file. Raises CannotRerun if another process changed the file meanwhile."""
    entry = result.entry
    with exclusive(entry.path.parent):
        if Entry(entry.path, entry.side).payload != entry.payload:
            raise CannotRerun(f"{entry.path} was changed while its command ran", "verify it once more")
        record = with_outcome(result, trust, command)
        write_file(entry.path, json_text(record.to_dict()))
    return record


def with_outcome(result: Rerun, trust: Trust, command: str) -> Record:
    """The record with a new line of history and its new trust. Neither is part of its digest.

    Disagreement takes a record's trust back to self-reported; agreement never lowers it.
    """
    git, record = result.new.environment.git, result.entry.record
    commit = f" at {git.commit[:12]}{' and uncommitted changes' if git.dirty else ''}" if git else ""
    if result.differences:
        trust, text = TRUST[0], history.disagreement(commit, result.differences)
    else:
        trust = max(trust, record.trust, key=TRUST.index)
        text = history.agreement_line(trust, commit)
    change = Change(when=now(), what=text, command=command)
    return record.model_copy(update={"trust": trust, "history": [*record.history, change]}).sealed()


def _overlap(first: tuple[float, float] | None, second: tuple[float, float] | None, floor: float) -> bool:
    """Whether two intervals overlap once both are widened by the noise floor. A missing interval overlaps any."""
    if first is None or second is None:
        return True
    return first[0] * (1 - floor) <= second[1] and second[0] * (1 - floor) <= first[1]


def _noise_floor(*timings: Latency) -> float:
    return max((timing.noise_floor for timing in timings if timing.noise_floor is not None), default=0.0)
