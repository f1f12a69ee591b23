"""What a model takes: parameters, bytes, FLOPs, memory. Counted by the harness, never by the method."""

from __future__ import annotations

from typing import Any

from harness import accounting
from harness.api import Context, Score, Scores
from harness.checkpoints import folder_bytes, modeling


class Footprint:
    def evaluate(self, model: Any, ctx: Context) -> Scores:
        stored, nonzero = accounting.count(model)
        figures: dict[str, float] = {
            "params": stored,
            "params_nonzero": nonzero,
            "bytes": folder_bytes(ctx.folder) if ctx.folder else stored * next(model.parameters()).element_size(),
        }
        hollow = modeling.empty(modeling.words_of(model)).to("meta")
        for workload in ctx.workloads:
            figures[f"flops[{workload}]"] = accounting.counted_flops(hollow, workload)
        if memory := (ctx.measured or {}).get("memory"):
            figures["memory_peak"] = memory["peak"]
        return {name: Score({"model": float(value)}, higher_is_better=False) for name, value in figures.items()}
