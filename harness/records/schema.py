"""The record: the JSON of one cell. Names of fields contain their units."""

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
is_none = partial(operator.is_, None)  # leave out when None, so that digests of older records stay valid
Status = Literal["planned", "running", "ok", "failed", "unsupported", "timeout", "over_budget", "unstable"]
Trust = Literal["self-reported", "reproduced", "verified"]
TRUST: tuple[Trust, ...] = get_args(Trust)  # from least to most

SETTLED: tuple[Status, ...] = ("ok", "over_budget", "unsupported")  # final; a sweep runs cells of another status again
# Bounds of numbers. They are far beyond anything that is measured, and arithmetic within them cannot overflow.
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
        raise ValueError("a time without a time zone")
    return text


Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Ns = Annotated[float, Field(ge=0, le=MOST_NS)]
Speedup = Annotated[float, Field(ge=1e-12, le=1e12)]
Moment = Annotated[str, AfterValidator(_moment)]
WorkloadName = Annotated[str, AfterValidator(_workload)]
SideFile = Annotated[str, Field(pattern=r"^([0-9a-f]{64}\.json\.gz)?$")]


class Part(BaseModel):
    """A part of a record: unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Keys(Part):
    cut: str = Field(description="of the cut: model, method, settings, budget and data")
    artefact: str = Field(description="of the saved model: the cut and the recovery")
    measure: dict[str, str] = Field({}, description="per workload: artefact, device, runtime, protocol")
    eval: dict[str, str] = Field({}, description="per evaluator: artefact, evaluator, data, limit, dtype")


class BudgetSpec(Part):
    kind: Literal["ratio", "latency"]
    value: Number
    unit: str = Field("", description="for latency: x (of dense) or ms")


class RunSpec(Part):
    """The request, with all defaults filled in."""

    pruner: str
    parameters: dict[str, Any] = Field({}, description="all parameters of the pruner, with their values")
    preset: Literal["quick", "paper"]
    model: str
    revision: str = Field("", description="identity of the dense weights; empty if they were not available")
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
    sustain: float = Field(0.0, description="seconds of sustained running, pruned model", exclude_if=operator.not_)


class Artefact(Part):
    path: str = Field(description="the model folder, relative to the runs folder", pattern="^artefacts/[0-9a-f]{24}$")
    sha256: str = Field(description="hash of all files of the model")
    params: Count
    params_dense: Count
    params_nonzero: Count
    ratio_blocks: float = Field(description="share of the prunable parameters removed or zeroed")
    ratio_total: float = Field(description="share of all parameters removed or zeroed")
    bytes: Count = Field(description="size of the safetensors on disk")
    shape: dict[str, Count] = Field(description="units kept per site, for sites that were cut")
    weights_updated: bool
    told: dict[str, Any] = Field(
        {},
        description="facts that the method reports about its search; its pictures are in notes/",
        exclude_if=operator.not_,  # leave out when empty, so that digests of older records stay valid
    )


class BudgetResult(Part):
    asked: float = Field(description="share to remove; for a latency, the limit in its unit (x of dense, or ms)")
    achieved: float = Field(description="in the same unit; a latency by the ranked clock")
    achieved_ci95: tuple[float, float] | None = Field(None, description="of a latency, from resampled rounds")
    predicted: float | None = Field(None, description="predicted from the shape alone")
    unused: float = Field(description="how much of the budget is unused, in the same unit")
    probes: list[dict[str, Any]] = Field([], description="every shape that the search for a latency tried")


class Timing(Part):
    median_ns: Ns
    p90_ns: Ns
    p90_bound_ns: Ns | None = Field(None, description="99 % upper bound of p90; null: too few samples")
    p99_bound_ns: Ns | None = Field(None, description="99 % upper bound of p99; null below 459 samples")
    ci95_ns: tuple[Number, Number] | None
    n: Count


class Clock(Part):
    """Times by one clock: dense and pruned over all passes, and their ratio over the faster half of the visits."""

    dense: Timing
    pruned: Timing
    speedup: Speedup
    speedup_ci95: tuple[Speedup, Speedup] | None
    noise_floor: float | None = Field(None, description="how far the ratio of dense to dense lies from 1, at 95 %")

    def taken(self, unit: str) -> tuple[float, tuple[float, float] | None]:
        """The pruned model's latency, as a share of dense (x) or in ms, and its 95 % interval."""
        if unit == "ms":
            middle, bounds = self.pruned.median_ns / 1e6, self.pruned.ci95_ns
            return middle, bounds and (bounds[0] / 1e6, bounds[1] / 1e6)
        bounds = self.speedup_ci95
        return 1 / self.speedup, bounds and (1 / bounds[1], 1 / bounds[0])


class Sustained(Part):
    """One model that is kept running: medians of its first and last seconds by the ranked clock."""

    seconds: float
    first_ns: Ns
    last_ns: Ns
    temperatures_c: dict[str, tuple[float, float]] = Field({}, description="by sensor, before and after")
    throttle: list[str] = Field([], description="reasons for which the device lowered its clocks meanwhile")
    samples: SideFile


class Latency(Clock):
    clock: str = Field(description="the clock that rows are ranked by: wall, cpu or device")
    other_clock: dict[str, Clock] = Field({}, description="the other clocks")
    rounds: int
    warmup: int
    processes: int = Field(description="1: one process holds both models; more: one process per visit")
    provenance: Literal["device", "emulator", "simulated"]
    samples: SideFile = Field("", description="name of the side file with the raw samples")
    told: dict[str, dict[str, Any]] = Field(
        {}, description="facts that the device reports about its form of dense and pruned", exclude_if=operator.not_
    )
    sustained: Sustained | None = Field(None, description="the pruned model, kept running", exclude_if=operator.not_)
    began: str = Field("", description="start of the first round, UTC", exclude_if=operator.not_)
    ended: str = Field("", description="end of the last round, UTC", exclude_if=operator.not_)


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
    """CO2e of the energy on one electricity grid; only if the user named a grid."""

    what: str
    grid: str = Field(description="as requested: grams of CO2e per kWh, or a country")
    grams_per_kwh: float
    source: str = Field(description="where the figure comes from")


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
        description="from dense on the same documents: a difference of means, or a ratio of perplexities",
        exclude_if=is_none,
    )
    change_ci95: tuple[float, float] | None = Field(None, description="over documents", exclude_if=is_none)
    dense_samples: SideFile = Field("", description="the dense model's side file", exclude_if=operator.not_)
    details: dict[str, Any] = Field({}, description="tokens, windows, BOS, and the identity of the data")
    notes: list[str] = Field([], description="remarks that belong to the figure", exclude_if=operator.not_)
    texts: list[dict[str, str]] = Field([], description="what both models wrote for prompts", exclude_if=operator.not_)
    samples: SideFile = Field("", description="name of the side file with the scores per document")

    @model_validator(mode="after")
    def _in_range(self) -> ScoreRecord:
        values = [self.value, *([] if self.dense is None else [self.dense])]
        if self.scale == "exp-mean" and min(values) <= 0:
            raise ValueError("an exponential must be above 0")
        if self.higher_is_better and max(map(abs, values)) > 1e100:
            raise ValueError("an accuracy cannot be that large")
        return self


class Cost(Part):
    """Wall seconds of the stages, and tokens that training used."""

    prepare_s: float = Field(0, description="what does not depend on the budget; part of search_s")
    search_s: float = Field(0, description="to decide on the cut, with all probes of a latency")
    profile_s: float = Field(0, description="to measure the device's cost table")
    recover_s: float = 0
    evaluate_s: float = 0
    train_tokens: int = Field(0, description="by the method and the recovery, counted as often as they were used")


class Git(Part):
    commit: str
    dirty: bool


class Environment(Part):
    git: Git | None = Field(None, description="the checkout harness runs from; null when it is installed")
    packages: dict[str, str]
    host: dict[str, Any]
    device: dict[str, Any] = Field({}, description="fingerprint of the device, and facts that plug-ins add")


class Conformance(Part):
    kit: str
    passed: int
    of: int


class Gate(Part):
    name: str
    guards: str = Field(description="the clock that it guards, or another measurement")
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
        exclude_if=operator.not_,  # leave out when None, so that digests of older records stay valid
    )
    scores: dict[str, ScoreRecord] = {}
    unscored: dict[str, str] = Field({}, description="evaluators without a score, and why", exclude_if=operator.not_)
    cost: Cost = Cost()
    environment: Environment
    conformance: Conformance | None = Field(
        None, description="of the pruner in the conformance kit; null if HARNESS_CHECK=0 skipped it"
    )
    gates: list[Gate] = []
    unusual: dict[str, Any] | None = Field(
        None, description="parameters of the pruner that differ from its preset", exclude_if=is_none
    )
    trust: Trust = "self-reported"
    history: list[Change] = []
    digest: str = Field("", description="sha256 of all fields but trust, history, digest and seal")
    seal: str = Field("", description="sha256 of digest, trust and history", exclude_if=operator.not_)

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def sealed(self) -> Record:
        """A copy with its digest and seal."""
        payload = self.to_dict()
        payload["digest"] = digest(payload)
        return self.model_copy(update={"digest": payload["digest"], "seal": seal(payload)})


def intact(payload: dict[str, Any]) -> bool:
    """Whether digest and seal fit. Older records have no seal: they are intact only with the lowest trust."""
    try:
        stated_seal = payload.get("seal") or (seal(payload) if payload.get("trust") == TRUST[0] else "")
        return payload["digest"] == digest(payload) and stated_seal == seal(payload)
    except (KeyError, ValueError, RecursionError):  # there is no digest, or a value has no canonical text
        return False


def seal(payload: dict[str, Any]) -> str:
    """The hash of digest, trust and history. Trust and history may change after the digest is made."""
    parts = [payload["digest"], payload.get("trust"), payload.get("history")]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def digest(payload: dict[str, Any]) -> str:
    """The hash of all fields that may not change."""
    fields = {name: value for name, value in payload.items() if name not in OUTSIDE_DIGEST}
    return hashlib.sha256(canonical(fields).encode()).hexdigest()
