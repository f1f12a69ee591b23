"""The life of one cell: load, prepare, prune, cut, recover, save, reload, measure, evaluate, record.

Every stage's result is stored under its key before the next begins, so a killed run continues where it was.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from harness.api import Event
from harness.cell import budget_check, planning
from harness.cell.artefact import Artefacts
from harness.cell.measuring import memory, sides, sustained_latency, timed
from harness.cell.plan import Attempt, Plan
from harness.cell.scoring import Scoring
from harness.cell.workspace import Workspace
from harness.conformance import kit
from harness.errors import EnvironmentFault, HarnessError, OverBudget, UsageError, describe, one_line, without_secrets
from harness.models import counting
from harness.models.saved.contents import folder_sha256
from harness.plugins import emit
from harness.records import carbon, keys, schema
from harness.records.environment import environment
from harness.records.schema import SETTLED, Record
from harness.records.store import Store
from harness.resolve import unusual
from harness.system import process, supervisor
from harness.system.interrupts import interrupts

# What may run apart, each in a process or on a node of its own: the model is made, timed where its device is, scored.
STEPS = ("make", "time", "score")


class Reporter:
    """What a run tells while it goes; this one keeps quiet."""

    def planned(self, plan: Plan) -> None: ...
    def stage(self, name: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def notice(self, text: str) -> None: ...


class Cell:
    """One plan on its way to a record."""

    def __init__(self, plan: Plan, store: Store, reporter: Reporter, command: str = "") -> None:
        self.store, self.reporter = store, reporter
        self.command = without_secrets(command)
        self.cost = schema.Cost()
        self.started = now()
        self.cached = False
        self.until = ""
        self._told = 0
        self.id = ""
        self.conformance: schema.Conformance | None = None
        self.measured: dict[str, dict[str, Any]] = {}  # of each model, once it is known
        self.beat: Callable[[str], None] = lambda _: None  # until the cell is known and leased
        self.obstacle = plan.obstacle
        self._set_plan(plan)

    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan
        self.workspace = Workspace(plan, self.store, self.stage, self.cost)
        self.artefacts = Artefacts(self.workspace, Attempt())

    def run(self) -> Record:
        """To the end, from wherever an earlier run was cut off."""
        found = self.go()
        assert found is not None
        return found

    def settled(self) -> Record | None:
        """The record that a run would answer with, if nothing is left to do for it; the cell is known afterwards."""
        self._identify(measure=False)
        found = self.store.record(self.id)
        if found is not None and found.status in SETTLED and found.status != "ok":
            return found
        return self._finished()

    def go(self, until: str = "") -> Record | None:
        """Up to a step of STEPS, or to the record, which a failure on the way is too."""
        self.until = until
        fault = self.store.unwritable()  # an answer that is there can be read all the same
        self.reporter.planned(self.plan)
        self._identify(measure=fault is None)
        if (found := self._finished()) is not None:
            return found
        if fault is not None:
            raise fault
        with self.store.lease(self.id, self.reporter.notice) as beat:
            self.beat = beat
            if (found := self._finished()) is not None:  # whoever we waited for has done it
                return found
            emit(Event(name="cell-started", cell=self.id))
            self._save_components()
            record = self._live()
            if record is None:
                return None
            self.store.save_record(record.sealed())
            emit(Event(name="cell-finished", cell=self.id, status=record.status))
            self.store.sweep(mine=True)
        self._tell_notices()
        return record.sealed()

    def fail(self, status: str, reason: str) -> Record:
        """The row of a run that could not write its own; an answer that is there already stays."""
        self.store.prepare()
        self._identify(measure=False)
        before = self.store.record(self.id)
        if before is not None and before.status in SETTLED:
            return before
        self._save_components()
        record = self._record(status, reason).sealed()
        self.store.save_record(record)
        return record

    def _save_components(self) -> None:
        """What the cell's id is the hash of, for whoever asks whether its record is of this cell."""
        self.store.save_stage(
            "cell", self.id, self.plan.cell_parts(self.artefacts.attempt), self.plan.spec.model_dump(mode="json")
        )

    def _identify(self, measure: bool = True) -> None:
        if self.obstacle is None:
            self.reporter.stage("find the weights")
            supervisor.report(stage="find the weights")
            self.find_table(measure)
        self.id = self.plan.cell_id(self.artefacts.attempt)
        self.workspace.cell_id = self.id

    def find_table(self, measure: bool = True) -> None:
        """Locate the weights, then load the cost table for the cut. It is measured now if the method needs it."""
        self._set_plan(planning.with_weights(self.plan))
        if self.plan.spec.budget.kind != "latency" and not self.plan.sees_latency:
            return
        try:
            needed = measure and self.plan.sees_latency
            model = self.workspace.cost_model() if needed else self.workspace.stored_cost_model()
            self.artefacts.attempt = Attempt(cost_table=model.table.content if model else None)
        except (EnvironmentFault, UsageError):
            raise
        except HarnessError as error:
            self.obstacle = error

    def _finished(self) -> Record | None:
        found = self.store.record(self.id)
        self._tell_notices()
        if found is None or found.status != "ok" or self._evidence_is_gone(found):
            return None
        self.cached = True
        return self._weighed(found)

    def _weighed(self, record: Record) -> Record:
        """A finished record by the grid that is asked for now: derived from its energy, nothing is measured again."""
        if self.plan.grid is None:
            return record
        co2 = carbon.co2(self.plan.grid, record.energy, record.spec.workloads[0])
        if co2 == record.co2:
            return record
        change = schema.Change(when=now(), what=f"CO2e at {co2.grams_per_kwh:g} g/kWh", command=self.command)
        found = record.model_copy(update={"co2": co2, "history": [*record.history, change]}).sealed()
        with suppress(EnvironmentFault):  # a store that may only be read
            self.store.save_record(found)
        return found

    def _evidence_is_gone(self, record: Record) -> bool:
        """A record is only as good as what it points to."""
        assert record.artefact is not None
        folder = self.store.path(record.artefact.path)
        sides = [timing.samples for timing in record.latency.values()]
        sides += [name for s in record.scores.values() for name in (s.samples, s.dense_samples) if name]
        if not folder.is_dir():
            self.reporter.notice(f"the model of {record.id} is gone; making it again")
        elif folder_sha256(folder) != record.artefact.sha256:
            self.store.set_aside(folder, "was changed since it was saved")
            self._tell_notices()
        elif self.store.lacks(*sides):
            self.reporter.notice(f"raw samples of {record.id} are gone; measuring again")
        else:
            return False
        return True

    def _tell_notices(self) -> None:
        while self._told < len(self.store.notices):
            self.reporter.notice(self.store.notices[self._told])
            self._told += 1

    def _live(self) -> Record | None:
        try:
            with interrupts.told_apart():
                if self.obstacle is not None:
                    raise self.obstacle
                return self._measured()
        except (EnvironmentFault, UsageError):
            raise
        except HarnessError as error:
            tried = isinstance(error, OverBudget) and budget_check.out_of_reach(self.plan.spec.budget, error)
            return self._record(error.status, error.line, budget=tried or None)
        except (Exception, SystemExit) as error:  # a method may end itself, not the harness
            log = self.store.log_traceback(self.id)
            return self._record("failed", f"{describe(error, 1900)} (traceback: logs/{log.name})")

    def _measured(self) -> Record | None:
        made = self.workspace
        name = self.plan.spec.pruner
        self.conformance = found = kit.score(name, self.stage)
        if found is not None and found.passed < found.of:
            self.reporter.notice(
                f"{name}: {found.passed} of {found.of} checks hold; harness check {name} tells which do not"
            )
        artefact, budget, timings = budget_check.within_budget(
            self.plan, self.store, self.stage, self.artefacts, self.reporter.notice
        )
        if self.until == STEPS[0]:
            return None
        parts: dict[str, Any] = {"artefact": artefact, "budget": budget}
        if budget.unused < -1e-9 and not any(found.unstable for found in timings.values()):
            parts["latency"] = {workload: found.latency for workload, found in timings.items()}
            parts["gates"] = [gate for found in timings.values() for gate in found.gates]
            return self._record(OverBudget.status, budget_check.overrun(self.plan, budget), **parts)
        for workload in self.plan.workloads:
            if str(workload) not in timings:
                timings[str(workload)] = timed(self.plan, self.store, self.stage, made, artefact, workload)
        if self.plan.spec.sustain:
            for name, timing in timings.items():
                asked = (self.plan, self.store, self.stage, made, artefact)
                timing.latency.sustained = sustained_latency(*asked, timing.latency, name)
        first = timings[self.plan.spec.workloads[0]]
        parts["latency"] = {workload: found.latency for workload, found in timings.items()}
        parts["gates"] = [gate for found in timings.values() for gate in found.gates]
        energy = first.energy or schema.UNREAD
        parts["energy"] = energy
        parts["memory"] = first.memory or schema.MemoryPair(reason="the device does not tell it")
        if self.plan.grid is not None:
            parts["co2"] = carbon.co2(self.plan.grid, energy, self.plan.spec.workloads[0])
        if first.memory is None and self.plan.device.in_process:
            parts["memory"] = memory(self.plan, self.store, self.stage, artefact, f"memory-{self.id}")
        if self.until == STEPS[1]:
            return None
        self.measured = sides(self.plan, parts["memory"], first.memory is not None, energy)
        scoring = Scoring(self.plan, self.store, self.stage, made.context, self.cost, self.measured)
        parts["scores"] = scoring.run(made, artefact)
        parts["unscored"] = self.plan.missing | scoring.failed
        parts["flops"] = {
            str(w): schema.Pair(
                dense=counting.flops(self.plan.anatomy, {}, w),
                pruned=counting.flops(self.plan.anatomy, artefact.shape, w),
            )
            for w in self.plan.workloads
        }
        unstable = "; ".join(found.unstable for found in timings.values() if found.unstable)
        failed = "; ".join(f"no score of {label}: {why}" for label, why in scoring.failed.items())
        record = self._record("failed" if failed else "unstable" if unstable else "ok", failed or unstable, **parts)
        self.artefacts.describe(record)
        return record

    # --- stages ---

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        self.reporter.stage(name)
        self.beat(name)
        supervisor.report(stage=name)
        emit(Event(name="stage-started", cell=self.id, stage=name))
        start = time.monotonic()
        try:
            yield self.reporter.progress
        finally:
            process.give_back()
            emit(Event(name="stage-finished", cell=self.id, stage=name, seconds=time.monotonic() - start))

    def _record(self, status: Any, reason: str, **parts: Any) -> Record:
        artefact, attempt = parts.get("artefact"), self.artefacts.attempt
        content = artefact.sha256 if artefact else ""
        return Record(
            id=self.id,
            status=status,
            reason=one_line(reason),
            started=self.started,
            finished=now(),
            keys=schema.Keys(
                cut=keys.key("cut", self.plan.cut_parts(attempt)),
                artefact=keys.key("artefact", self.plan.artefact_parts(attempt)),
                measure={w: keys.key("measure", self.plan.measure_parts(content, w)) for w in parts.get("latency", {})},
                eval={
                    e.label: keys.key("eval", self.plan.eval_parts(content, e, self.measured["pruned"]))
                    for e in self.plan.evaluations
                    if parts.get("scores")
                },
            ),
            spec=self.plan.spec,
            cost=self.cost,
            conformance=self.conformance,
            unusual=unusual(self.plan.pruner, self.plan.spec),
            environment=environment(self.plan.device.name, dict(self.plan.info.fingerprint)),
            history=[schema.Change(when=now(), what="created", command=self.command)],
            **parts,
        )


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
