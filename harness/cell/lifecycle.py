"""The life of one cell: load, prepare, prune, cut, recover, save, reload, measure, evaluate, record.

The result of every stage is stored under its key before the next stage begins. A killed run continues from there.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from harness.api import Event
from harness.cell import budget_check, planning
from harness.cell.artefact import Artefacts
from harness.cell.measuring import Comparison, Measurement, values_for_evaluators
from harness.cell.plan import Attempt, Plan
from harness.cell.scoring import Scoring
from harness.cell.workspace import Progress, Workspace
from harness.conformance import kit
from harness.errors import EnvironmentFault, HarnessError, OverBudget, UsageError, describe, one_line, without_secrets
from harness.models import counting
from harness.models.saved.contents import folder_sha256
from harness.plugins import emit
from harness.records import carbon, keys, schema
from harness.records.environment import environment
from harness.records.schema import SETTLED, Record
from harness.records.store import Store
from harness.resolve import changed_parameters
from harness.system import process, supervisor
from harness.system.interrupts import interrupts

# Each step may run in a process or on a machine of its own: make the model, time it where its device is, score it.
STEPS = ("make", "time", "score")


class Reporter:
    """Receives the progress of a run. This one ignores it."""

    def planned(self, plan: Plan) -> None: ...
    def stage(self, name: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def notice(self, text: str) -> None: ...


class Cell:
    """Runs one plan and writes its record."""

    def __init__(self, plan: Plan, store: Store, reporter: Reporter, command: str = "") -> None:
        self.store, self.reporter = store, reporter
        self.command = without_secrets(command)
        self.cost = schema.Cost()
        self.started = now()
        self.cached = False  # whether the record came from the store
        self.id = ""  # until the cell is identified
        self.obstacle = plan.obstacle
        self._last_step = ""  # all of them
        self._notices_shown = 0
        self._conformance: schema.Conformance | None = None
        self._measured: dict[str, dict[str, Any]] = {}  # of each model, as evaluators see it
        self._beat: Callable[[str], None] = lambda _: None  # until the cell is leased
        self._set_plan(plan)

    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan
        self.workspace = Workspace(plan, self.store, self.stage, self.cost)
        self.artefacts = Artefacts(self.workspace, Attempt())

    # --- what may be asked of a cell ---

    def run(self) -> Record:
        """Run to the end, from wherever an earlier run stopped."""
        record = self.run_until()
        assert record is not None
        return record

    def settled_record(self) -> Record | None:
        """The record that `run` would return at once; None if there is work to do. It identifies the cell."""
        self._identify(measure=False)
        record = self.store.record(self.id)
        if record is not None and record.status in SETTLED and record.status != "ok":
            return record
        return self._stored_record()

    def run_until(self, until: str = "") -> Record | None:
        """Run up to and including a step of STEPS, or to the record. A failure on the way is a record as well."""
        self._last_step = until
        fault = self.store.unwritable()  # raised only if there is work to do: a stored record can be read all the same
        self.reporter.planned(self.plan)
        self._identify(measure=fault is None)
        stored = self._stored_record()
        if stored is not None:
            return stored
        if fault is not None:
            raise fault
        with self.store.lease(self.id, self.reporter.notice) as beat:
            self._beat = beat
            stored = self._stored_record()
            if stored is not None:  # another process finished the cell while this one waited for the lease
                return stored
            emit(Event(name="cell-started", cell=self.id))
            self._save_components()
            record = self._run_guarded()
            if record is None:
                return None
            self.store.save_record(record.sealed())
            emit(Event(name="cell-finished", cell=self.id, status=record.status))
            self.store.sweep(mine=True)
        self._show_notices()
        return record.sealed()

    def record_failure(self, status: str, reason: str) -> Record:
        """Write the record of a run that ended before it could. A record that settles the cell is left as it is."""
        self.store.prepare()
        self._identify(measure=False)
        stored = self.store.record(self.id)
        if stored is not None and stored.status in SETTLED:
            return stored
        self._save_components()
        record = self._record(status, reason).sealed()
        self.store.save_record(record)
        return record

    def find_table(self, measure: bool = True) -> None:
        """Locate the weights and load the cost table for the cut. It is measured now if the method needs it."""
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

    def _identify(self, measure: bool = True) -> None:
        """Compute the id of the cell. Weights and cost table are part of it."""
        if self.obstacle is None:
            self.reporter.stage("find the weights")
            supervisor.report(stage="find the weights")
            self.find_table(measure)
        self.id = self.plan.cell_id(self.artefacts.attempt)
        self.workspace.cell_id = self.id

    def _save_components(self) -> None:
        """Store what the id is a hash of, so that a record can be checked against its id."""
        parts = self.plan.cell_parts(self.artefacts.attempt)
        self.store.save_stage("cell", self.id, parts, self.plan.spec.model_dump(mode="json"))

    # --- a record from the store ---

    def _stored_record(self) -> Record | None:
        """The finished record from the store, if all that it points to is intact."""
        record = self.store.record(self.id)
        self._show_notices()
        if record is None or record.status != "ok" or self._evidence_is_gone(record):
            return None
        self.cached = True
        return self._with_grid(record)

    def _with_grid(self, record: Record) -> Record:
        """A finished record with CO2e for the requested grid. It follows from the recorded energy."""
        if self.plan.grid is None:
            return record
        co2 = carbon.co2(self.plan.grid, record.energy, record.spec.workloads[0])
        if co2 == record.co2:
            return record
        change = schema.Change(when=now(), what=f"CO2e at {co2.grams_per_kwh:g} g/kWh", command=self.command)
        changed = record.model_copy(update={"co2": co2, "history": [*record.history, change]}).sealed()
        with suppress(EnvironmentFault):  # the store may be read-only
            self.store.save_record(changed)
        return changed

    def _evidence_is_gone(self, record: Record) -> bool:
        """Whether the model or the samples that a record points to are missing or changed."""
        assert record.artefact is not None
        folder = self.store.path(record.artefact.path)
        samples = [timing.samples for timing in record.latency.values()]
        for score in record.scores.values():
            samples += [name for name in (score.samples, score.dense_samples) if name]
        if not folder.is_dir():
            self.reporter.notice(f"the model of {record.id} is gone; making it again")
        elif folder_sha256(folder) != record.artefact.sha256:
            self.store.set_aside(folder, "was changed since it was saved")
            self._show_notices()
        elif self.store.lacks(*samples):
            self.reporter.notice(f"raw samples of {record.id} are gone; measuring again")
        else:
            return False
        return True

    def _show_notices(self) -> None:
        """Pass on what the store has noticed since the last call."""
        while self._notices_shown < len(self.store.notices):
            self.reporter.notice(self.store.notices[self._notices_shown])
            self._notices_shown += 1

    # --- the work ---

    def _run_guarded(self) -> Record | None:
        """Run the steps. What fails on the way becomes the record, unless the environment or the user is at fault."""
        try:
            with interrupts.as_keyboard_interrupt():
                if self.obstacle is not None:
                    raise self.obstacle
                return self._run_steps()
        except (EnvironmentFault, UsageError):
            raise
        except HarnessError as error:
            probed = isinstance(error, OverBudget) and budget_check.out_of_reach(self.plan.spec.budget, error)
            return self._record(error.status, error.line, budget=probed or None)
        except (Exception, SystemExit) as error:  # a method that exits ends itself, not the harness
            log = self.store.log_traceback(self.id)
            return self._record("failed", f"{describe(error, 1900)} (traceback: logs/{log.name})")

    def _run_steps(self) -> Record | None:
        """Make the model, time it and score it; None if the run stops after an earlier step than the last."""
        self._check_conformance()
        outcome = budget_check.within_budget(self.artefacts, self.reporter.notice)
        if self._last_step == "make":
            return None
        artefact, budget = outcome.artefact, outcome.budget
        parts: dict[str, Any] = {"artefact": artefact, "budget": budget}
        measurements = dict(outcome.measurements)
        if budget.unused < -1e-9 and not any(measurement.unstable for measurement in measurements.values()):
            parts |= _timings(measurements)
            return self._record(OverBudget.status, budget_check.overrun(self.plan, budget), **parts)
        comparison = Comparison(self.workspace, artefact)
        parts |= self._time(comparison, measurements)
        if self._last_step == "time":
            return None
        by_device = measurements[self.plan.spec.workloads[0]].memory is not None
        self._measured = values_for_evaluators(self.plan, parts["memory"], by_device, parts["energy"])
        scoring = Scoring(self.workspace, artefact, self._measured)
        parts["scores"] = scoring.run()
        parts["unscored"] = self.plan.missing | scoring.failed
        parts["flops"] = self._flops(artefact)
        unstable = "; ".join(measurement.unstable for measurement in measurements.values() if measurement.unstable)
        failed = "; ".join(f"no score of {label}: {why}" for label, why in scoring.failed.items())
        record = self._record("failed" if failed else "unstable" if unstable else "ok", failed or unstable, **parts)
        self.artefacts.describe(record)
        return record

    def _check_conformance(self) -> None:
        """Run the kit on the method, and say so if it fails some checks."""
        name = self.plan.spec.pruner
        score = self._conformance = kit.record_score(name, self.stage)
        if score is not None and score.passed < score.of:
            self.reporter.notice(
                f"{name}: {score.passed} of {score.of} checks hold; harness check {name} tells which do not"
            )

    def _time(self, comparison: Comparison, measurements: dict[str, Measurement]) -> dict[str, Any]:
        """Measure all workloads that are not in `measurements` yet. Returns latency, gates, energy, memory and CO2e."""
        spec = self.plan.spec
        for workload in self.plan.workloads:
            if str(workload) not in measurements:
                measurements[str(workload)] = comparison.time(workload)
        if spec.sustain:
            for name, measurement in measurements.items():
                measurement.latency.sustained = comparison.sustain(name, measurement.latency)
        # Energy and memory are those of the first workload.
        first = measurements[spec.workloads[0]]
        parts = _timings(measurements)
        parts["energy"] = first.energy or schema.UNREAD
        if self.plan.grid is not None:
            parts["co2"] = carbon.co2(self.plan.grid, parts["energy"], spec.workloads[0])
        parts["memory"] = first.memory or schema.MemoryPair(reason="the device does not tell it")
        if first.memory is None and self.plan.device.in_process:
            parts["memory"] = comparison.memory(f"memory-{self.id}")
        return parts

    def _flops(self, artefact: schema.Artefact) -> dict[str, schema.Pair]:
        """FLOPs of both models by workload."""
        return {
            str(workload): schema.Pair(
                dense=counting.flops(self.plan.anatomy, {}, workload),
                pruned=counting.flops(self.plan.anatomy, artefact.shape, workload),
            )
            for workload in self.plan.workloads
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Report the stage that runs inside, and give its freed memory back to the system afterwards."""
        self.reporter.stage(name)
        self._beat(name)
        supervisor.report(stage=name)
        emit(Event(name="stage-started", cell=self.id, stage=name))
        start = time.monotonic()
        try:
            yield self.reporter.progress
        finally:
            process.return_freed_memory()
            emit(Event(name="stage-finished", cell=self.id, stage=name, seconds=time.monotonic() - start))

    def _record(self, status: Any, reason: str, **parts: Any) -> Record:
        """The record of the cell as it is now. `parts` are the results there are."""
        plan, attempt, artefact = self.plan, self.artefacts.attempt, parts.get("artefact")
        content = artefact.sha256 if artefact else ""
        return Record(
            id=self.id,
            status=status,
            reason=one_line(reason),
            started=self.started,
            finished=now(),
            keys=schema.Keys(
                cut=keys.key("cut", plan.cut_parts(attempt)),
                artefact=keys.key("artefact", plan.artefact_parts(attempt)),
                measure={w: keys.key("measure", plan.measure_parts(content, w)) for w in parts.get("latency", {})},
                eval={
                    evaluation.label: keys.key("eval", plan.eval_parts(content, evaluation, self._measured["pruned"]))
                    for evaluation in plan.evaluations
                    if parts.get("scores")
                },
            ),
            spec=plan.spec,
            cost=self.cost,
            conformance=self._conformance,
            unusual=changed_parameters(plan.pruner, plan.spec),
            environment=environment(plan.device.name, dict(plan.info.fingerprint)),
            history=[schema.Change(when=now(), what="created", command=self.command)],
            **parts,
        )


def _timings(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """The latency and the gates of all measurements, as a record holds them."""
    return {
        "latency": {workload: measurement.latency for workload, measurement in measurements.items()},
        "gates": [gate for measurement in measurements.values() for gate in measurement.gates],
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
