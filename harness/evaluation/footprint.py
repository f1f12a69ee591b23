"""Parameters, bytes, FLOPs, memory and energy of a model, counted by harness and never by the method."""

from __future__ import annotations

from typing import Any

from harness.api import Context, Score, Scores
from harness.models import counting
from harness.models.architectures.lookup import architecture_for
from harness.models.saved.contents import folder_bytes


class Footprint:
    def evaluate(self, model: Any, ctx: Context) -> Scores:
        stored, nonzero = counting.count(model)
        figures: dict[str, float] = {
            "params": stored,
            "params_nonzero": nonzero,
            "bytes": folder_bytes(ctx.folder) if ctx.folder else stored * next(model.parameters()).element_size(),
        }
        kind = architecture_for(model)
        hollow = kind.hollow(kind.config(model)).to("meta")
        for workload in ctx.workloads:
            counted = counting.counted_flops(hollow, workload)
            figures[f"flops[{workload}]"] = counted
            figures[f"flops_per_token[{workload}]"] = counted / workload.items
        figures |= measured(ctx)
        return {name: Score({"model": float(value)}, higher_is_better=False) for name, value in figures.items()}


def measured(ctx: Context) -> dict[str, float]:
    """Memory and energy of the first workload. A reading that is missing has no figure."""
    figures: dict[str, float] = {}
    readings = ctx.measured or {}
    if (memory := readings.get("memory")) is not None:
        for name in ("average", "peak"):
            figures[f"memory_{name}"] = memory[name]
            if memory.get("total"):
                figures[f"memory_{name}_share"] = memory[name] / memory["total"]
    if (joules := readings.get("energy_j")) is not None:
        first = ctx.workloads[0]
        figures[f"energy_per_token[{first}]"] = joules / first.items
    return figures
