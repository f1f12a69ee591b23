"""What a record says of its model and its budget, counted again from the model's card and the shape that was kept."""

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

CLOSE = 1e-9
HEADER = 256  # bytes of a safetensors header per tensor, at most: its name, type, shape and place
PERPLEXITY = "harness.evaluation.perplexity:"
FEW = 0.01  # of the dense model's parameters may be zero without a mask


def close(known: object, found: object) -> bool:
    if isinstance(known, int | float) and isinstance(found, int | float):
        return math.isclose(known, found, rel_tol=CLOSE, abs_tol=CLOSE)
    return known == found


def apart(known: Any, found: Any, where: str = "", by: str = "its samples") -> Iterator[str]:
    """The figures that are not what the samples give."""
    if known == found:
        return
    if isinstance(found, dict) and isinstance(known, dict):
        for name in found.keys() | known.keys():
            yield from apart(known.get(name), found.get(name), f"{where}.{name}" if where else str(name), by)
    elif isinstance(found, list | tuple) and isinstance(known, list | tuple) and len(found) == len(known):
        for at, (one, other) in enumerate(zip(known, found, strict=True)):
            yield from apart(one, other, f"{where}[{at}]", by)
    elif not close(known, found):
        yield f"{where} is {known} in the record, {found} by {by}"


@cache
def _anatomy(model: str) -> Anatomy | None:
    """Of a model that is registered here; nothing is fetched to find out about another one."""
    card = plugins.registry().specs["model"].get(model)
    try:
        return anatomy_of(dict(card.config)) if card else None
    except HarnessError:
        return None


def budget(record: Record) -> Iterator[str]:
    budget, artefact, spec = record.budget, record.artefact, record.spec
    if budget is None:
        return
    limit = spec.budget.value
    if not close(budget.asked, limit):
        yield f"the budget says that {budget.asked:g} was asked, the cell {limit:g}"
    if artefact is None:  # nothing was fast enough: the fastest try stands for it
        fastest = min((probe["measured"] for probe in budget.probes), default=budget.achieved)
        by_probes = {"achieved": fastest, "unused": limit - fastest}
        yield from apart({name: getattr(budget, name) for name in by_probes}, by_probes, "budget", "its probes")
        return
    if spec.budget.kind == "ratio":
        taken, bounds, over = artefact.ratio_blocks, None, False
        unused = taken - limit
    elif (latency := record.latency.get(spec.workloads[0])) is None:
        return
    else:
        taken, bounds = latency.taken(spec.budget.unit)
        over, unused = taken > limit * (1 + CLOSE), limit - taken
    if not close(taken, budget.achieved):
        yield f"the budget says {budget.achieved:.6g}, the measurement {taken:.6g}"
    elif not close(unused, budget.unused):
        yield f"the budget says that {budget.unused:.6g} is unused, it is {unused:.6g}"
    if budget.achieved_ci95 and bounds and not all(map(close, budget.achieved_ci95, bounds)):
        yield f"the budget's interval is {budget.achieved_ci95}, the measurement's {bounds}"
    if over and record.status == "ok":
        yield f"ok at {taken:.6g}, over its limit of {limit:g}"
    if budget.probes and budget.probes[-1].get("final"):
        last = budget.probes[-1]
        figures: dict[str, float | None] = {"achieved": budget.achieved, "predicted": budget.predicted}
        by_probe = {"achieved": last.get("measured"), "predicted": last.get("estimated")}
        yield from apart(figures, by_probe, "budget", "its last probe")


def model(record: Record) -> Iterator[str]:
    """Parameters, shares and FLOPs. Of zeros only the model itself tells the count: about as many as are masked."""
    anatomy, artefact = _anatomy(record.spec.model), record.artefact
    if anatomy is None or artefact is None:
        return
    shape, whole, left = artefact.shape, anatomy.params(), anatomy.params(artefact.shape)
    for name, known, found in (("params_dense", artefact.params_dense, whole), ("params", artefact.params, left)):
        if known != found:
            yield f"{name} is {known:,} in the record, {found:,} by the model's card and its shape"
    masked = max(0, round(artefact.ratio_total * whole) - (whole - left))
    for name, told, least in zip(
        ("ratio_blocks", "ratio_total"),
        (artefact.ratio_blocks, artefact.ratio_total),
        counting.ratios(anatomy, shape, masked),
        strict=True,
    ):
        if not close(told, least):
            yield f"{name} is {told:.6g} in the record, {least:.6g} by its shape and {masked:,} masked"
    if not masked <= left - artefact.params_nonzero <= masked + FEW * whole:
        yield f"params_nonzero is {artefact.params_nonzero:,} in the record, with {masked:,} of {left:,} masked"
    for workload, pair in record.flops.items():
        for side, kept in (("dense", {}), ("pruned", shape)):
            found = counting.flops(anatomy, kept, Workload.parse(workload))
            if not close(getattr(pair, side), found):
                yield f"{side} FLOPs of {workload} are {getattr(pair, side)} in the record, {found} by the shape"


def files(record: Record) -> Iterator[str]:
    """What can be known of the model's files without them: how large they are, where they lie, whether weights changed.

    A safetensors file is its parameters and a header with a line of text for each tensor.
    """
    artefact, anatomy = record.artefact, _anatomy(record.spec.model)
    if artefact is None:
        return
    if record.status == "ok" and artefact.path != f"artefacts/{record.keys.artefact}":
        yield f"the model lies in {artefact.path}, its key is {record.keys.artefact}"
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
    """How many documents were asked, by the limit; and the windows of a text, by their number and size."""
    limit = record.spec.limit
    for name, score in record.scores.items():
        if limit is not None and score.n > limit:
            yield f"{name}: {score.n} documents in the record, but the limit was {limit}"
        evaluator = plugins.registry().specs["evaluator"].get(name.partition(":")[0])
        if evaluator is not None and evaluator.target.startswith(PERPLEXITY) and score.details:
            yield from (f"{name}: {where}" for where in _windows(score, limit))


def _windows(score: ScoreRecord, limit: int | None) -> Iterator[str]:
    """Windows follow each other without a gap. The first token of each is only predicted where a BOS precedes it."""
    details = score.details
    window, tokens = details["window"], details["tokens"]
    whole = tokens // window
    by_size = {
        "windows": whole if limit is None else min(whole, limit),
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
    """A device may turn out to be an emulator or to be played, and then its fingerprint says so; never the reverse."""
    known = plugins.registry().specs["device"].get(record.spec.device)
    found = record.environment.device.get("provenance") or (known.provenance if known else "device")
    for workload, latency in record.latency.items():
        if latency.provenance == "device" != found:
            yield f"{workload}: {latency.provenance} in the record, but {record.spec.device} is {found}"


def co2(record: Record) -> Iterator[str]:
    told = record.co2
    if told is not None:
        with suppress(ValueError):  # a country's name, whose figure another version of the table may have changed
            yield from apart(told.grams_per_kwh, float(told.grid), "co2.grams_per_kwh", "its grid")
        asked = carbon.Grid(told.grid, told.grams_per_kwh, told.source)
        found = carbon.co2(asked, record.energy, record.spec.workloads[0])
        for side in ("dense", "pruned"):
            yield from apart(getattr(told, side), getattr(found, side), f"co2.{side}", "its energy")
