"""A cell, ready to run: what it is made of, what each of its stages depends on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import plugins
from harness.api import Budget, DeviceInfo, DeviceSpec, ModelCard, PrunerSpec, Shape, Workload
from harness.errors import HarnessError, describe
from harness.latency import prober, timing
from harness.models import counting
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import anatomy_of
from harness.records import keys
from harness.records.carbon import Grid
from harness.records.schema import RunSpec
from harness.resolve import Evaluation, Recovering
from harness.system.isolation import plugin_code

CUT_VERSION = 2  # raise when surgery or accounting changes what a cut means


@dataclass(frozen=True)
class Attempt:
    """One try to make a model within the plan's budget. Another one follows if the finished model is too slow."""

    cost_table: str | None = None  # the content of the cost table that the cut is made with
    tighten: float = 1.0  # the factor on the latency that the cut aims at
    probes: Sequence[dict[str, Any]] = ()  # of the tries before


@dataclass(frozen=True)
class Plan:
    """A cell, ready to run. `obstacle` says why it cannot run, if that is known already."""

    spec: RunSpec
    pruner: PrunerSpec
    device: DeviceSpec
    info: DeviceInfo
    card: ModelCard
    folder: Path | None  # of the dense weights, once they are located
    evaluations: Sequence[Evaluation]
    calibration: Mapping[str, Any] | None  # what the method reads; a recovery's stands with the recovery
    recovery: Recovering
    missing: dict[str, str] = field(default_factory=dict)  # evaluators that cannot be asked here, and why
    obstacle: HarnessError | None = None
    inspect: bool = True  # whether the method's own code may be run to plan
    grid: Grid | None = None  # what turns energy into CO2; in no key, since nothing is measured by it

    @property
    def budget(self) -> Budget:
        return Budget(self.spec.budget.kind, self.spec.budget.value, self.spec.budget.unit)

    @property
    def workloads(self) -> list[Workload]:
        return [Workload.parse(text) for text in self.spec.workloads]

    @property
    def clock(self) -> str:
        """The clock that is ranked."""
        return self.device.clock

    @property
    def provenance(self) -> str:
        """Of every latency: device, emulator or simulated."""
        return self.device.provenance

    @property
    def protocol(self) -> timing.TimingProtocol:
        return timing.protocol(self.spec.preset, self.device, self.spec.runtime)

    @property
    def place(self) -> str:
        """Where models lie while methods and recoveries work on them."""
        return getattr(plugins.registry().device(self.device.name, self.spec.runtime), "place", "cpu")

    @property
    def sees_latency(self) -> bool:
        """Whether the method itself looks at the device's cost model."""
        return "latency" in self.pruner.needs or "latency" in self.pruner.budgets

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.card.config)

    @cached_property
    def predicted(self) -> dict[str, int] | None:
        """The shape the method expects to leave, where it can tell without a model."""
        promise = self.promise(self.method()) if self.spec.budget.kind == "ratio" else None
        shape = promise(self.spec.budget.value) if promise is not None else None
        return None if shape is None else self.anatomy.complete(shape)

    def method(self) -> Any:
        """The pruner with its parameters."""
        return plugins.registry().build("pruner", self.spec.pruner, self.spec.parameters)

    def promise(self, method: Any) -> Callable[[float], Shape | None] | None:
        """The method's `shape` as a function of the ratio, if it has one; whatever it raises names the method."""
        if not hasattr(method, "shape"):
            return None
        name = f"pruner {self.spec.pruner}"

        def shape(ratio: float) -> Shape | None:
            try:
                with plugin_code(name):
                    return method.shape(self.anatomy, ratio)
            except HarnessError:
                raise
            except (Exception, SystemExit) as error:
                raise HarnessError(f"{name} cannot say what shape {ratio:g} leaves: {describe(error, 500)}") from error

        return shape

    # --- what each stage depends on ---

    def model_key(self) -> dict[str, Any]:
        return {"model": self.spec.model, "revision": self.spec.revision, "dtype": self.spec.dtype}

    def prepare_parts(self) -> dict[str, Any]:
        return {
            **self.model_key(),
            "pruner": self.spec.pruner,
            "version": plugins.code_version("pruner", self.spec.pruner),
            "parameters": self.spec.parameters,
            "calibration": self.calibration,
            "seed": self.spec.seed,
            "cut_version": CUT_VERSION,
        }

    def cut_parts(self, attempt: Attempt) -> dict[str, Any]:
        parts = {**self.prepare_parts(), "budget": self.spec.budget.model_dump(), "cost_table": attempt.cost_table}
        if self.spec.budget.kind == "latency":
            matched = {"tighten": attempt.tighten, "workload": self.spec.workloads[0], "runtime": self.spec.runtime}
            parts["matched"] = matched | {"device": self.device_part(), "protocol": prober.PROBING.parts()}
        return parts

    def artefact_parts(self, attempt: Attempt) -> dict[str, Any]:
        return {"cut": keys.key("cut", self.cut_parts(attempt)), "recovery": self.recovery_part()}

    def recovery_part(self) -> dict[str, Any]:
        spec, text = self.recovery.spec, self.recovery.data
        part: dict[str, Any] = {"name": spec.name, "version": plugins.code_version("recovery", spec.name)}
        part |= {"parameters": dict(self.recovery.parameters)} if self.recovery.parameters else {}
        return part | ({"calibration": text, "seed": self.spec.seed} if text else {})

    def measure_parts(self, content: Any, workload: str) -> dict[str, Any]:
        return {
            "artefact": content,
            "against": self.model_key(),
            "device": self.device_part(),
            "runtime": self.spec.runtime,
            "workload": workload,
            "protocol": self.protocol.parts(),
        }

    def device_part(self) -> dict[str, Any]:
        return {
            "name": self.device.name,
            "version": plugins.code_version("device", self.device.name),
            "clock": self.clock,
            "provenance": self.provenance,
            "fingerprint": dict(self.info.fingerprint),
        }

    def memory_key(self, content: Any) -> tuple[str, dict[str, Any]]:
        """Memory is read in a fresh process on this CPU, under the first workload."""
        parts = self.measure_parts(content, self.spec.workloads[0])
        return keys.key("memory", parts), parts

    def eval_parts(
        self, content: Any, evaluation: Evaluation, measured: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What an evaluator sees of a measurement is part of its key as it is: another reading, another result."""
        lent = {"measured": measured, "dense": self.model_key()}
        seen = {name: lent[name] for name in evaluation.spec.needs}
        return {
            "artefact": content,
            "evaluator": evaluation.spec.name,
            "version": plugins.code_version("evaluator", evaluation.spec.name),
            "parameters": evaluation.parameters,
            "data": evaluation.data,
            "machine": [] if evaluation.data else [self.spec.device, *self.spec.workloads],
            "limit": self.spec.limit,
            "batch_size": 1,
            "dtype": self.spec.dtype,
            **({} if self.place == "cpu" else {"place": self.place}),
            **seen,
        }

    def cell_parts(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "artefact": {**self.cut_parts(attempt), "recovery": self.recovery_part()},
            "measure": [self.measure_parts("", workload) for workload in self.spec.workloads],
            "eval": {e.label: self.eval_parts("", e) for e in self.evaluations} | dict.fromkeys(self.missing),
        }

    def cell_id(self, attempt: Attempt) -> str:
        return keys.key("cell", self.cell_parts(attempt))

    # --- what it will take ---

    def work_flops(self) -> float:
        """Forward passes ahead, in FLOPs: dense and pruned, timing and evaluation."""
        total = 0.0
        for workload in self.workloads:
            total += 30 * counting.flops(self.anatomy, {}, workload)
        if self.spec.budget.kind == "latency":  # about four probes of three rounds
            total += 4 * 36 * counting.flops(self.anatomy, {}, self.workloads[0])
        for evaluation in self.evaluations:
            if tokens := evaluation.parameters.get("window") or evaluation.spec.tokens:
                once = counting.flops(self.anatomy, {}, Workload("prefill", 1, tokens))
                head = 2 * tokens * self.anatomy.config["hidden_size"] * self.anatomy.config["vocab_size"]
                asked = evaluation.spec.documents
                total += 2 * min(self.spec.limit or asked, asked) * (once + head)
        return total
