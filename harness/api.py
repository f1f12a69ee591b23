"""The types that plug-ins use. Nothing here imports torch, so that registering a method takes milliseconds."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import pluggy

from harness.quantities import Budget as Budget
from harness.quantities import Shape as Shape
from harness.quantities import Workload as Workload

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.models.anatomy.core import Anatomy

__all__ = [
    "API_VERSION",
    "Architecture",
    "ArchitectureSpec",
    "Budget",
    "Context",
    "Cut",
    "Device",
    "DeviceInfo",
    "DeviceSpec",
    "Evaluator",
    "EvaluatorSpec",
    "Event",
    "Inputs",
    "ModelCard",
    "Param",
    "Pruner",
    "PrunerSpec",
    "Recovery",
    "RecoverySpec",
    "Samples",
    "Score",
    "Scores",
    "Shape",
    "Step",
    "Task",
    "TimingPlan",
    "Workload",
    "hookimpl",
]

API_VERSION = 2
"""The version of what plug-ins use. It is raised when a name or an argument goes away or changes its meaning.

A plug-in's module may state the version it was written for, `HARNESS_API = 2`. Plug-ins for the version before still
load: a name that has changed since works and warns. A plug-in for any other version is listed as broken."""
OLDEST_API = 1
hookimpl = pluggy.HookimplMarker("harness")

Class = TypeVar("Class", bound=type)


def renamed_fields(**new_names: str) -> Callable[[Class], Class]:
    """A class decorator: fields can be given and read under their names of API version 1 too, with a warning."""

    def warn(cls: type, old: str) -> None:
        new = new_names[old]
        warnings.warn(f"{cls.__name__}.{old} is now called {new}", FutureWarning, stacklevel=3)

    def decorate(cls: Class) -> Class:
        init: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(init)
        def with_old_names(self: Any, *args: Any, **values: Any) -> None:
            for old, new in new_names.items():
                if old in values:
                    if new in values:
                        raise TypeError(f"{cls.__name__} got both {new} and {old}, its old name")
                    warn(cls, old)
                    values[new] = values.pop(old)
            init(self, *args, **values)

        def alias(old: str) -> property:
            def read(self: Any) -> Any:
                warn(cls, old)
                return getattr(self, new_names[old])

            def write(self: Any, value: Any) -> None:
                warn(cls, old)
                setattr(self, new_names[old], value)

            return property(read, write)

        setattr(cls, "__init__", with_old_names)  # noqa: B010
        for old in new_names:
            setattr(cls, old, alias(old))
        return cls

    return decorate


# --- what a plug-in registers: data only ---------------------------------------------------------


@dataclass(frozen=True)
class Param:
    """One setting of a plug-in: its value under both presets, and the values that a user may give."""

    quick: Any
    help: str
    paper: Any = None
    choices: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None  # values must be larger than this
    most: float | None = None

    def default(self, preset: str) -> Any:
        return self.paper if preset == "paper" and self.paper is not None else self.quick


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every plug-in registers. Its code, `target`, is imported when it is first used."""

    name: str
    target: str
    summary: str
    version: str = "1"
    parameters: Mapping[str, Param] = field(default_factory=dict)
    check_with: Mapping[str, Any] = field(default_factory=dict)  # settings for the kit, if defaults are slow
    exceptions: Mapping[str, str] = field(default_factory=dict)  # checks of the kit that must fail, with the reason


@renamed_fields(families="architectures", sound="check_settings")
@dataclass(frozen=True, kw_only=True)
class PrunerSpec(Spec):
    """A method. `architectures` names those it works on, or single model types of them; "*" stands for all.

    `check_settings` names a function, "module:function", of a module that imports nothing heavy. It gets all settings
    and returns the problem with them together and its remedy, or None.
    """

    paper: str = ""
    kinds: tuple[str, ...] = ("structured",)
    budgets: tuple[str, ...] = ("ratio",)
    architectures: tuple[str, ...] = ("*",)
    needs: tuple[str, ...] = ()  # calibration, gradients, latency (fills ctx.latency), training (few runs per budget)
    updates_weights: bool = False
    differs: tuple[str, ...] = ()  # each difference from the paper, in one line
    check_settings: str = ""

    def works_on(self, anatomy: Anatomy) -> bool:
        return not {"*", anatomy.architecture, anatomy.family}.isdisjoint(self.architectures)


@dataclass(frozen=True, kw_only=True)
class DeviceSpec(Spec):
    """A device. `target` is called with `runtime=` if there is more than one runtime."""

    runtimes: tuple[str, ...] = ("eager",)
    clock: str = "wall"  # the clock that is ranked: wall, cpu or device
    provenance: str = "device"  # device, emulator or simulated
    dtype: str = "fp32"
    workload: str = "prefill:1x128"
    in_process: bool = False  # models run in the caller's process, so that careful timing opens fresh ones

    def on_machine(self, info: DeviceInfo) -> DeviceSpec:
        """A copy with the clock, provenance and workload that the probe reported."""
        workload = info.workloads[0] if info.workloads else self.workload
        clock, provenance = info.clock or self.clock, info.provenance or self.provenance
        return replace(self, clock=clock, provenance=provenance, workload=workload)


@dataclass(frozen=True, kw_only=True)
class EvaluatorSpec(Spec):
    groups: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # text sources whose identity enters its keys
    needs: tuple[str, ...] = ()  # dense, measured: fill ctx.dense and ctx.measured
    tokens: int = 0  # about how many a document has; for estimates
    documents: int = 400  # about how many there are; for estimates


@dataclass(frozen=True, kw_only=True)
class RecoverySpec(Spec):
    needs: tuple[str, ...] = ()  # calibration
    teacher: bool = True  # whether it needs the dense model; without, `teacher` is None and takes no memory
    masks: bool = True  # whether masked elements stay zero; without, such cuts are refused while planning


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec(Spec):
    """A kind of network. `target` is an `Architecture`; `model_types` are those of config.json that it serves."""

    model_types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model before its weights: the fields of its config.json, and where to get the rest."""

    name: str
    summary: str
    config: Mapping[str, Any]
    source: str
    revision: str = ""
    loader: str = "harness.models.loading.weights:from_hub"
    package: str = ""  # a distribution that carries the weights
    licence: str = ""
    gated: bool = False


# --- what methods, devices and evaluators exchange with harness -----------------------------------


@renamed_fields(told="details")
@dataclass
class Cut:
    """A pruner's decision. Harness applies it; the pruner does not change the model.

    keep      site -> indices of the units that remain; sites not named keep all units
    masks     tensor name -> bool tensor of the tensor's shape, False where an element becomes zero
    rewrites  tensor name -> new value at the dense shape (merged adapters, compensated biases)
    details   plain facts about the search, for the record: steps, splits, losses
    files     name -> text, saved in `notes/` beside the model: pictures (SVG), tables
    """

    keep: Mapping[str, Iterable[int]] = field(default_factory=dict)
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rewrites: Mapping[str, torch.Tensor] = field(default_factory=dict)
    why: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Score:
    """One figure of one evaluator: the mean of `documents`, or its exponential where `scale` is "exp-mean"."""

    documents: Mapping[str, float]
    higher_is_better: bool
    scale: str = "mean"
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader must know about the figure
    texts: Sequence[Mapping[str, str]] = ()  # prompt, dense, pruned: texts of both models, shown side by side


Scores = dict[str, Score]


@dataclass
class DeviceInfo:
    """The result of a probe. Measurements compare only if their fingerprints are equal."""

    usable: bool
    reason: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    clock: str = ""  # replaces the spec's
    provenance: str = ""  # replaces the spec's, for an emulator or a stand-in for another machine
    workloads: tuple[str, ...] = ()  # replace the spec's where the user gives none
    notes: tuple[str, ...] = ()  # warnings for the user, a line each


@dataclass(frozen=True)
class Step:
    """One step of `harness doctor`: its result, or the problem and its remedy."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class TimingPlan:
    """How a visit times a model, dense or pruned.

    It makes at least `iterations` timed passes, and as many as fill `seconds`. Before them come `warmup` passes, which
    fill `seconds` too if there are any.
    """

    warmup: int = 2
    iterations: int = 5
    seconds: float = 0.0


@dataclass
class Samples:
    """Raw nanoseconds of one visit, with the state of the device before and after.

    before, after   counters and readings; `harness.latency.gates` has the names that gates read
    memory          bytes of this model alone while it ran: average and peak
    energy_j        joules of the timed passes, if there is a meter; energy_note: what it measured, or why there is none
    told            plain figures of the model as it lies on this device: parts of a graph, bytes of a binary. The name
                    is that of the stored field
    """

    wall_ns: list[int]
    cpu_ns: list[int] | None = None
    device_ns: list[int] | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, int] | None = None
    energy_j: float | None = None
    energy_note: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of a run. `name` is cell-started, stage-started, stage-finished or cell-finished."""

    name: str
    cell: str
    stage: str = ""
    seconds: float = 0.0
    status: str = ""


@dataclass
class Context:
    """What a run gives to a pruner, an evaluator or a recovery.

    latency   for methods that need it: `time(shape)` in nanoseconds, exactly; `smooth({site: units})`, a torch scalar
              with gradients, the lower convex hull if `convex=1`; `dense`, `floor` and `share(shape)`. See
              `harness.latency.cost_table.cost_model.CostModel`.
    measured  for evaluators that need it: "memory" (average, peak, total) or None, "energy_j" per pass or None
    trained   for methods that train: call it with the number of tokens of each step, for the record
    work_dir  the only folder to write to. It keeps a pruner's files from an earlier attempt at this budget
    cut       for recoveries: what was cut, in canonical form, as `harness.models.cut.CheckedCut` has it
    dense     for evaluators that need it: the dense model, which may be the model they evaluate
    task      what goes into the model and what comes out, as `Task` describes it
    """

    anatomy: Anatomy
    tokenizer: Any
    work_dir: Path
    seed: Callable[..., int]
    calibration: Callable[[int, int], torch.Tensor] | None
    progress: Callable[..., None] = lambda *_, **__: None
    trained: Callable[[int], None] = lambda _: None
    workloads: Sequence[Workload] = ()
    limit: int | None = None
    folder: Path | None = None
    measured: Any = None
    dense: Any = None
    latency: Any = None
    cut: Any = None
    task: Task | None = None

    def batches(self, count: int, **size: int) -> list[Inputs]:
        """So many inputs to learn from, of any task; `size` is a text's `length` or an image's `size`."""
        if self.calibration is None or self.task is None:
            raise ValueError("the spec of this plug-in does not say needs=('calibration',)")
        return self.task.batches(self.calibration, count, **size)


# --- what a plug-in implements ------------------------------------------------------------------

Inputs = Mapping[str, "Tensor"]  # what one pass takes in: `input_ids`, or `pixel_values` and `labels`


class Task(Protocol):
    """What goes into a network and what comes out, for everything that runs one: text, images."""

    name: str
    kinds: tuple[str, ...]  # of workloads
    default: Workload  # where neither the user nor the device names one

    def batches(self, source: Callable[..., Tensor], count: int, **size: int) -> list[Inputs]:
        """`count` inputs of calibration data, drawn by `source`."""

    def forward(self, model: Any, inputs: Inputs) -> None:
        """One pass for what happens within; the outputs are not used, and as few as possible are computed."""

    def logits(self, model: Any, inputs: Inputs) -> Tensor:
        """A row of class scores for each position or image."""

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """The mean loss that training lowers."""

    def probe(self, model: Any) -> Inputs:
        """Fixed inputs on which two copies of a model are compared."""

    def runner(self, model: Any, workload: Workload) -> Callable[[], None]:
        """One timed pass, as something to call."""

    def flops(self, anatomy: Anatomy, shape: Shape, workload: Workload) -> int:
        """Multiply-adds times two of one pass at this shape, without weights."""

    def counted_flops(self, model: Any, workload: Workload) -> int:
        """The same by counting the products of one pass; the model may lie on the meta device."""

    def count(self, inputs: Inputs) -> int:
        """How many positions or images a step learns from."""


class Architecture(Protocol):
    """How a kind of network is put together. Nothing outside `harness.models` knows more about a network than this.

    Optional beside it: `sublayers(layer)`, for residual networks: the kind of each sub-layer of a layer with its norm,
    its module and the last linear in that, as `harness.models.architectures.decoder.Sublayer` has them.
    """

    name: str
    task: str

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a config with a field of the wrong type or out of range; `where` names its file."""

    def anatomy(self, config: Mapping[str, Any]) -> Anatomy:
        """Sites and tensors, from a checked config.json; no weights, no torch."""

    def config_of(self, anatomy: Anatomy, shape: Shape) -> dict[str, Any]:
        """The config.json of this network at another shape."""

    def config(self, model: Any) -> dict[str, Any]:
        """The config.json of a model in memory."""

    def hollow(self, config: Mapping[str, Any]) -> Any:
        """A model whose parameters have shapes and no storage."""

    def build(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        """A model around these tensors. Every tensor must fit and none may be missing."""

    def tensors(self, model: Any) -> dict[str, Tensor]:
        """A model's tensors under the anatomy's names, shared ones once."""

    def rename(self, anatomy: Anatomy, shape: Shape) -> dict[str, str]:
        """The tensors that a shape keeps, by their dense names, and what each is called in the smaller model."""

    def rescale(self, anatomy: Anatomy, state: dict[str, Tensor], shape: Shape) -> None:
        """Change, in place, what depends on a width: norms that average over it."""

    def windows(self, anatomy: Anatomy) -> dict[str, int | None]:
        """How far back the layer of each site looks; None for all the way, and for networks that do not look back."""

    def layers(self, model: Any) -> Mapping[str, nn.Module]:
        """The blocks in order, under the prefix of their tensors' names."""

    def layer_numbers(self, anatomy: Anatomy, shape: Shape) -> dict[int, int]:
        """The blocks that a shape keeps: their dense numbers, and their numbers in the smaller model."""

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        """The logits of what leaves the last block."""

    def write(self, model: Any, folder: Path) -> None:
        """config.json, weights, and what else the folder needs to be opened without harness."""


@runtime_checkable
class Pruner(Protocol):
    """A method. Two further methods are optional.

    `prepare(model, ctx) -> state`: what does not depend on the budget, a flat dict of tensors and plain values. It is
    cached and used for every budget.
    `shape(anatomy, ratio) -> Shape`: the shape that a ratio leaves, computed without a model.
    """

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut: ...


@runtime_checkable
class Device(Protocol):
    """A device that times models. Four further members are optional.

    `place`: the torch device where a model must be before `prepare`; "cpu" without it.
    `copies_weights`: true if every handle holds its own weights, so that few are open at a time.
    `most_open`: how many handles may be open.
    `walk() -> Iterable[Step]`: the steps that `harness doctor NAME` shows, to the first failure.
    """

    def probe(self) -> DeviceInfo: ...
    def prepare(self, model: Any, workload: Workload) -> Any: ...
    def measure(self, handle: Any, plan: TimingPlan) -> Samples: ...
    def close(self, handle: Any) -> None: ...


@runtime_checkable
class Evaluator(Protocol):
    """An evaluator. `identity(fetch)` is optional: plain values that identify the data it reads beyond its spec's
    `reads`. With `fetch`, an EnvironmentFault says how to get data that is missing."""

    def evaluate(self, model: Any, ctx: Context) -> Scores: ...


@runtime_checkable
class Recovery(Protocol):
    """Training or another repair after the cut. `teacher` is the dense model, or None."""

    def recover(self, model: Any, teacher: Any, ctx: Context) -> None: ...
