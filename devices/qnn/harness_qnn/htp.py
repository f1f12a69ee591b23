"""Compiles graphs for Qualcomm's NPU (HTP) with the execution provider of the package `onnxruntime-qnn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.devices.remote.agent_client import Agent
from harness.devices.remote.ort_device import check_no_fallback
from harness.errors import HarnessError, Unsupported, UsageError

PROVIDER = "QNNExecutionProvider"
PACKAGE = "onnxruntime_qnn"
S23, X_PLUS = "43", "60"  # QNN's numbers of the chips SM8550 and SC8380XP
ARCHS = {S23: "73", "57": "75", X_PLUS: "73", "69": "79"}  # number of the chip -> version of its HTP


def provider(soc: str, library: str = PACKAGE, **options: str) -> dict[str, Any]:
    """The execution provider for this chip, as the agent and onnxruntime_perf_test take it."""
    return {
        "name": PROVIDER,
        "library": library,
        "options": {"backend_type": "htp", "soc_model": soc, "htp_arch": arch(soc), **options},
    }


def arch(soc: str) -> str:
    if soc not in ARCHS:
        known = ", ".join(sorted(ARCHS))
        raise UsageError(f"soc {soc} is an unknown chip: the version of its HTP is not known", f"known: {known}")
    return ARCHS[soc]


def compile(agent: Agent, model: str, target: str, soc: str, device: str, timeout_s: float) -> dict[str, Any]:
    """Compile a model to a context binary at `target`; the reply has the number of partitions and the binary's size."""
    try:
        reply = agent.request("compile", timeout_s=timeout_s, model=model, compiled=target, provider=provider(soc))
    except HarnessError as error:
        raise as_unsupported(error, device) from error
    check_no_fallback(reply, device)
    return reply


def as_unsupported(error: HarnessError, device: str) -> HarnessError:
    """Unsupported where QNN refused the graph; any other error as it is."""
    if "QNN graph" in error.cause or "QNN_" in error.cause:
        return Unsupported(f"{device}: QNN does not compile it: {error.cause.splitlines()[0]}")
    return error


def details(reply: Mapping[str, Any]) -> dict[str, int]:
    """The figures of a compilation that go into the record."""
    return {"qnn_partitions": reply["parts"], "qnn_binary_bytes": reply["bytes"]}
