"""Commands and output of TensorRT's trtexec, which builds an engine from an ONNX graph and times it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from harness.api import TimingPlan
from harness.devices.remote.programs.parsing import NUMBER, BadOutput, error_line, nanoseconds, ns
from harness.system.reading import json_value

__all__ = ["BINARY", "build_command", "parse_output", "samples", "timing_command", "version"]

BINARY = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it
FAULTS = (r"\[E\]", r"&&&& FAILED", r"[Ee]rror:")
RUNNING = re.compile(r"&&&& RUNNING TensorRT\.trtexec (?:\[TensorRT v(\d{1,18})\])?")
ROW = re.compile(r"\[I\] ([A-Z][\w -]*(?:Latency|Time)|Latency|Throughput|Enqueue Time): (.+)")
FIGURE = re.compile(rf"([a-z]+(?:\(\d+(?:\.\d+)?%\))?) = ({NUMBER}) (ms|us|s)\b")
MEMORY = re.compile(r"(?:Total|Max) (Device Persistent|Scratch|Activation|Weights) Memory: (\d{1,18})\b")


def build_command(binary: str, model: str, engine: str, dtype: str, help_text: str) -> list[str]:
    """The command that builds an engine. `help_text` is the output of --help: options differ between versions."""
    candidates = [f"--{dtype}", "--stronglyTyped"] if dtype != "fp32" else ["--noTF32"]
    precision = [option for option in candidates if option in help_text][:1]
    no_inference = "--skipInference" if "--skipInference" in help_text else "--buildOnly"
    cache = []
    if "--timingCacheFile" in help_text:
        cache = [f"--timingCacheFile={engine.rpartition('/')[0]}/../timing.cache"]
    return [binary, f"--onnx={model}", f"--saveEngine={engine}", no_inference, *precision, *cache]


def timing_command(binary: str, engine: str, plan: TimingPlan, times: str, help_text: str) -> list[str]:
    """The command that times an engine and writes the raw times to the file `times`.

    trtexec takes the warm-up in milliseconds, the duration in seconds, and a minimum of passes.
    """
    return [
        binary,
        f"--loadEngine={engine}",
        f"--warmUp={max(200, round(plan.seconds * 1000)) if plan.warmup else 0}",
        f"--duration={math.ceil(plan.seconds)}",
        f"--iterations={plan.iterations}",
        "--avgRuns=1",
        "--useSpinWait",
        "--noDataTransfers",
        *(["--useCudaGraph"] if "--useCudaGraph" in help_text else []),
        f"--exportTimes={times}",
    ]


def samples(text: str) -> tuple[list[int], list[int]]:
    """Times in nanoseconds from the file of raw times: on the GPU, and from the start of each pass to its end."""
    try:
        rows = json_value(Path("trtexec's times"), text.encode(errors="backslashreplace"))
        compute = [nanoseconds(row["computeMs"] * 1e6) for row in rows]
        whole = [nanoseconds(row["latencyMs"] * 1e6) for row in rows]
    except (ValueError, KeyError, TypeError, BadOutput):
        raise BadOutput("trtexec's file of times cannot be read", "run it by hand") from None
    if not compute:
        raise BadOutput("trtexec timed no pass", "give it longer")
    return compute, whole


def version(text: str) -> str:
    """The version of TensorRT from the output: v8602 is 8.6.2, v100300 is 10.3.0."""
    running = RUNNING.search(text)
    if not running or not running[1]:
        return ""
    number = int(running[1])
    major_step = 10_000 if number >= 10_000 else 1000
    return f"{number // major_step}.{number % major_step // 100}.{number % 100}"


def parse_output(text: str, code: int) -> dict[str, Any]:
    """Version, times in nanoseconds and memory in bytes; raises BadOutput with the reason if trtexec failed."""
    if code or "&&&& FAILED" in text or ("&&&& RUNNING" in text and "&&&& PASSED" not in text):
        raise BadOutput(f"trtexec: {error_line(text, FAULTS, code)}", "run it by hand")
    result: dict[str, Any] = {"version": version(text)}
    for name, row in ROW.findall(text):
        figures = {figure: ns(value, unit) for figure, value, unit in FIGURE.findall(row)}
        if figures:
            result[name.strip()] = figures
    result["memory"] = {name.lower(): int(count) for name, count in MEMORY.findall(text)}
    return result
