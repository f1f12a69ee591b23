"""How a record came by its trust, and whether its times can be: what its history says, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from harness.errors import one_line
from harness.records.schema import TRUST, Change, Record, Trust

_AGREEMENT = re.compile(r"(\S+): made again(?: at [0-9a-f]{12}(?: and uncommitted changes)?)?, in agreement")
_AGAIN = "made again"
SKEW = timedelta(minutes=5)  # between the clocks of machines that write one record
WRITING = timedelta(hours=1)  # from the end of a run to the first line of its history: seconds, as a rule
AHEAD = timedelta(days=1)  # so far this machine's clock may be behind


def agreement(trust: Trust, commit: str) -> str:
    """The line of a row that was made again and agreed."""
    return f"{trust}: {_AGAIN}{commit}, in agreement"


def disagreement(commit: str, differences: Sequence[str]) -> str:
    """The line of a row that was made again and did not."""
    return one_line(f"{_AGAIN}{commit}: {'; '.join(differences)}")


def trust_of(history: Sequence[Change]) -> str:
    """What a row may be called by its history."""
    trust: str = TRUST[0]
    for change in history:
        if match := _AGREEMENT.fullmatch(change.what):
            trust = match[1]
        elif change.what.startswith(_AGAIN):
            trust = TRUST[0]
    return trust


def faults(record: Record) -> Iterator[str]:
    """What does not hold of a record's trust and its times."""
    trust = trust_of(record.history)
    if record.trust != trust:
        yield f"trust is {record.trust} in the record, {trust} by its history"
    if not record.history or record.history[0].what != "created":
        yield "its history does not begin with how it was created"
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
        yield "its times lie in the future: is the clock of this machine right?"
