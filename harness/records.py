"""The record: the JSON of one cell. Units stand in the names; every field says what it holds."""

from __future__ import annotations

import hashlib
import operator
from functools import partial
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from harness.keys import canonical

SCHEMA = 1
OUTSIDE_DIGEST = ("trust", "history", "digest", "seal")
absent = partial(operator.is_, None)  # fields that older records lack keep their digest
Status = Literal["planned", "running", "ok", "failed", "unsupported", "timeout", "over_budget", "unstable"]
Trust = Literal["self-reported", "reproduced", "verified"]
TRUST: tuple[Trust, ...] = get_args(Trust)  # from the least

SETTLED: tuple[Status, ...] = ("ok", "over_budget", "unsupported")  # answers; a sweep asks again for the rest


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Keys(Part):
    cut: str = Field(description="what was cut out of what, how, and from which data")
    artefact: str = Field(description="the cut and what recovered it")
    measure: dict[str, str] = Field({}, description="per workload: artefact, device, runtime, protocol")
    eval: dict[str, str] = Field({}, description="per evaluator: artefact, evaluator, data, limit, dtype")


class BudgetSpec(Part):
    kind: Literal["ratio", "latency"]
    value: float
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
    workloads: list[str]
    recovery: str
    calibration: str
    evaluators: list[str]
    limit: int | None = Field(None, description="documents (windows, for perplexities) per evaluator; null is all")
    seed: int
    sustain: float = Field(0.0, description="seconds that the pruned model also works for", exclude_if=operator.not_)


class Artefact(Part):
    path: str = Field(description="the model folder, relative to the runs folder")
    sha256: str = Field(description="over every file that makes the model")
    params: int
    params_dense: int
    params_nonzero: int
    ratio_blocks: float = Field(description="share of the prunable parameters removed or zeroed")
    ratio_total: float = Field(description="share of all parameters removed or zeroed")
    bytes: int = Field(description="size of the safetensors on disk")
    shape: dict[str, int] = Field(description="units kept per site, for sites that lost some")
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
    median_ns: float
    p90_ns: float
    p90_bound_ns: float | None = Field(None, description="what p90 does not exceed, 99 %; null: too few samples to say")
    p99_bound_ns: float | None = Field(None, description="what p99 does not exceed, 99 %; null below 459 samples")
    ci95_ns: tuple[float, float] | None
    n: int


class Clock(Part):
    """One clock's view: dense and pruned over all passes, and their ratio by the faster half of the visits."""

    dense: Timing
    pruned: Timing
    speedup: float
    speedup_ci95: tuple[float, float] | None
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
    first_ns: float
    last_ns: float
    temperatures_c: dict[str, tuple[float, float]] = Field({}, description="by sensor, before the first and at the end")
    throttle: list[str] = Field([], description="what held its clocks down meanwhile")
    samples: str


class Latency(Clock):
    clock: str = Field(description="the clock that is ranked: wall, cpu or device")
    other_clock: dict[str, Clock] = Field({}, description="the clocks that are not")
    rounds: int
    warmup: int
    processes: int = Field(description="1: both models stay open in one; more: one per visit")
    provenance: Literal["device", "emulator", "simulated"]
    samples: str = Field("", description="name of the side file with the raw samples")
    told: dict[str, dict[str, Any]] = Field(
        {}, description="of dense and pruned, what the device tells of its own form of them", exclude_if=operator.not_
    )
    sustained: Sustained | None = Field(None, description="of the pruned model", exclude_if=operator.not_)
    began: str = Field("", description="UTC, first and last round", exclude_if=operator.not_)
    ended: str = Field("", description="UTC", exclude_if=operator.not_)


class Memory(Part):
    average: int
    peak: int


class MemoryPair(Part):
    dense: Memory | None = None
    pruned: Memory | None = None
    reason: str = Field("", description="why it could not be read")
    what: str = ""


class Pair(Part):
    dense: float | None = None
    pruned: float | None = None
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
    value: float
    stderr: float | None
    n: int
    dense: float | None = None
    dense_stderr: float | None = None
    higher_is_better: bool
    scale: str = Field("", description="how documents make the value: mean, or exp-mean", exclude_if=operator.not_)
    change: float | None = Field(
        None,
        description="against dense on the same documents: a difference of means, a ratio of perplexities",
        exclude_if=absent,
    )
    change_ci95: tuple[float, float] | None = Field(None, description="by document", exclude_if=absent)
    dense_samples: str = Field("", description="the dense model's side file", exclude_if=operator.not_)
    details: dict[str, Any] = Field({}, description="tokens, windows, BOS, and the identity of the data")
    notes: list[str] = Field([], description="what to know beside the figure", exclude_if=operator.not_)
    texts: list[dict[str, str]] = Field([], description="what both wrote to a prompt", exclude_if=operator.not_)
    samples: str = Field("", description="name of the side file with the scores per document")


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
    id: str
    status: Status
    reason: str = ""
    started: str
    finished: str
    keys: Keys
    spec: RunSpec
    artefact: Artefact | None = None
    budget: BudgetResult | None = None
    latency: dict[str, Latency] = {}
    memory: MemoryPair = MemoryPair()
    flops: dict[str, Pair] = Field({}, description="per workload, multiply-adds times two")
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
    known = words.get("seal") or (seal(words) if words.get("trust") == TRUST[0] else "")
    return words.get("digest") == digest(words) and known == seal(words)


def seal(words: dict[str, Any]) -> str:
    """Of what may change after the digest: a row's trust, and how it came by it."""
    return hashlib.sha256(canonical([words["digest"], words.get("trust"), words.get("history")]).encode()).hexdigest()


def digest(words: dict[str, Any]) -> str:
    inside = {name: value for name, value in words.items() if name not in OUTSIDE_DIGEST}
    return hashlib.sha256(canonical(inside).encode()).hexdigest()
