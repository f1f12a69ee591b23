"""Recomputes figures of a record: model and budget from the model's card and the kept shape, and what else follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from harness import plugins
from harness.api import Workload
from harness.errors import HarnessError
from harness.models import counting
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import anatomy_of
from harness.records import carbon
from harness.records.schema import Record, ScoreRecord

CLOSE = 1e-9  # tolerance, relative and absolute
HEADER = 256  # bytes per tensor in a safetensors header, at most: its name, type, shape and offsets
PERPLEXITY = "harness.evaluation.perplexity:"
NATURAL_ZEROS = 0.01  # share of the dense model's parameters that may be zero without a mask


def close(recorded: object, computed: object) -> bool:
    if isinstance(recorded, int | float) and isinstance(computed, int | float):
        return math.isclose(recorded, computed, rel_tol=CLOSE, abs_tol=CLOSE)
    return recorded == computed


def apart(recorded: Any, computed: Any, where: str = "", by: str = "its samples") -> Iterator[str]:
    """A message for each figure of the record that differs from the one computed from its samples."""
    if recorded == computed:
        return
    if isinstance(computed, dict) and isinstance(recorded, dict):
        for name in computed.keys() | recorded.keys():
            path = f"{where}.{name}" if where else str(name)
            yield from apart(recorded.get(name), computed.get(name), path, by)
    elif isinstance(computed, list | tuple) and isinstance(recorded, list | tuple) and len(computed) == len(recorded):
        for i, (value, expected) in enumerate(zip(recorded, computed, strict=True)):
            yield from apart(value, expected, f"{where}[{i}]", by)
    elif not close(recorded, computed):
        yield f"{where} is {recorded} in the record, {computed} by {by}"


@cache
def _anatomy(model: str) -> Anatomy | None:
    """The anatomy of a registered model; None for others, since nothing is downloaded for validation."""
    card = plugins.registry().specs["model"].get(model)
    try:
        return anatomy_of(dict(card.config)) if card else None
    except HarnessError:
        return None


def budget(record: Record) -> Iterator[str]:
    """Where the budget contradicts the request, the measurement or the probes."""
    budget, artefact, spec = record.budget, record.artefact, record.spec
    if budget is None:
        return
    limit = spec.budget.value
    if not close(budget.asked, limit):
        yield f"the budget says that {budget.asked:g} was requested, the cell {limit:g}"
    if artefact is None:  # no shape was fast enough, so `achieved` is the fastest probe
        fastest = min((probe["measured"] for probe in budget.probes), default=budget.achieved)
        by_probes = {"achieved": fastest, "unused": limit - fastest}
        yield from apart({name: getattr(budget, name) for name in by_probes}, by_probes, "budget", "its probes")
        return
    if spec.budget.kind == "ratio":
        achieved, bounds, over = artefact.ratio_blocks, None, False
        unused = achieved - limit
    elif (latency := record.latency.get(spec.workloads[0])) is None:
        return
    else:
        achieved, bounds = latency.taken(spec.budget.unit)
        over, unused = achieved > limit * (1 + CLOSE), limit - achieved
    if not close(achieved, budget.achieved):
        yield f"the budget says {budget.achieved:.6g}, the measurement {achieved:.6g}"
    elif not close(unused, budget.unused):
        yield f"the budget says that {budget.unused:.6g} is unused, the measurement {unused:.6g}"
    if budget.achieved_ci95 and bounds and not all(map(close, budget.achieved_ci95, bounds)):
        yield f"the budget's interval is {budget.achieved_ci95}, the measurement's {bounds}"
    if over and record.status == "ok":
        yield f"ok at {achieved:.6g}, over its limit of {limit:g}"
    if budget.probes and budget.probes[-1].get("final"):
        last = budget.probes[-1]
        figures: dict[str, float | None] = {"achieved": budget.achieved, "predicted": budget.predicted}
        by_probe = {"achieved": last.get("measured"), "predicted": last.get("estimated")}
        yield from apart(figures, by_probe, "budget", "its last probe")


def model(record: Record) -> Iterator[str]:
    """Where parameters, shares removed and FLOPs contradict the model's card and the kept shape.

    The number of zeros is only known from the model itself, so it must be about the number that is masked.
    """
    anatomy, artefact = _anatomy(record.spec.model), record.artefact
    if anatomy is None or artefact is None:
        return
    shape = artefact.shape
    dense_params, params = anatomy.params(), anatomy.params(shape)
    for name, recorded, counted in (
        ("params_dense", artefact.params_dense, dense_params),
        ("params", artefact.params, params),
    ):
        if recorded != counted:
            yield f"{name} is {recorded:,} in the record, {counted:,} by the model's card and its shape"
    masked = max(0, round(artefact.ratio_total * dense_params) - (dense_params - params))
    for name, ratio, expected in zip(
        ("ratio_blocks", "ratio_total"),
        (artefact.ratio_blocks, artefact.ratio_total),
        counting.ratios(anatomy, shape, masked),
        strict=True,
    ):
        if not close(ratio, expected):
            yield f"{name} is {ratio:.6g} in the record, {expected:.6g} by its shape and {masked:,} masked"
    if not masked <= params - artefact.params_nonzero <= masked + NATURAL_ZEROS * dense_params:
        yield f"params_nonzero is {artefact.params_nonzero:,} in the record, with {masked:,} of {params:,} masked"
    for workload, pair in record.flops.items():
        for side, kept_shape in (("dense", {}), ("pruned", shape)):
            counted = counting.flops(anatomy, kept_shape, Workload.parse(workload))
            if not close(getattr(pair, side), counted):
                yield f"{side} FLOPs of {workload} are {getattr(pair, side)} in the record, {counted} by the shape"


def files(record: Record) -> Iterator[str]:
    """Where the size or path of the model's files, or whether weights were updated, contradicts the rest of the record.

    A safetensors file holds its parameters and a header with an entry for each tensor.
    """
    artefact, anatomy = record.artefact, _anatomy(record.spec.model)
    if artefact is None:
        return
    if record.status == "ok" and artefact.path != f"artefacts/{record.keys.artefact}":
        yield f"artefact.path is {artefact.path} in the record, but the model's key is {record.keys.artefact}"
    if anatomy is not None:
        header = artefact.bytes - counting.stored_bytes(artefact.params, record.spec.dtype)
        if not 0 < header <= HEADER * (len(anatomy.tensors) + 1):
            yield f"bytes is {artefact.bytes:,} in the record, which is not the size of {artefact.params:,} parameters"
    pruner = plugins.registry().specs["pruner"].get(record.spec.pruner)
    if record.spec.recovery != "none" and not artefact.weights_updated:
        yield f"weights_updated is false in the record, though {record.spec.recovery} followed the cut"
    if record.spec.recovery == "none" and artefact.weights_updated and pruner and not pruner.updates_weights:
        yield f"weights_updated is true in the record, but {pruner.name} changes no weights and nothing followed it"


def documents(record: Record) -> Iterator[str]:
    """Where the number of documents exceeds the limit, or the windows of a text do not add up."""
    limit = record.spec.limit
    for name, score in record.scores.items():
        if limit is not None and score.n > limit:
            yield f"{name}: {score.n} documents in the record, but the limit was {limit}"
        evaluator = plugins.registry().specs["evaluator"].get(name.partition(":")[0])
        if evaluator is not None and evaluator.target.startswith(PERPLEXITY) and score.details:
            yield from (f"{name}: {where}" for where in _windows(score, limit))


def _windows(score: ScoreRecord, limit: int | None) -> Iterator[str]:
    """Windows are adjacent. The first token of each is scored only where a BOS token precedes it."""
    details = score.details
    window, tokens = details["window"], details["tokens"]
    most = tokens // window
    by_size = {
        "windows": most if limit is None else min(most, limit),
        "stride": window,
        "tokens_scored": score.n * (window - (details["bos"] is None)),
    }
    yield from apart({name: details[name] for name in by_size}, by_size, by="its windows")
    if details["windows"] != score.n:
        yield f"windows is {details['windows']} in the record, {score.n} were scored"


def conformance(record: Record) -> Iterator[str]:
    score = record.conformance
    if score is not None and not 0 <= score.passed <= score.of:
        yield f"{score.passed} of {score.of} checks passed"


def provenance(record: Record) -> Iterator[str]:
    """Where a latency claims a real device, but the registration or the fingerprint says emulator or simulation."""
    device = plugins.registry().specs["device"].get(record.spec.device)
    kind = record.environment.device.get("provenance") or (device.provenance if device else "device")
    for workload, latency in record.latency.items():
        if latency.provenance == "device" != kind:
            yield f"{workload}: {latency.provenance} in the record, but {record.spec.device} is {kind}"


def co2(record: Record) -> Iterator[str]:
    """Where CO2 emissions do not follow from the energy and the grid's intensity."""
    recorded = record.co2
    if recorded is not None:
        # If the grid is a country, another version of the table may have another figure for it.
        with suppress(ValueError):
            yield from apart(recorded.grams_per_kwh, float(recorded.grid), "co2.grams_per_kwh", "its grid")
        grid = carbon.Grid(recorded.grid, recorded.grams_per_kwh, recorded.source)
        computed = carbon.co2(grid, record.energy, record.spec.workloads[0])
        for side in ("dense", "pruned"):
            yield from apart(getattr(recorded, side), getattr(computed, side), f"co2.{side}", "its energy")
