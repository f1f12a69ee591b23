"""Command of Qualcomm's qnn-net-run, and the output of qnn-profile-viewer, which reads its log."""

from __future__ import annotations

import re
from typing import Any

from harness.devices.remote.programs.parsing import NUMBER, BadOutput, error_line, ns, number

__all__ = ["LOG", "check_finished", "parse_output", "timing_command"]

LOG = "qnn-profiling-data_0.log"
DONE = "Finished Executing Graphs"
FAULTS = (r"\[\s*ERROR\s*\]", r"[Ee]rror", r"[Ff]ailed", r"QNN_\w*ERR\w*")
BLOCK = re.compile(r"(Init|Compose|Finalize|De-?[Ii]nit|Execute) Stats(?: \((\w+)\))?")
EVENT = re.compile(rf"^\s*(.+?)\s*:\s*({NUMBER})\s*(us|ms|ns|s|cycles?|Cycles)\b")


def timing_command(
    folder: str, context: str, inputs: str, out: str, passes: int, profile: str = "burst", level: str = "basic"
) -> list[str]:
    """The command for timed passes. `folder` holds the program and its libraries, `out` is the output folder."""
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


def check_finished(text: str, code: int) -> None:
    """Raise BadOutput with the reason unless the output says that the program finished."""
    if code or DONE not in text:
        raise BadOutput(f"qnn-net-run: {error_line(text, FAULTS, code)}", "run it by hand")


def parse_output(text: str) -> dict[str, dict[str, Any]]:
    """The times of an execution from the viewer's output: by statistic (average, min, max) and event.

    Times are in nanoseconds, cycles are numbers of cycles. The event NetRun includes the RPC, which includes the
    accelerator's time. There are no single passes and no percentiles.
    """
    statistics: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None  # events of the execution block that is being read
    for line in text.splitlines():
        if block := BLOCK.search(line):
            kind = (block[2] or "average").lower()
            current = statistics.setdefault(kind, {}) if block[1] == "Execute" else None
        elif current is not None and (event := EVENT.match(line)):
            name, value, unit = event.groups()
            current[name] = ns(value, unit) if unit in ("us", "ms", "ns", "s") else {"cycles": number(value)}
    if not any("NetRun" in events for events in statistics.values()):
        raise BadOutput("qnn-profile-viewer reports no execution", "give qnn-net-run --profiling_level basic")
    return statistics
