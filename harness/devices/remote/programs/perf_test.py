"""ONNX Runtime's onnxruntime_perf_test: one warm-up run, then as many as asked for; raw times in a file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harness.api import TimingPlan
from harness.devices.remote.programs.parsing import NUMBER, BadOutput, fault, ns, number
from harness.errors import describe

FAULTS = (r"[Ff]ail", r"[Ee]rror", r"[Ee]xception", r"not supported")
FIGURE = re.compile(rf"^\s*([A-Z][\w .-]*?)\s*:\s*({NUMBER})\s*(ms|us|ns|s|bytes|%)?\s*$", re.MULTILINE)


def words(
    binary: str, model: str, results: str, plan: TimingPlan, threads: int, provider: Mapping[str, Any] | None = None
) -> list[str]:
    """`provider`: `name` of one that is built in (cpu, nnapi), or of a plug-in with its `library`; and `options`."""
    found = [binary, "-I", "-s", "-Z", "-D", "-x", str(threads), "-S", "0"]
    found += ["-m", "times", "-r", str(plan.iterations)] if not plan.seconds else ["-t", str(round(plan.seconds))]
    known = provider or {"name": "cpu"}
    options = " ".join(f"{name}|{value}" for name, value in (known.get("options") or {}).items())
    if library := known.get("library"):
        found += ["--plugin_ep_libs", f"{known['name']}|{library}", "--plugin_eps", known["name"]]
        found += ["--plugin_ep_options", options] if options else []
    else:
        found += ["-e", known["name"], *(["-i", options] if options else [])]
    if known["name"] != "cpu":  # who asks for the CPU may not forbid it
        found += ["-C", "session.disable_cpu_ep_fallback|1"]
    return [*found, model, results]


def parse_output(text: str, code: int) -> dict[str, Any]:
    """Its figures: times in nanoseconds, counts and bytes as they are."""
    found: dict[str, Any] = {}
    for name, value, unit in FIGURE.findall(text):
        found[name.removesuffix(" total")] = ns(value, unit) if unit in ("s", "ms", "us", "ns") else number(value)
    if code or "Total inference requests" not in found:
        raise BadOutput(f"onnxruntime_perf_test: {fault(text, FAULTS, code)}", "run it by hand and look")
    return found


def samples(text: str) -> list[int]:
    """Of the result file: a line per pass, with the model, seconds, the peak of memory, CPU and the run's number."""
    found = []
    try:
        for row in csv.reader(io.StringIO(text)):
            with suppress(IndexError, BadOutput):  # a heading, where a version writes one
                found.append(ns(row[1], "s"))
    except csv.Error as error:
        raise BadOutput(f"onnxruntime_perf_test wrote times that are no table: {describe(error, 200)}") from None
    if not found:
        raise BadOutput("onnxruntime_perf_test wrote no times", "run it by hand and look")
    return found
