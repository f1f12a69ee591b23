"""Command and output of benchmark_model, the timing program of TensorFlow Lite and LiteRT.

It reports statistics of its passes and no single times.
"""

from __future__ import annotations

import re
from typing import Any

from harness.devices.remote.programs.parsing import NUMBER, BadOutput, error_line, megabytes, ns

__all__ = ["NO_REPORT", "fallback", "parse_output", "timing_command"]

FAULTS = (r"ERROR", r"[Ff]ailed", r"[Ee]rror", r"[Aa]borted")
COUNT = re.compile(r"\bcount=(\d{1,18})\b(.*)")
FIGURE = re.compile(rf"\b(first|curr|min|max|avg|std|p5|median|p95)=({NUMBER})")
PEAK = re.compile(rf"Overall peak memory footprint \(MB\)[^:]*: ({NUMBER})")
DELTA = re.compile(rf"Memory footprint delta[^:]*: init=({NUMBER}) overall=({NUMBER})")
# The last of these lines counts: benchmark_model reports replaced nodes even if the delegate then refuses to run them.
VERDICT = re.compile(r"pplied (\w+) delegate, and the model graph will be (completely|partially) executed")
IGNORED = re.compile(r"Though (\w+) delegate is explicitly applied, the model graph will not be executed")
REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\)")
NO_REPORT = "the graph, as far as is known: the log does not mention"
RESTORED = "Restored original execution plan"
REFERENCE = "nnapi-reference"  # an accelerator of NNAPI that is the CPU


def timing_command(binary: str, model: str, passes: int, threads: int, nnapi: bool, accelerator: str = "") -> list[str]:
    return [
        binary,
        f"--graph={model}",
        f"--num_threads={threads}",
        "--warmup_runs=1",
        "--warmup_min_secs=0",
        f"--num_runs={passes}",
        "--min_secs=0",
        "--report_peak_memory_footprint=true",
        "--use_xnnpack=" + ("false" if nnapi else "true"),
        *(["--use_nnapi=true", "--disable_nnapi_cpu=true"] if nnapi else []),
        *([f"--nnapi_accelerator_name={accelerator}"] if accelerator else []),
    ]


def parse_output(text: str, code: int) -> dict[str, Any]:
    """Number of timed passes, their statistics in nanoseconds, and peak memory in bytes.

    The last statistics in the output are those of the timed passes; earlier ones are of the warm-up.
    """
    counts = COUNT.findall(text)
    if code or not counts:
        raise BadOutput(f"benchmark_model: {error_line(text, FAULTS, code)}", "run it by hand")
    passes, rest = counts[-1]
    figures: dict[str, Any] = {name: ns(value, "us") for name, value in FIGURE.findall(rest)}
    if "avg" not in figures:
        raise BadOutput(f"benchmark_model reported no average of its {passes} passes", "run it by hand")
    figures["count"] = int(passes)
    if peak := PEAK.search(text):
        figures["peak_bytes"] = megabytes(peak[1])
    elif (delta := DELTA.search(text)) and not delta[2].startswith("-"):
        figures["peak_bytes"] = megabytes(delta[2])
    return figures


def fallback(text: str, delegate: str = "NNAPI") -> list[str]:
    """What did not run on the delegate. The list is empty only if the log says that it took the whole graph."""
    ignored = [name for name in IGNORED.findall(text) if name.lower() == delegate.lower()]
    if ignored or RESTORED in text:
        return [f"the graph: {delegate} took it and gave it back"]
    replaced = REPLACED.findall(text)  # number of nodes, number of all nodes, name of the delegate
    by_other_delegates = [match for match in replaced if delegate.lower() not in match[2].lower()]
    if by_other_delegates:
        count, _, name = by_other_delegates[-1]
        return [f"{count} nodes, which {name} took"]
    if f"NNAPI accelerator name: [{REFERENCE}]" in text:
        return [f"the graph: {REFERENCE} is the CPU"]
    verdicts = [share for name, share in VERDICT.findall(text) if name.lower() == delegate.lower()]
    if set(verdicts) == {"completely"}:
        return []
    if not verdicts:
        return [f"{NO_REPORT} {delegate}"]
    by_delegate = [match for match in replaced if delegate.lower() in match[2].lower()]
    if not by_delegate:
        return ["an unknown part of the graph"]
    count, total, _ = by_delegate[-1]
    return [f"all but {count} of {total or 'unknown'} nodes"]
