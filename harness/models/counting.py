"""Counts parameters, FLOPs and bytes of a shape, without weights or torch, or of a model."""

from __future__ import annotations

from typing import Any

from harness.api import Shape, Workload
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import task, task_for

__all__ = ["count", "counted_flops", "flops", "ratios", "stored_bytes"]

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def ratios(anatomy: Anatomy, shape: Shape, masked: int = 0) -> tuple[float, float]:
    """The share removed of the prunable and of all parameters. Masked elements count as removed."""
    prunable, whole = anatomy.params(prunable=True), anatomy.params()
    removed = prunable - anatomy.params(shape, prunable=True) + masked
    return removed / prunable, (whole - anatomy.params(shape) + masked) / whole


def flops(anatomy: Anatomy, shape: Shape, workload: Workload) -> int:
    """Multiply-adds times two of one forward pass, as `torch.utils.flop_counter` counts them."""
    return task(anatomy.task).flops(anatomy, shape, workload)


def counted_flops(model: Any, workload: Workload) -> int:
    """The same by running the counter over a model, which may lie on the meta device."""
    return task_for(model).counted_flops(model, workload)


def count(model: Any) -> tuple[int, int]:
    """A model's parameters, and those that are not zero. Shared ones count once."""
    stored = nonzero = 0
    for parameter in model.parameters():
        stored += parameter.numel()
        nonzero += int(parameter.count_nonzero())
    return stored, nonzero


def stored_bytes(params: int, dtype: str) -> int:
    return params * BYTES[dtype]
