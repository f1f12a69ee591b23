"""What Qualcomm's NPU (HTP) makes of a graph. The compiler is the execution provider of `onnxruntime-qnn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.devices.remote.agent_client import Agent
from harness.devices.remote.ort_device import lowered
from harness.errors import HarnessError, Unsupported, UsageError

PROVIDER = "QNNExecutionProvider"
PACKAGE = "onnxruntime_qnn"
S23, X_PLUS = "43", "60"  # SM8550 and SC8380XP, as QNN counts them
ARCHS = {S23: "73", "57": "75", X_PLUS: "73", "69": "79"}  # chips, and which version of the HTP is in them


def provider(soc: str, library: str = PACKAGE, **options: str) -> dict[str, Any]:
    return {
        "name": PROVIDER,
        "library": library,
        "options": {"backend_type": "htp", "soc_model": soc, "htp_arch": arch(soc), **options},
    }


def arch(soc: str) -> str:
    if soc not in ARCHS:
        known = ", ".join(sorted(ARCHS))
        raise UsageError(f"soc {soc}: which HTP is in this chip is not known here", f"known: {known}")
    return ARCHS[soc]


def compile(agent: Agent, model: str, target: str, soc: str, device: str, timeout_s: float) -> dict[str, Any]:
    """The model as a context binary at `target`: the files of it, and figures of a pruned model's fitness."""
    try:
        found = agent.ask("compile", timeout_s=timeout_s, model=model, compiled=target, provider=provider(soc))
    except HarnessError as error:
        raise refused(error, device) from error
    lowered(found, device)
    return found


def refused(error: HarnessError, device: str) -> HarnessError:
    """QNN's own refusals are rows of a table; what else goes wrong is not."""
    if "QNN graph" in error.cause or "QNN_" in error.cause:
        return Unsupported(f"{device}: QNN does not compile it: {error.cause.splitlines()[0]}")
    return error


def details(found: Mapping[str, Any]) -> dict[str, int]:
    return {"qnn_partitions": found["parts"], "qnn_binary_bytes": found["bytes"]}
