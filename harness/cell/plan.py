"""A cell that is ready to run: its resolved settings, and the keys of its stages. It does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import plugins
from harness.api import Budget, DeviceInfo, DeviceSpec, ModelCard, PrunerSpec, Shape, Workload
from harness.devices.attributes import torch_device
from harness.errors import HarnessError, describe
from harness.latency import prober, timing
from harness.models import counting
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import anatomy_of
from harness.records import keys
from harness.records.carbon import Grid
from harness.records.schema import RunSpec
from harness.resolve import Evaluation, ResolvedRecovery
from harness.system.isolation import plugin_code

CUT_VERSION = 2  # raise it when surgery or accounting changes what a cut means


@dataclass(frozen=True)
class Attempt:
    """One attempt to make a model within the plan's budget. Another one follows if the finished model is too slow."""

    cost_table: str | None = None  # the content hash of the cost table that the cut is made with
    tighten: float = 1.0  # the factor on the latency that the cut aims at
    probes: Sequence[dict[str, Any]] = ()  # of all attempts before this one


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
    calibration: Mapping[str, Any] | None  # the text that the method reads; that of a recovery is in `recovery`
    recovery: ResolvedRecovery
    missing: dict[str, str] = field(default_factory=dict)  # evaluators that cannot run, and why
    obstacle: HarnessError | None = None
    inspect: bool = True  # whether planning may run the method's code
    grid: Grid | None = None  # turns energy into CO2e; it is in no key, since no measurement depends on it

    @property
    def budget(self) -> Budget:
        return Budget(self.spec.budget.kind, self.spec.budget.value, self.spec.budget.unit)

    @property
    def workloads(self) -> list[Workload]:
        return [Workload.parse(text) for text in self.spec.workloads]

    @property
    def clock(self) -> str:
        """The clock whose times are ranked."""
        return self.device.clock

    @property
    def provenance(self) -> str:
        """Where every latency comes from: device, emulator or simulated."""
        return self.device.provenance

    @property
    def protocol(self) -> timing.TimingProtocol:
        """How the finished models are timed."""
        return timing.protocol(self.spec.preset, self.device, self.spec.runtime)

    @property
    def torch_device(self) -> str:
        """The torch device that holds the models while methods and recoveries work on them."""
        return torch_device(plugins.registry().device(self.device.name, self.spec.runtime))

    @property
    def sees_latency(self) -> bool:
        """Whether the method itself reads the device's cost model."""
        return "latency" in self.pruner.needs or "latency" in self.pruner.budgets

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.card.config)

    @cached_property
    def predicted(self) -> dict[str, int] | None:
        """The shape that the method will leave under a ratio; None if it cannot say so without a model."""
        predict = self.shape_predictor(self.method()) if self.spec.budget.kind == "ratio" else None
        shape = predict(self.spec.budget.value) if predict is not None else None
        return None if shape is None else self.anatomy.complete(shape)

    def method(self) -> Any:
        """The pruner with its parameters."""
        return plugins.registry().build("pruner", self.spec.pruner, self.spec.parameters)

    def shape_predictor(self, method: Any) -> Callable[[float], Shape | None] | None:
        """The method's `shape` as a function of the ratio, if it has one. Errors that it raises name the method."""
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
                raise HarnessError(
                    f"{name} cannot predict its shape at ratio {ratio:g}: {describe(error, 500)}"
                ) from error

        return shape

    # --- what each stage depends on: its key is the hash of these parts ---

    def model_key(self) -> dict[str, Any]:
        """Which dense weights are meant."""
        return {"model": self.spec.model, "revision": self.spec.revision, "dtype": self.spec.dtype}

    def prepare_parts(self) -> dict[str, Any]:
        """What the method's preparation depends on."""
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
        """What the cut depends on."""
        parts = {**self.prepare_parts(), "budget": self.spec.budget.model_dump(), "cost_table": attempt.cost_table}
        if self.spec.budget.kind == "latency":
            parts["matched"] = {
                "tighten": attempt.tighten,
                "workload": self.spec.workloads[0],
                "runtime": self.spec.runtime,
                "device": self.device_part(),
                "protocol": prober.PROBING.parts(),
            }
        return parts

    def artefact_parts(self, attempt: Attempt) -> dict[str, Any]:
        """What the saved model depends on."""
        return {"cut": keys.key("cut", self.cut_parts(attempt)), "recovery": self.recovery_part()}

    def recovery_part(self) -> dict[str, Any]:
        """The recovery, with its calibration text and the seed if it reads text."""
        name, text = self.recovery.spec.name, self.recovery.data
        part: dict[str, Any] = {"name": name, "version": plugins.code_version("recovery", name)}
        if self.recovery.parameters:
            part["parameters"] = dict(self.recovery.parameters)
        if text:
            part |= {"calibration": text, "seed": self.spec.seed}
        return part

    def measure_parts(self, content: Any, workload: str) -> dict[str, Any]:
        """What a measurement depends on. `content` names the model's weights."""
        return {
            "artefact": content,
            "against": self.model_key(),
            "device": self.device_part(),
            "runtime": self.spec.runtime,
            "workload": workload,
            "protocol": self.protocol.parts(),
        }

    def device_part(self) -> dict[str, Any]:
        """The device as it was probed."""
        return {
            "name": self.device.name,
            "version": plugins.code_version("device", self.device.name),
            "clock": self.clock,
            "provenance": self.provenance,
            "fingerprint": dict(self.info.fingerprint),
        }

    def memory_key(self, content: Any) -> tuple[str, dict[str, Any]]:
        """The key and its parts for memory as a fresh process on this CPU uses it under the first workload."""
        parts = self.measure_parts(content, self.spec.workloads[0])
        return keys.key("memory", parts), parts

    def eval_parts(
        self, content: Any, evaluation: Evaluation, measured: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What a score depends on: also what was measured of the model, if the evaluator reads that."""
        inputs = {"measured": measured, "dense": self.model_key()}
        needed = {name: inputs[name] for name in evaluation.spec.needs}
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
            **({} if self.torch_device == "cpu" else {"place": self.torch_device}),
            **needed,
        }

    def cell_parts(self, attempt: Attempt) -> dict[str, Any]:
        """What the record depends on."""
        return {
            "artefact": {**self.cut_parts(attempt), "recovery": self.recovery_part()},
            "measure": [self.measure_parts("", workload) for workload in self.spec.workloads],
            "eval": {e.label: self.eval_parts("", e) for e in self.evaluations} | dict.fromkeys(self.missing),
        }

    def cell_id(self, attempt: Attempt) -> str:
        return keys.key("cell", self.cell_parts(attempt))

    # --- how long it will take ---

    def work_flops(self) -> float:
        """FLOPs of all forward passes ahead, to time and to evaluate both models."""
        total = 0.0
        for workload in self.workloads:
            total += 30 * counting.flops(self.anatomy, {}, workload)
        if self.spec.budget.kind == "latency":  # about four probes of three rounds
            total += 4 * 36 * counting.flops(self.anatomy, {}, self.workloads[0])
        for evaluation in self.evaluations:
            tokens = evaluation.parameters.get("window") or evaluation.spec.tokens
            if tokens:
                body = counting.flops(self.anatomy, {}, Workload("prefill", 1, tokens))
                # A prefill computes the logits of its last position only, an evaluator those of all positions.
                heads = (self.anatomy.tensors[op.weight] for op in self.anatomy.ops if op.positions == 1)
                head = 2 * tokens * sum(map(math.prod, heads))
                documents = evaluation.spec.documents
                total += 2 * min(self.spec.limit or documents, documents) * (body + head)
        return total
