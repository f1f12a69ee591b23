"""TensorRT's trtexec: builds an engine of an ONNX graph, and times it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from harness.api import TimingPlan
from harness.devices.remote.programs.parsing import NUMBER, BadOutput, fault, nanoseconds, ns
from harness.system.reading import json_value

BINARY = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it
FAULTS = (r"\[E\]", r"&&&& FAILED", r"[Ee]rror:")
RUNNING = re.compile(r"&&&& RUNNING TensorRT\.trtexec (?:\[TensorRT v(\d{1,18})\])?")
ROW = re.compile(r"\[I\] ([A-Z][\w -]*(?:Latency|Time)|Latency|Throughput|Enqueue Time): (.+)")
FIGURE = re.compile(rf"([a-z]+(?:\(\d+(?:\.\d+)?%\))?) = ({NUMBER}) (ms|us|s)\b")
MEMORY = re.compile(r"(?:Total|Max) (Device Persistent|Scratch|Activation|Weights) Memory: (\d{1,18})\b")


def build(binary: str, model: str, engine: str, dtype: str, known: str) -> list[str]:
    """`known` is what its --help says: words come and go between versions."""
    wanted = [f"--{dtype}", "--stronglyTyped"] if dtype != "fp32" else ["--noTF32"]
    precision = [word for word in wanted if word in known][:1]
    only = "--skipInference" if "--skipInference" in known else "--buildOnly"
    cache = [f"--timingCacheFile={engine.rpartition('/')[0]}/../timing.cache"] if "--timingCacheFile" in known else []
    return [binary, f"--onnx={model}", f"--saveEngine={engine}", only, *precision, *cache]


def time(binary: str, engine: str, plan: TimingPlan, times: str, known: str) -> list[str]:
    """Raw times go to a file. Warm-up and duration are trtexec's own: milliseconds and seconds, passes at least."""
    return [
        binary,
        f"--loadEngine={engine}",
        f"--warmUp={max(200, round(plan.seconds * 1000)) if plan.warmup else 0}",
        f"--duration={math.ceil(plan.seconds)}",
        f"--iterations={plan.iterations}",
        "--avgRuns=1",
        "--useSpinWait",
        "--noDataTransfers",
        *(["--useCudaGraph"] if "--useCudaGraph" in known else []),
        f"--exportTimes={times}",
    ]


def samples(text: str) -> tuple[list[int], list[int]]:
    """From the file of raw times: nanoseconds on the GPU, and from a pass's start to its end."""
    try:
        rows = json_value(Path("trtexec's times"), text.encode(errors="backslashreplace"))
        compute = [nanoseconds(row["computeMs"] * 1e6) for row in rows]
        whole = [nanoseconds(row["latencyMs"] * 1e6) for row in rows]
    except (ValueError, KeyError, TypeError, BadOutput):
        raise BadOutput("trtexec's file of times is not one", "run it by hand and look") from None
    if not compute:
        raise BadOutput("trtexec timed no pass", "give it longer")
    return compute, whole


def version(text: str) -> str:
    """v8602 is 8.6.2, v100300 is 10.3.0."""
    running = RUNNING.search(text)
    if not running or not running[1]:
        return ""
    number = int(running[1])
    per = 10_000 if number >= 10_000 else 1000
    return f"{number // per}.{number % per // 100}.{number % 100}"


def parse_output(text: str, code: int) -> dict[str, Any]:
    """Its version and its own figures, in nanoseconds; BadOutput with its reason if it did not pass."""
    if code or "&&&& FAILED" in text or ("&&&& RUNNING" in text and "&&&& PASSED" not in text):
        raise BadOutput(f"trtexec: {fault(text, FAULTS, code)}", "run it by hand and look")
    found: dict[str, Any] = {"version": version(text)}
    for name, words in ROW.findall(text):
        figures = {figure: ns(value, unit) for figure, value, unit in FIGURE.findall(words)}
        if figures:
            found[name.strip()] = figures
    found["memory"] = {name.lower(): int(count) for name, count in MEMORY.findall(text)}
    return found
