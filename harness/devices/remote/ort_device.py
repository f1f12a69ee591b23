"""ONNX Runtime on another machine, by the agent: each model is open in a process of its own over there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from harness.api import Samples, TimingPlan
from harness.devices.remote.agent_client import Agent, Process
from harness.devices.remote.device import MOST, Handle, Look, Remote, opened
from harness.errors import EnvironmentFault, HarnessError, Unsupported

SHOWN = 5
REFUSED = ("NotImplemented", "InvalidGraph", "QNN graph")  # what ONNX Runtime says of graphs, not of machines


class OnnxRuntime(Remote):
    clocks = ("wall", "cpu")
    words = frozenset({"python", "threads"})
    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    @property
    def provider(self) -> dict[str, Any]:
        return {"name": "CPUExecutionProvider"}

    @cached_property
    def agent(self) -> Agent:
        return Agent(self.folder, self.target.python)

    def more_looks(self) -> Iterator[Look]:
        yield "runtime", self._runtime

    def _runtime(self) -> str:
        self.found |= self.agent.ask("probe", timeout_s=120, packages=self.packages)
        python, missing = self.target.python, self.found["missing"]
        if missing:
            wanted = " ".join(name.replace("_", "-") for name in missing)
            cause = f"{self.where}: {'; '.join(f'{name}: {why}' for name, why in missing.items())}"
            raise EnvironmentFault(cause, f"{python} -m pip install {wanted}, over there")
        versions = [f"{name} {version}" for name, version in self.found["packages"].items()]
        return ", ".join([f"Python {self.found['python']}", *versions])

    def identity(self) -> Mapping[str, Any]:
        known = {name: self.found.get(name, "") for name in ("model", "machine", "cores")}
        return {**known, "threads": self.target.threads, "onnxruntime": self.found["packages"].get("onnxruntime", "")}

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        if opened(handle).process is None:
            handle.process = self._open(handle.model)
        try:
            found = handle.process.ask(
                "time",
                timeout_s=self.target.timeout_s,
                warmup=plan.warmup,
                iterations=plan.iterations,
                seconds=plan.seconds,
                most=max(MOST, plan.iterations),
            )
        except HarnessError:  # the next visit opens it anew
            handle.process.close()
            handle.process = None
            raise
        return Samples(
            wall_ns=found["wall_ns"],
            cpu_ns=found["cpu_ns"],
            before=found["before"],
            after=found["after"],
            memory=found["memory"],
            energy_note="no meter is read on another machine's CPU",
            told=handle.told,
        )

    def _open(self, model: str) -> Process:
        process = self.agent.start()
        try:
            asked = {"model": model, "provider": self.provider, "threads": self.target.threads}
            lowered(process.ask("open", timeout_s=self.target.timeout_s, **asked), self.name)
        except BaseException as error:
            process.close()
            if isinstance(error, HarnessError) and any(word in error.cause for word in REFUSED):
                raise Unsupported(f"{self.name} cannot open the graph: {error.cause}") from error
            raise
        return process


def lowered(found: Mapping[str, Any], device: str) -> None:
    """A graph of which a part ran elsewhere was not measured on this device."""
    if nodes := found["fallback"]:
        told = ", ".join(nodes[:SHOWN]) + (", …" if len(nodes) > SHOWN else "")
        raise Unsupported(f"{device}: {len(nodes)} of its nodes would run elsewhere: {told}")
