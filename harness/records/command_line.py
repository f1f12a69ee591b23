"""The command behind a record."""

from __future__ import annotations

import shlex

from harness.records.schema import Record


def reproduce(record: Record) -> str:
    """The command that asks for this cell, nothing left to defaults."""
    spec = record.spec
    words = ["harness", "run", "--pruner", spec.pruner, "--model", spec.model, "--preset", spec.preset]
    if spec.pruner != "dense":
        flag = f"{spec.budget.value!r}{spec.budget.unit}"
        words += [f"--{spec.budget.kind}", flag]
    words += ["--device", spec.device, "--runtime", spec.runtime, "--dtype", spec.dtype]
    for workload in spec.workloads:
        words += ["--workload", workload]
    for name, value in spec.parameters.items():
        words += ["--set", f"{name}={value}"]
    if spec.calibration:
        words += ["--calibration", spec.calibration]
    words += ["--recovery", spec.recovery, "--eval", ",".join(spec.evaluators), "--seed", str(spec.seed)]
    if spec.limit:
        words += ["--limit", str(spec.limit)]
    if spec.sustain:
        words += ["--sustain", f"{spec.sustain:g}"]
    if record.co2:
        words += ["--grid", record.co2.grid]
    return shlex.join(words)
