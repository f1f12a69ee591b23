"""A matrix of cells on its way to records: what is done already counts, what cannot be begun waits and says why."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from harness.api import DeviceInfo
from harness.cell import planning
from harness.cell.plan import Attempt, Plan
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.models import counting
from harness.plugins import Unknown
from harness.records.keys import canonical
from harness.records.schema import RunSpec
from harness.records.store import Store
from harness.sweep import steps
from harness.sweep.steps import Words, request_words
from harness.sweep.suite import Ask

Probe = Callable[[str, "str | None"], "DeviceInfo | None"]
PLUGGED = ("pruner", "device", "evaluator", "recovery")  # another machine may have what this one lacks


@dataclass
class Item:
    """A cell of the suite and what is known of it."""

    ask: Ask
    status: str = "planned"
    reason: str = ""
    id: str = ""
    plan: Plan | None = None

    @property
    def words(self) -> Words:
        return request_words(self.ask.request)

    @property
    def cut(self) -> str:
        """What cells have in common that share a cut: one makes it, the others find it."""
        assert self.plan is not None
        return canonical([self.plan.cut_parts(Attempt()), self.ask.request.latency])

    @property
    def place(self) -> str:
        """Where models lie while they are made and scored."""
        assert self.plan is not None
        return self.plan.place

    @property
    def memory(self) -> int:
        """Bytes of its models, dense and pruned; a method may take more."""
        if self.plan is None or self.plan.obstacle is not None:
            return 0
        return 2 * counting.stored_bytes(self.plan.anatomy.params(), self.plan.spec.dtype)


class Engine(Protocol):
    """`do` answers one piece of work; `cells` does all steps of all cells, telling each answer; `probe` asks a device
    where it hangs, or answers None where that is here."""

    def probe(self, device: str, runtime: str | None) -> DeviceInfo | None: ...
    def do(self, work: str, **given: Any) -> Any: ...
    def cells(self, items: Sequence[Item], root: str, command: str) -> Iterator[tuple[Item, str, Words]]: ...
    def close(self) -> None: ...


class Nobody:
    """For a look ahead: what is known already is answered, nothing else is done."""

    def probe(self, device: str, runtime: str | None) -> None: ...

    def do(self, work: str, **given: Any) -> Any:
        return steps.WORK[work](**given) if steps.light(work, given) else None

    def cells(self, items: Sequence[Item], root: str, command: str) -> Iterator[tuple[Item, str, Words]]:
        yield from ()

    def close(self) -> None: ...


def items(asks: Sequence[Ask], probe: Probe = lambda *_: None) -> list[Item]:
    """Each cell planned without any work: what nobody knows here waits, what cannot be meant stops the sweep."""
    found, said = [], {}
    for ask in asks:
        where = (ask.request.device, ask.request.runtime)
        if where not in said:
            said[where] = probe(*where)
        item = Item(replace(ask, request=replace(ask.request, probed=said[where])))
        request = item.ask.request
        request = replace(request, latency="0.5x") if ask.like is not None else request
        try:
            item.plan = planning.make(request, fetch=False)
        except HarnessError as error:
            missing = isinstance(error, Unknown) and error.kind in PLUGGED
            if not missing and not isinstance(error, EnvironmentFault):
                raise UsageError(f"{ask.label}: {error.cause}", error.remedy) from None
            item.status, item.reason = "waits", error.line
        found.append(item)
    return found


def estimate(found: Sequence[Item], store: Store, rough: Callable[[Plan], float]) -> tuple[float, int]:
    """Seconds ahead, and for how many cells earlier records say so; the rest by their FLOPs."""
    took: dict[str, list[float]] = {}
    for record in store.records():
        if record.status == "failed":  # perhaps at its first step
            continue
        seconds = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
        took.setdefault(_effort(record.spec), []).append(seconds)
    total, known = 0.0, 0
    for item in found:
        if item.plan is None or item.plan.obstacle is not None:
            continue
        if times := took.get(_effort(item.plan.spec)):
            total, known = total + statistics.median(times), known + 1
        else:
            total += rough(item.plan)
    return total, known


def _effort(spec: RunSpec) -> str:
    """What decides how long a cell takes: all but how much is to go, and chance."""
    words = spec.model_dump(exclude={"revision", "seed", "budget"})
    return canonical({**words, "budget": spec.budget.kind})


class Sweep:
    """The run of a suite. It may be cut off anywhere: the same suite again goes on."""

    def __init__(self, name: str, found: list[Item], store: Store, engine: Engine, command: str = "") -> None:
        self.name, self.items, self.store, self.engine, self.command = name, found, store, engine, command
        self.root = str(store.root)

    def run(self, told: Callable[[Item, str], None]) -> Counter[str]:
        """All cells; `told` hears of each change."""
        self.store.prepare()
        self._keep()
        self.look(told)
        self._keep()
        for item, step, answer in self.engine.cells(self._open(), self.root, self.command):
            item.id = answer.get("id") or item.id
            item.status, item.reason = answer["status"] or "running", answer["reason"]
            told(item, step)
        self._keep()
        return Counter(item.status for item in self.items)

    def look(self, told: Callable[[Item, str], None] = lambda *_: None) -> None:
        """What the cells have in common, and what became of each before."""
        self._tables(told)
        self._budgets(told)
        ahead = [item for item in self._open() if item.ask.like is None or item.ask.request.latency]
        answers = self.engine.do("look", asked=[item.words for item in ahead], root=self.root) if ahead else []
        for item, answer in zip(ahead, answers, strict=True):
            item.id, item.status, item.reason = answer["id"], answer["status"], answer["reason"]
            if item.status != "planned":
                told(item, "")

    def _open(self) -> list[Item]:
        return [item for item in self.items if item.status == "planned"]

    def _same_device(self, items: Iterable[Item]) -> Iterable[list[Item]]:
        """Cells by what their latency is measured on."""
        found: dict[tuple[Any, ...], list[Item]] = {}
        for item in items:
            assert item.plan is not None
            spec = item.plan.spec
            where = (spec.model, spec.device, spec.runtime, spec.dtype, spec.workloads[0])
            found.setdefault(where, []).append(item)
        return found.values()

    def _tables(self, told: Callable[[Item, str], None]) -> None:
        """Before any cell: a table that came between two of them would make them different cells when asked again."""
        for alike in self._same_device(item for item in self._open() if item.plan and item.plan.sees_latency):
            first = alike[0]
            words = {**first.words, "latency": "0.5x"} if first.ask.like is not None else first.words
            self._known(alike, "cost table", told, "table", words=words)

    def _budgets(self, told: Callable[[Item, str], None]) -> None:
        """What an evenly narrowed model takes is the limit for all methods there."""
        for like in sorted({item.ask.like for item in self._open() if item.ask.like is not None}):
            for alike in self._same_device(item for item in self._open() if item.ask.like == like):
                words = {**alike[0].words, "pruner": "dense", "settings": {}, "recovery": "none"}
                what = f"what an even narrowing by {like:g} takes"
                answer = self._known(alike, what, told, "alike", words=words, ratio=like)
                for item in alike if answer is not None else ():
                    item.ask = replace(item.ask, request=replace(item.ask.request, latency=answer["latency"]))

    def _known(self, alike: list[Item], what: str, told: Callable[[Item, str], None], work: str, **given: Any) -> Any:
        """What was measured before, or is now; where that fails, all who need it wait or have failed."""
        try:
            answer = self.engine.do(work, root=self.root, measure=False, **given)
            if answer is None:
                told(alike[0], what)
                answer = self.engine.do(work, root=self.root, **given)
            return answer
        except HarnessError as error:
            for item in alike:
                item.status = "waits" if isinstance(error, EnvironmentFault) else error.status
                item.reason = f"{what}: {error.line}"
                if item.status != "waits" and item.ask.like is None:
                    failed = {"status": item.status, "reason": item.reason, "command": self.command}
                    item.id = self.engine.do("fail", words=item.words, root=self.root, **failed)["id"]
                told(item, "")
            return None

    def _keep(self) -> None:
        """For `harness status`, which shows what is still ahead."""
        cells = [{"label": i.ask.label, "id": i.id, "status": i.status, "reason": i.reason} for i in self.items]
        self.store.write(self.store.path("sweeps", f"{self.name}.json"), {"name": self.name, "cells": cells})


def name_of(path: Path, asks: Sequence[Ask]) -> str:
    """Suites of one name with different cells are two."""
    mark = hashlib.sha256(canonical([ask.label for ask in asks]).encode()).hexdigest()[:6]
    return f"{path.stem}-{mark}"
