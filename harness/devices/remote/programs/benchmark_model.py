"""TensorFlow Lite's (and LiteRT's) benchmark_model. It tells statistics only: a sample is the mean of its passes."""

from __future__ import annotations

import re
from typing import Any

from harness.devices.remote.programs.parsing import NUMBER, BadOutput, fault, megabytes, ns

FAULTS = (r"ERROR", r"[Ff]ailed", r"[Ee]rror", r"[Aa]borted")
COUNT = re.compile(r"\bcount=(\d{1,18})\b(.*)")
FIGURE = re.compile(rf"\b(first|curr|min|max|avg|std|p5|median|p95)=({NUMBER})")
PEAK = re.compile(rf"Overall peak memory footprint \(MB\)[^:]*: ({NUMBER})")
DELTA = re.compile(rf"Memory footprint delta[^:]*: init=({NUMBER}) overall=({NUMBER})")
# The last line of these decides: that nodes were replaced is said even where the delegate then refuses to run them.
VERDICT = re.compile(r"pplied (\w+) delegate, and the model graph will be (completely|partially) executed")
IGNORED = re.compile(r"Though (\w+) delegate is explicitly applied, the model graph will not be executed")
REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\)")
UNTOLD = "the graph, for all that is known: no word of"
UNDONE = "Restored original execution plan"
REFERENCE = "nnapi-reference"  # an accelerator that is the CPU


def words(binary: str, model: str, passes: int, threads: int, nnapi: bool, accelerator: str = "") -> list[str]:
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
    """Of the timed passes, which come last: how many, and figures in nanoseconds; memory in bytes."""
    counts = COUNT.findall(text)
    if code or not counts:
        raise BadOutput(f"benchmark_model: {fault(text, FAULTS, code)}", "run it by hand and look")
    passes, rest = counts[-1]
    found: dict[str, Any] = {name: ns(value, "us") for name, value in FIGURE.findall(rest)}
    if "avg" not in found:
        raise BadOutput(f"benchmark_model told no average of its {passes} passes", "run it by hand and look")
    found["count"] = int(passes)
    if peak := PEAK.search(text):
        found["peak_bytes"] = megabytes(peak[1])
    elif (delta := DELTA.search(text)) and not delta[2].startswith("-"):
        found["peak_bytes"] = megabytes(delta[2])
    return found


def fallback(text: str, delegate: str = "NNAPI") -> list[str]:
    """What ran elsewhere than on the delegate; empty only where it says that it took the whole graph."""
    ignored = [name for name in IGNORED.findall(text) if name.lower() == delegate.lower()]
    if ignored or UNDONE in text:
        return [f"the graph: {delegate} took it and gave it back"]
    others = [found for found in REPLACED.findall(text) if delegate.lower() not in found[2].lower()]
    if others:
        return [f"{others[-1][0]} nodes, which {others[-1][2]} took"]
    if f"NNAPI accelerator name: [{REFERENCE}]" in text:
        return [f"the graph: {REFERENCE} is the CPU"]
    said = [share for name, share in VERDICT.findall(text) if name.lower() == delegate.lower()]
    if set(said) == {"completely"}:
        return []
    taken = [found for found in REPLACED.findall(text) if delegate.lower() in found[2].lower()]
    count = f"all but {taken[-1][0]} of {taken[-1][1] or 'unknown'} nodes" if taken else "an unknown part of the graph"
    return [count if said else f"{UNTOLD} {delegate}"]
