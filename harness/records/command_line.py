"""The command line that reproduces a record."""

from __future__ import annotations

import shlex

from harness.records.schema import Record


def command_of(record: Record) -> str:
    """The command that runs this record's cell, with all settings written out."""
    spec = record.spec
    arguments = ["harness", "run", "--pruner", spec.pruner, "--model", spec.model, "--preset", spec.preset]
    if spec.pruner != "dense":
        arguments += [f"--{spec.budget.kind}", f"{spec.budget.value!r}{spec.budget.unit}"]
    arguments += ["--device", spec.device, "--runtime", spec.runtime, "--dtype", spec.dtype]
    for workload in spec.workloads:
        arguments += ["--workload", workload]
    for name, value in spec.parameters.items():
        arguments += ["--set", f"{name}={value}"]
    if spec.calibration:
        arguments += ["--calibration", spec.calibration]
    arguments += ["--recovery", spec.recovery, "--eval", ",".join(spec.evaluators), "--seed", str(spec.seed)]
    if spec.limit:
        arguments += ["--limit", str(spec.limit)]
    if spec.sustain:
        arguments += ["--sustain", f"{spec.sustain:g}"]
    if record.co2:
        arguments += ["--grid", record.co2.grid]
    return shlex.join(arguments)
