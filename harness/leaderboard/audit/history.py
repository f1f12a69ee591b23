"""Checks of a record's trust against its history, and of its timestamps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from harness.errors import one_line
from harness.records.schema import TRUST, Change, Record, Trust

_AGREEMENT = re.compile(r"(\S+): made again(?: at [0-9a-f]{12}(?: and uncommitted changes)?)?, in agreement")
_AGAIN = "made again"
SKEW = timedelta(minutes=5)  # allowed between the clocks of the machines that write one record
WRITING = timedelta(hours=1)  # allowed between the end of a run and its first line of history; usually seconds
AHEAD = timedelta(days=1)  # by which this machine's clock may be slow


def agreement_line(trust: Trust, commit: str) -> str:
    """The line of history for a row that was run again and agreed."""
    return f"{trust}: {_AGAIN}{commit}, in agreement"


def disagreement(commit: str, differences: Sequence[str]) -> str:
    """The line of history for a row that was run again and did not agree."""
    return one_line(f"{_AGAIN}{commit}: {'; '.join(differences)}")


def trust_of(history: Sequence[Change]) -> str:
    """The trust that a history proves: that of its last agreement, unless a disagreement followed."""
    trust: str = TRUST[0]
    for change in history:
        if match := _AGREEMENT.fullmatch(change.what):
            trust = match[1]
        elif change.what.startswith(_AGAIN):
            trust = TRUST[0]
    return trust


def faults(record: Record) -> Iterator[str]:
    """Contradictions between a record's trust, its history and its timestamps."""
    trust = trust_of(record.history)
    if record.trust != trust:
        yield f"trust is {record.trust} in the record, {trust} by its history"
    if not record.history or record.history[0].what != "created":
        yield "its history does not begin with its creation"
    yield from _times(record)


def _times(record: Record) -> Iterator[str]:
    texts = [record.started, record.finished, *(change.when for change in record.history)]
    texts += [text for latency in record.latency.values() for text in (latency.began, latency.ended) if text]
    times = {}
    for text in texts:
        try:
            times[text] = datetime.fromisoformat(text)
        except ValueError:
            yield f"{text!r} is not a time"
            return
        if times[text].tzinfo is None:
            yield f"{text} has no time zone"
            return
    clock = "was the clock of its machine set? run it again"
    if times[record.started] > times[record.finished]:
        yield f"finished at {record.finished}, before it started at {record.started}: {clock}"
    for workload, latency in record.latency.items():
        if latency.began and latency.ended:
            if times[latency.began] > times[latency.ended]:
                yield f"{workload}: ended at {latency.ended}, before it began at {latency.began}: {clock}"
            elif times[latency.ended] > times[record.finished] + SKEW:
                yield f"{workload}: ended at {latency.ended}, after the run finished at {record.finished}: {clock}"
    whens = [times[change.when] for change in record.history]
    if any(second < first - SKEW for first, second in pairwise(whens)):
        yield "its history is not in order of time"
    if whens and not times[record.finished] <= whens[0] <= times[record.finished] + WRITING:
        yield f"finished at {record.finished}, but its history says {record.history[0].when}: {clock}"
    if max(times.values()) > datetime.now(UTC) + AHEAD:
        yield "its times are in the future: is the clock of this machine right?"
