"""What a model takes: parameters, bytes, FLOPs, memory, energy. Counted by the harness, never by the method."""

from __future__ import annotations

from typing import Any

from harness.api import Context, Score, Scores
from harness.models import counting
from harness.models.architectures import modeling
from harness.models.saved.contents import folder_bytes


class Footprint:
    def evaluate(self, model: Any, ctx: Context) -> Scores:
        stored, nonzero = counting.count(model)
        figures: dict[str, float] = {
            "params": stored,
            "params_nonzero": nonzero,
            "bytes": folder_bytes(ctx.folder) if ctx.folder else stored * next(model.parameters()).element_size(),
        }
        hollow = modeling.empty(modeling.words_of(model)).to("meta")
        for workload in ctx.workloads:
            counted = counting.counted_flops(hollow, workload)
            figures[f"flops[{workload}]"] = counted
            figures[f"flops_per_token[{workload}]"] = counted / workload.items
        figures |= measured(ctx)
        return {name: Score({"model": float(value)}, higher_is_better=False) for name, value in figures.items()}


def measured(ctx: Context) -> dict[str, float]:
    """What was read while the first workload ran; what was not read has no figure."""
    found: dict[str, float] = {}
    words = ctx.measured or {}
    if (memory := words.get("memory")) is not None:
        for name in ("average", "peak"):
            found[f"memory_{name}"] = memory[name]
            if memory.get("total"):
                found[f"memory_{name}_share"] = memory[name] / memory["total"]
    if (joules := words.get("energy_j")) is not None:
        first = ctx.workloads[0]
        found[f"energy_per_token[{first}]"] = joules / first.items
    return found
