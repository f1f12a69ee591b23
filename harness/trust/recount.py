"""What a record says of its model and its budget, counted again from the model's card and the shape that was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

from harness import accounting, plugins
from harness.anatomy import Anatomy, anatomy_of
from harness.api import Workload
from harness.errors import HarnessError
from harness.records import Record

CLOSE = 1e-9


def close(known: object, found: object) -> bool:
    if isinstance(known, int | float) and isinstance(found, int | float):
        return math.isclose(known, found, rel_tol=CLOSE, abs_tol=CLOSE)
    return known == found


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
    if budget is None or artefact is None:
        return
    limit = spec.budget.value
    if not close(budget.asked, limit):
        yield f"the budget says that {budget.asked:g} was asked, the cell {limit:g}"
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


def model(record: Record) -> Iterator[str]:
    """Parameters, shares and FLOPs. Of masks only how many elements they can have zeroed is known."""
    anatomy, artefact = _anatomy(record.spec.model), record.artefact
    if anatomy is None or artefact is None:
        return
    shape, whole = artefact.shape, anatomy.params()
    if artefact.params_dense != whole:
        yield f"params_dense is {artefact.params_dense:,} in the record, {whole:,} by the card"
    masked = max(0, artefact.params - artefact.params_nonzero)
    prunable = anatomy.params(prunable=True)
    for name, told, least, of in zip(
        ("ratio_blocks", "ratio_total"),
        (artefact.ratio_blocks, artefact.ratio_total),
        accounting.ratios(anatomy, shape),
        (prunable, whole),
        strict=True,
    ):
        if not least - CLOSE <= told <= least + masked / of + CLOSE:
            yield f"{name} is {told:.6g} in the record, {least:.6g} by its shape"
    for workload, pair in record.flops.items():
        for side, kept in (("dense", {}), ("pruned", shape)):
            found = accounting.flops(anatomy, kept, Workload.parse(workload))
            if not close(getattr(pair, side), found):
                yield f"{side} FLOPs of {workload} are {getattr(pair, side)} in the record, {found} by the shape"


def provenance(record: Record) -> Iterator[str]:
    known = plugins.registry().specs["device"].get(record.spec.device)
    for workload, latency in record.latency.items():
        # a device may turn out to be an emulator; an emulator is never a device
        if known is not None and latency.provenance != known.provenance and latency.provenance == "device":
            yield f"{workload}: {latency.provenance} in the record, but {record.spec.device} is {known.provenance}"
