"""The base class of remote devices that run ONNX Runtime by the agent. Each open model has its own remote process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from harness.api import Samples, TimingPlan
from harness.devices.remote.agent_client import Agent, AgentProcess
from harness.devices.remote.device import MAX_PASSES, Handle, Remote, StepCheck, require_open
from harness.errors import EnvironmentFault, HarnessError, Unsupported

__all__ = ["OnnxRuntime", "check_no_fallback"]

MAX_NAMED_NODES = 5  # in a message
GRAPH_ERRORS = ("NotImplemented", "InvalidGraph", "QNN graph")  # in ONNX Runtime's message: the graph is at fault


class OnnxRuntime(Remote):
    clocks = ("wall", "cpu")
    file_fields = frozenset({"python", "threads"})
    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    @property
    def provider(self) -> dict[str, Any]:
        return {"name": "CPUExecutionProvider"}

    @cached_property
    def agent(self) -> Agent:
        return Agent(self.folder, self.target.python)

    def more_steps(self) -> Iterator[StepCheck]:
        yield "runtime", self._runtime

    def _runtime(self) -> str:
        self.facts |= self.agent.request("probe", timeout_s=120, packages=self.packages)
        missing = self.facts["missing"]
        if missing:
            packages = " ".join(name.replace("_", "-") for name in missing)
            cause = f"{self.machine}: {'; '.join(f'{name}: {why}' for name, why in missing.items())}"
            raise EnvironmentFault(cause, f"{self.target.python} -m pip install {packages}, on that machine")
        versions = [f"{name} {version}" for name, version in self.facts["packages"].items()]
        return ", ".join([f"Python {self.facts['python']}", *versions])

    def identity(self) -> Mapping[str, Any]:
        machine = {name: self.facts.get(name, "") for name in ("model", "machine", "cores")}
        version = self.facts["packages"].get("onnxruntime", "")
        return {**machine, "threads": self.target.threads, "onnxruntime": version}

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        if require_open(handle).process is None:
            handle.process = self._open(handle.model)
        try:
            reply = handle.process.request(
                "time",
                timeout_s=self.target.timeout_s,
                warmup=plan.warmup,
                iterations=plan.iterations,
                seconds=plan.seconds,
                most=max(MAX_PASSES, plan.iterations),
            )
        except HarnessError:  # the next visit opens the model again
            handle.process.close()
            handle.process = None
            raise
        return Samples(
            wall_ns=reply["wall_ns"],
            cpu_ns=reply["cpu_ns"],
            before=reply["before"],
            after=reply["after"],
            memory=reply["memory"],
            energy_note="the energy of a remote CPU is not measured",
            told=handle.details,
        )

    def _open(self, model: str) -> AgentProcess:
        """Start a process of the agent and have it open the model."""
        process = self.agent.start()
        try:
            arguments = {"model": model, "provider": self.provider, "threads": self.target.threads}
            reply = process.request("open", timeout_s=self.target.timeout_s, **arguments)
            check_no_fallback(reply, self.name)
        except BaseException as error:
            process.close()
            if isinstance(error, HarnessError) and any(text in error.cause for text in GRAPH_ERRORS):
                raise Unsupported(f"{self.name} cannot open the graph: {error.cause}") from error
            raise
        return process


def check_no_fallback(reply: Mapping[str, Any], device: str) -> None:
    """Raise Unsupported if a part of the graph would run by another execution provider than the device's."""
    if nodes := reply["fallback"]:
        names = ", ".join(nodes[:MAX_NAMED_NODES]) + (", …" if len(nodes) > MAX_NAMED_NODES else "")
        raise Unsupported(f"{device}: {len(nodes)} of its nodes would run elsewhere: {names}")
