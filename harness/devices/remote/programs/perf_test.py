"""Command and output of ONNX Runtime's onnxruntime_perf_test.

It does one warm-up pass and then as many as requested, and writes the raw times to a file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harness.api import TimingPlan
from harness.devices.remote.programs.parsing import NUMBER, BadOutput, error_line, ns, number
from harness.errors import describe

__all__ = ["parse_output", "samples", "timing_command"]

FAULTS = (r"[Ff]ail", r"[Ee]rror", r"[Ee]xception", r"not supported")
FIGURE = re.compile(rf"^\s*([A-Z][\w .-]*?)\s*:\s*({NUMBER})\s*(ms|us|ns|s|bytes|%)?\s*$", re.MULTILINE)


def timing_command(
    binary: str, model: str, results: str, plan: TimingPlan, threads: int, provider: Mapping[str, Any] | None = None
) -> list[str]:
    """The command for timed passes of a model; `results` is the file for the raw times.

    `provider` has the `name` of an execution provider and its `options`. One that is not built in is a plug-in with a
    `library`.
    """
    words = [binary, "-I", "-s", "-Z", "-D", "-x", str(threads), "-S", "0"]
    words += ["-m", "times", "-r", str(plan.iterations)] if not plan.seconds else ["-t", str(round(plan.seconds))]
    provider = provider or {"name": "cpu"}
    options = " ".join(f"{name}|{value}" for name, value in (provider.get("options") or {}).items())
    if library := provider.get("library"):
        words += ["--plugin_ep_libs", f"{provider['name']}|{library}", "--plugin_eps", provider["name"]]
        words += ["--plugin_ep_options", options] if options else []
    else:
        words += ["-e", provider["name"], *(["-i", options] if options else [])]
    if provider["name"] != "cpu":  # the fallback cannot be disabled for the CPU itself
        words += ["-C", "session.disable_cpu_ep_fallback|1"]
    return [*words, model, results]


def parse_output(text: str, code: int) -> dict[str, Any]:
    """The printed figures by name: times in nanoseconds, counts and bytes as they are."""
    figures: dict[str, Any] = {}
    for name, value, unit in FIGURE.findall(text):
        figures[name.removesuffix(" total")] = ns(value, unit) if unit in ("s", "ms", "us", "ns") else number(value)
    if code or "Total inference requests" not in figures:
        raise BadOutput(f"onnxruntime_perf_test: {error_line(text, FAULTS, code)}", "run it by hand")
    return figures


def samples(text: str) -> list[int]:
    """Raw times in nanoseconds, from the result file.

    A line of that file is a pass: model, seconds, peak memory, CPU, number of the run.
    """
    times = []
    try:
        for row in csv.reader(io.StringIO(text)):
            with suppress(IndexError, BadOutput):  # some versions write a line of headings
                times.append(ns(row[1], "s"))
    except csv.Error as error:
        raise BadOutput(f"onnxruntime_perf_test wrote times that are not a table: {describe(error, 200)}") from None
    if not times:
        raise BadOutput("onnxruntime_perf_test wrote no times", "run it by hand")
    return times
