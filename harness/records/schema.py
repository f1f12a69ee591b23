"""The record: the JSON of one cell. Units stand in the names; every field says what it holds."""

from __future__ import annotations

import hashlib
import operator
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.errors import HarnessError
from harness.quantities import Workload
from harness.records.keys import canonical

SCHEMA = 1
OUTSIDE_DIGEST = ("trust", "history", "digest", "seal")
absent = partial(operator.is_, None)  # fields that older records lack keep their digest
Status = Literal["planned", "running", "ok", "failed", "unsupported", "timeout", "over_budget", "unstable"]
Trust = Literal["self-reported", "reproduced", "verified"]
TRUST: tuple[Trust, ...] = get_args(Trust)  # from the least

SETTLED: tuple[Status, ...] = ("ok", "over_budget", "unsupported")  # answers; a sweep asks again for the rest
# Bounds far beyond anything that is measured, within which arithmetic on records cannot fail.
LARGEST = 1e305  # perplexities of broken models reach 1e304
MOST_NS = 1e20  # three thousand years


def _workload(text: str) -> str:
    try:
        Workload.parse(text)
    except HarnessError as error:
        raise ValueError(error.cause) from None
    return text


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() is None:
        raise ValueError("a time without its zone")
    return text


Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Ns = Annotated[float, Field(ge=0, le=MOST_NS)]
Speedup = Annotated[float, Field(ge=1e-12, le=1e12)]
Moment = Annotated[str, AfterValidator(_moment)]
WorkloadName = Annotated[str, AfterValidator(_workload)]
SideFile = Annotated[str, Field(pattern=r"^([0-9a-f]{64}\.json\.gz)?$")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Keys(Part):
    cut: str = Field(description="what was cut out of what, how, and from which data")
    artefact: str = Field(description="the cut and what recovered it")
    measure: dict[str, str] = Field({}, description="per workload: artefact, device, runtime, protocol")
    eval: dict[str, str] = Field({}, description="per evaluator: artefact, evaluator, data, limit, dtype")


class BudgetSpec(Part):
    kind: Literal["ratio", "latency"]
    value: Number
    unit: str = Field("", description="for latency: x (of dense) or ms")


class RunSpec(Part):
    """What was asked for, every default filled in."""

    pruner: str
    parameters: dict[str, Any] = Field({}, description="all parameters of the pruner as used")
    preset: Literal["quick", "paper"]
    model: str
    revision: str = Field("", description="what names the dense weights' content; empty if they were not found")
    dtype: Literal["fp32", "bf16", "fp16"]
    budget: BudgetSpec
    device: str
    runtime: str
    workloads: list[WorkloadName] = Field(min_length=1)
    recovery: str
    calibration: str
    evaluators: list[str]
    limit: int | None = Field(None, description="documents (windows, for perplexities) per evaluator; null is all")
    seed: int
    sustain: float = Field(0.0, description="seconds that the pruned model also works for", exclude_if=operator.not_)


class Artefact(Part):
    path: str = Field(description="the model folder, relative to the runs folder", pattern="^artefacts/[0-9a-f]{24}$")
    sha256: str = Field(description="over every file that makes the model")
    params: Count
    params_dense: Count
    params_nonzero: Count
    ratio_blocks: float = Field(description="share of the prunable parameters removed or zeroed")
    ratio_total: float = Field(description="share of all parameters removed or zeroed")
    bytes: Count = Field(description="size of the safetensors on disk")
    shape: dict[str, Count] = Field(description="units kept per site, for sites that lost some")
    weights_updated: bool
    told: dict[str, Any] = Field(
        {},
        description="what the method tells of its search; its pictures lie in notes/",
        exclude_if=operator.not_,  # records of methods that tell nothing keep their digest
    )


class BudgetResult(Part):
    asked: float = Field(description="share to remove; for latency the limit, in its own unit (x of dense, or ms)")
    achieved: float = Field(description="in the same unit; a latency by the ranked clock")
    achieved_ci95: tuple[float, float] | None = Field(None, description="of a latency, from rounds drawn anew")
    predicted: float | None = Field(None, description="what the shape alone promised")
    unused: float = Field(description="how far beyond what was asked, in the same unit")
    probes: list[dict[str, Any]] = Field([], description="every try on the way to a latency")


class Timing(Part):
    median_ns: Ns
    p90_ns: Ns
    p90_bound_ns: Ns | None = Field(None, description="what p90 does not exceed, 99 %; null: too few samples to say")
    p99_bound_ns: Ns | None = Field(None, description="what p99 does not exceed, 99 %; null below 459 samples")
    ci95_ns: tuple[Number, Number] | None
    n: Count


class Clock(Part):
    """One clock's view: dense and pruned over all passes, and their ratio by the faster half of the visits."""

    dense: Timing
    pruned: Timing
    speedup: Speedup
    speedup_ci95: tuple[Speedup, Speedup] | None
    noise_floor: float | None = Field(None, description="how far dense/dense strays from 1, 95 %")

    def taken(self, unit: str) -> tuple[float, tuple[float, float] | None]:
        """What the pruned model takes, of dense (x) or in ms, and the 95 % interval."""
        if unit == "ms":
            middle, bounds = self.pruned.median_ns / 1e6, self.pruned.ci95_ns
            return middle, bounds and (bounds[0] / 1e6, bounds[1] / 1e6)
        bounds = self.speedup_ci95
        return 1 / self.speedup, bounds and (1 / bounds[1], 1 / bounds[0])


class Sustained(Part):
    """One model at work for long, beside its first seconds; the ranked clock's medians."""

    seconds: float
    first_ns: Ns
    last_ns: Ns
    temperatures_c: dict[str, tuple[float, float]] = Field({}, description="by sensor, before the first and at the end")
    throttle: list[str] = Field([], description="what held its clocks down meanwhile")
    samples: SideFile


class Latency(Clock):
    clock: str = Field(description="the clock that is ranked: wall, cpu or device")
    other_clock: dict[str, Clock] = Field({}, description="the clocks that are not")
    rounds: int
    warmup: int
    processes: int = Field(description="1: both models stay open in one; more: one per visit")
    provenance: Literal["device", "emulator", "simulated"]
    samples: SideFile = Field("", description="name of the side file with the raw samples")
    told: dict[str, dict[str, Any]] = Field(
        {}, description="of dense and pruned, what the device tells of its own form of them", exclude_if=operator.not_
    )
    sustained: Sustained | None = Field(None, description="of the pruned model", exclude_if=operator.not_)
    began: str = Field("", description="UTC, first and last round", exclude_if=operator.not_)
    ended: str = Field("", description="UTC", exclude_if=operator.not_)


class Memory(Part):
    average: Count
    peak: Count


class MemoryPair(Part):
    dense: Memory | None = None
    pruned: Memory | None = None
    reason: str = Field("", description="why it could not be read")
    what: str = ""


class Pair(Part):
    dense: Number | None = None
    pruned: Number | None = None
    reason: str = Field("", description="why it could not be read")


class Energy(Pair):
    what: str = ""


UNREAD = Energy(reason="no meter was read on this device")


class Co2(Pair):
    """What the energy weighs on one grid; only where the user named a grid."""

    what: str
    grid: str = Field(description="as it was asked for: grams of CO2e per kWh, or a country")
    grams_per_kwh: float
    source: str = Field(description="who says so")


class ScoreRecord(Part):
    value: Number
    stderr: Number | None
    n: Count
    dense: Number | None = None
    dense_stderr: Number | None = None
    higher_is_better: bool
    scale: str = Field("", description="how documents make the value: mean, or exp-mean", exclude_if=operator.not_)
    change: Number | None = Field(
        None,
        description="against dense on the same documents: a difference of means, a ratio of perplexities",
        exclude_if=absent,
    )
    change_ci95: tuple[float, float] | None = Field(None, description="by document", exclude_if=absent)
    dense_samples: SideFile = Field("", description="the dense model's side file", exclude_if=operator.not_)
    details: dict[str, Any] = Field({}, description="tokens, windows, BOS, and the identity of the data")
    notes: list[str] = Field([], description="what to know beside the figure", exclude_if=operator.not_)
    texts: list[dict[str, str]] = Field([], description="what both wrote to a prompt", exclude_if=operator.not_)
    samples: SideFile = Field("", description="name of the side file with the scores per document")

    @model_validator(mode="after")
    def _in_range(self) -> ScoreRecord:
        values = [self.value, *([] if self.dense is None else [self.dense])]
        if self.scale == "exp-mean" and min(values) <= 0:
            raise ValueError("an exponential is above 0")
        if self.higher_is_better and max(map(abs, values)) > 1e100:
            raise ValueError("no accuracy is as large as that")
        return self


class Cost(Part):
    prepare_s: float = 0
    search_s: float = 0
    profile_s: float = 0
    recover_s: float = 0
    evaluate_s: float = 0
    train_tokens: int = 0


class Git(Part):
    commit: str
    dirty: bool


class Environment(Part):
    git: Git | None = Field(None, description="the checkout harness runs from; null when it is installed")
    packages: dict[str, str]
    host: dict[str, Any]
    device: dict[str, Any] = Field({}, description="fingerprint of the device, and what plug-ins add")


class Conformance(Part):
    kit: str
    passed: int
    of: int


class Gate(Part):
    name: str
    guards: str = Field(description="the clock it guards, or what else")
    ok: bool
    detail: str = ""


class Change(Part):
    when: str
    what: str
    command: str = ""


class Record(Part):
    schema_: int = Field(SCHEMA, alias="schema")
    id: str = Field(pattern="^[0-9a-f]{24}$")
    status: Status
    reason: str = ""
    started: Moment
    finished: Moment
    keys: Keys
    spec: RunSpec
    artefact: Artefact | None = None
    budget: BudgetResult | None = None
    latency: dict[WorkloadName, Latency] = {}
    memory: MemoryPair = MemoryPair()
    flops: dict[WorkloadName, Pair] = Field({}, description="per workload, multiply-adds times two")
    energy: Energy = UNREAD
    co2: Co2 | None = Field(
        None,
        description="derived from the energy of the first workload",
        exclude_if=operator.not_,  # records of runs that name no grid keep their digest
    )
    scores: dict[str, ScoreRecord] = {}
    unscored: dict[str, str] = Field({}, description="evaluators that gave no score, and why", exclude_if=operator.not_)
    cost: Cost = Cost()
    environment: Environment
    conformance: Conformance | None = Field(
        None, description="of the pruner in the conformance kit; null where HARNESS_CHECK=0 skipped it"
    )
    gates: list[Gate] = []
    unusual: dict[str, Any] | None = Field(
        None, description="parameters of the pruner that are not its preset's", exclude_if=absent
    )
    trust: Trust = "self-reported"
    history: list[Change] = []
    digest: str = Field("", description="sha256 of all but trust, history and what seals them")
    seal: str = Field("", description="sha256 of digest, trust and history", exclude_if=operator.not_)

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def words(self) -> dict[str, Any]:
        """Plain JSON words."""
        return self.model_dump(mode="json", by_alias=True)

    def sealed(self) -> Record:
        words = self.words()
        words["digest"] = digest(words)
        return self.model_copy(update={"digest": words["digest"], "seal": seal(words)})


def intact(words: dict[str, Any]) -> bool:
    """Whether nothing was changed since it was sealed; what older records were called later has no seal."""
    try:
        known = words.get("seal") or (seal(words) if words.get("trust") == TRUST[0] else "")
        return words["digest"] == digest(words) and known == seal(words)
    except (KeyError, ValueError, RecursionError):  # no digest, or what has no canonical text
        return False


def seal(words: dict[str, Any]) -> str:
    """Of what may change after the digest: a row's trust, and how it came by it."""
    return hashlib.sha256(canonical([words["digest"], words.get("trust"), words.get("history")]).encode()).hexdigest()


def digest(words: dict[str, Any]) -> str:
    inside = {name: value for name, value in words.items() if name not in OUTSIDE_DIGEST}
    return hashlib.sha256(canonical(inside).encode()).hexdigest()
