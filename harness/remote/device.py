"""A device that is another machine: a model is exported here, sent there, and timed there by the agent.

Each visit is a process of its own over there, so that memory lies elsewhere each time and nothing stays when one dies.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo, Samples, TimingPlan, Workload
from harness.checkpoints import file_sha256
from harness.errors import EnvironmentFault, HarnessError, Unsupported
from harness.remote import target as targets
from harness.remote.folder import Folder
from harness.remote.runners.agent import Agent
from harness.remote.target import Target

MOST = 10_000  # passes of one visit


@dataclass
class Handle:
    """A model over there: a folder of its own, and its file in it."""

    name: str
    model: str
    told: dict[str, Any] = field(default_factory=dict)


class Remote:
    """ONNX Runtime on another machine. What is special of a device says its subclass."""

    name = ""
    example = "{transport: ssh, host: board.local, user: me}"
    provider: Mapping[str, Any] = {"name": "CPUExecutionProvider"}
    entries: Mapping[str, str] = {}
    place = "cpu"
    copies_weights = True

    def __init__(self, runtime: str = "onnxruntime") -> None:
        self.runtime = runtime

    @cached_property
    def target(self) -> Target:
        return targets.read(self.name, self.example)

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.target.connect(), self.target.folder)

    @cached_property
    def agent(self) -> Agent:
        return Agent(self.folder, self.target.python)

    def probe(self) -> DeviceInfo:
        try:
            return self._probe()
        except HarnessError as error:
            return DeviceInfo(usable=False, reason=error.line)
        except Exception as error:  # whatever a machine answers
            return DeviceInfo(usable=False, reason=f"{type(error).__name__}: {error}")

    def _probe(self) -> DeviceInfo:
        found = self.agent.ask("probe", timeout_s=60)
        missing = [found[f"{name}_missing"] for name in ("onnxruntime", "numpy") if f"{name}_missing" in found]
        if missing:
            where, python = self.folder.transport.where, self.target.python
            raise EnvironmentFault(f"{where}: {missing[0]}", f"{python} -m pip install onnxruntime numpy, over there")
        return DeviceInfo(
            usable=True,
            fingerprint={**self.identity(found), "threads": self.target.threads},
            state=found["state"],
            clock=self.target.clock,
            notes=tuple(self.notes(found)),
        )

    def identity(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What makes two measurements comparable."""
        known = ("model", "machine", "cores", "onnxruntime")
        return {"kind": self.name, "runtime": self.runtime, **{name: found.get(name, "") for name in known}}

    def notes(self, found: Mapping[str, Any]) -> list[str]:
        slow = [name for name in found.get("governors", ()) if name not in ("performance", "schedutil")]
        return [f"the governor {', '.join(slow)} changes clocks as it likes"] if slow else []

    def prepare(self, model: Any, workload: Workload) -> Handle:
        from harness.export.onnx import export

        with tempfile.TemporaryDirectory(prefix="harness-remote-") as made:
            exported = export(model, workload, Path(made))
            return self.send(Path(made), exported.path.name)

    def send(self, made: Path, name: str) -> Handle:
        """All files of a folder, under a name of their own; what arrived is what was sent, or it is an error."""
        handle = Handle(f"m{secrets.token_hex(4)}", "")
        try:
            there = {path.name: self.folder.push(path, f"{handle.name}/{path.name}") for path in sorted(made.iterdir())}
            hashes = self.agent.ask("hash", timeout_s=600, files=list(there.values()))["sha256"]
            for path in made.iterdir():
                if hashes[there[path.name]] != file_sha256(path):
                    where = self.folder.transport.where
                    raise EnvironmentFault(f"{where}: {path.name} arrived changed", "check its disk")
        except BaseException:
            self.close(handle)
            raise
        handle.model = there[name]
        return handle

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        if not handle.model:
            raise HarnessError("this handle is closed", "prepare the model again")
        found = self.agent.ask(
            "time",
            timeout_s=self.target.timeout_s,
            model=handle.model,
            provider=dict(self.provider),
            entries=dict(self.entries),
            threads=self.target.threads,
            warmup=plan.warmup,
            iterations=plan.iterations,
            seconds=plan.seconds,
            most=max(MOST, plan.iterations),
        )
        if found["fallback"]:
            raise Unsupported(f"{self.name}: nodes ran on {', '.join(found['fallback'])}", "see what the graph holds")
        handle.told = {name: found[name] for name in ("runtime", "providers", "load_s")}
        memory = found["memory"]
        return Samples(
            wall_ns=found["wall_ns"],
            cpu_ns=found["cpu_ns"],
            before=found["before"],
            after=found["after"],
            memory=memory,
            energy_note="no meter is read on another machine's CPU",
        )

    def close(self, handle: Handle) -> None:
        if handle.name:
            self.folder.remove(handle.name)
        handle.name = handle.model = ""
