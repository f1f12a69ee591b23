"""Qualcomm's qnn-net-run, and qnn-profile-viewer, which reads the log that it leaves."""

from __future__ import annotations

import re
from typing import Any

from harness.devices.remote.programs.parsing import NUMBER, BadOutput, fault, ns, number

LOG = "qnn-profiling-data_0.log"
DONE = "Finished Executing Graphs"
FAULTS = (r"\[\s*ERROR\s*\]", r"[Ee]rror", r"[Ff]ailed", r"QNN_\w*ERR\w*")
BLOCK = re.compile(r"(Init|Compose|Finalize|De-?[Ii]nit|Execute) Stats(?: \((\w+)\))?")
EVENT = re.compile(rf"^\s*(.+?)\s*:\s*({NUMBER})\s*(us|ms|ns|s|cycles?|Cycles)\b")


def words(
    folder: str, context: str, inputs: str, out: str, passes: int, profile: str = "burst", level: str = "basic"
) -> list[str]:
    """`folder` holds the program and its libraries; what it writes goes to `out`."""
    return [
        f"{folder}/qnn-net-run",
        "--backend",
        f"{folder}/libQnnHtp.so",
        "--retrieve_context",
        context,
        "--input_list",
        inputs,
        "--output_dir",
        out,
        "--use_native_input_files",
        "--perf_profile",
        profile,
        "--profiling_level",
        level,
        "--num_inferences",
        str(passes),
        "--keep_num_outputs",
        "0",
    ]


def done(text: str, code: int) -> None:
    """BadOutput with its reason, unless it says that it finished."""
    if code or DONE not in text:
        raise BadOutput(f"qnn-net-run: {fault(text, FAULTS, code)}", "run it by hand and look")


def parse_output(text: str) -> dict[str, dict[str, Any]]:
    """Of the viewer: per kind (average, min, max) the events of an execution in nanoseconds; cycles as they are.

    NetRun holds the RPC, which holds the accelerator. There are no single passes and no percentiles.
    """
    found: dict[str, dict[str, Any]] = {}
    into: dict[str, Any] | None = None
    for line in text.splitlines():
        if block := BLOCK.search(line):
            kind = (block[2] or "average").lower()
            into = found.setdefault(kind, {}) if block[1] == "Execute" else None
        elif into is not None and (event := EVENT.match(line)):
            name, value, unit = event.groups()
            into[name] = ns(value, unit) if unit in ("us", "ms", "ns", "s") else {"cycles": number(value)}
    if not any("NetRun" in events for events in found.values()):
        raise BadOutput("qnn-profile-viewer tells no execution", "give qnn-net-run --profiling_level basic")
    return found
