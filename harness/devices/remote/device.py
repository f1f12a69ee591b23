"""The base class of devices on remote machines: it checks the way to the machine and copies models to it.

A subclass says which further steps are checked (`more_steps`), what is done with an exported model
(`prepare_exported`), and how the model is timed (`measure`).
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo, Step, TimingPlan, Workload
from harness.devices.remote.device_file import Target, load_target, path_of
from harness.devices.remote.folder import Folder
from harness.errors import EnvironmentFault, HarnessError, Unsupported, UsageError
from harness.models.saved.contents import file_sha256

__all__ = ["HOT", "Handle", "Remote", "StepCheck", "fill_time", "mean_times", "require_open"]

PROTOCOL = 2  # raise when a change of the commands or of the agent changes what a figure means
HOT = 95.0  # degrees Celsius at which phones and boards reduce their clocks
WARM = 60.0  # a measurement that starts above this says little about a device at rest
MAX_PASSES = 10_000  # of one visit, to fill a time
SPECIAL_FIELDS = frozenset(
    {"python", "threads", "tools", "power_mode", "accelerator", "soc"}
)  # of a device file; a subclass lists those that it uses
DTYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
StepCheck = tuple[str, Callable[[], str]]  # name of a step, and a function that returns its result or raises


@dataclass
class Handle:
    """A model on the remote machine."""

    name: str  # of its folder
    model: str = ""  # path of its file; empty once the handle is closed
    details: dict[str, Any] = field(default_factory=dict)  # figures for the record, see `Samples.told`
    memory: dict[str, int] | None = None
    process: Any = None  # the remote process that holds it open
    passes: int = 0  # as many as filled the time of the last visit


class Remote:
    name = ""
    example = "{transport: ssh, host: board.local, user: me}"  # content of a device file, for messages
    genuine = ""  # a regular expression that the machine's own name of its model must match
    dtypes: tuple[str, ...] = ("fp32",)  # the first is suggested where another is refused
    clocks: tuple[str, ...] = ("wall",)  # that it measures
    file_fields: frozenset[str] = frozenset()  # the special fields of the device file that it uses
    place = "cpu"  # see harness.api.Device, as for the next two
    copies_weights = True
    most_open = 8  # each may be a process on the remote machine

    def __init__(self, runtime: str = "") -> None:
        self.runtime = runtime
        self.facts: dict[str, Any] = {}  # what the steps of the last walk found out about the machine

    @cached_property
    def target(self) -> Target:
        return load_target(self.name, self.example)

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.target.connect(), self.target.folder)

    @property
    def machine(self) -> str:
        """The name of the machine in messages."""
        return self.folder.transport.machine

    # --- checking the way to the machine ---

    def walk(self) -> Iterator[Step]:
        """Check step by step whether the device can be used, up to the first step that fails."""
        self.facts = {}
        for name, check in self.steps():
            try:
                yield Step(name, True, check())
            except HarnessError as error:
                yield Step(name, False, error.line)
                return
            except Exception as error:  # a machine may answer anything
                yield Step(name, False, f"{type(error).__name__}: {error}")
                return

    def steps(self) -> Iterator[StepCheck]:
        yield "file", self._file
        yield "reach", self._reach
        yield "folder", self._space
        yield from self.more_steps()
        yield "machine", self._machine
        yield "temperature", self._temperature

    def more_steps(self) -> Iterator[StepCheck]:
        """Steps of a subclass. They fill `facts`: the model, the state, what makes two measurements comparable."""
        return iter(())

    def _file(self) -> str:
        target, path = self.target, path_of(self.name)
        if unused := sorted((SPECIAL_FIELDS & target.model_fields_set) - self.file_fields):
            raise UsageError(f"{path}: {self.name} has no field {', '.join(unused)}", f"such as: {self.example}")
        if target.clock and target.clock not in self.clocks:
            raise UsageError(f"{path}: {self.name} has no {target.clock} clock", f"known: {', '.join(self.clocks)}")
        return f"{path}: {target.transport}"

    def _reach(self) -> str:
        result = self.folder.transport.run(self.folder.shell.temporary())
        if result.code:
            posix = self.target.system == "posix"
            remedy = "log in by hand and check" if posix else "set python in the device's file to its Python"
            raise EnvironmentFault(f"{self.machine} runs no command: {result.message}", remedy)
        return f"{self.machine} answers"

    def _space(self) -> str:
        free = self.folder.free()
        return f"{self.folder.root} may be written to" + (f", {free / 1e6:,.0f} MB free" if free is not None else "")

    def _machine(self) -> str:
        return "; ".join([self.facts.get("model") or "of unknown make", *self.notes()])

    def _temperature(self) -> str:
        degrees = self.facts.get("state", {}).get("temperatures_c", {})
        if not degrees:
            return "not reported"
        name, highest = max(degrees.items(), key=lambda item: item[1])
        if highest >= HOT:
            raise EnvironmentFault(f"{name} is at {highest:.0f} °C", "let it cool, or give it a fan")
        return f"warmest is {name}, {highest:.0f} °C" + ("; let it cool before timing" if highest >= WARM else "")

    def probe(self) -> DeviceInfo:
        *_, last = self.walk()
        if not last.ok:
            return DeviceInfo(usable=False, reason=last.detail)
        return DeviceInfo(
            usable=True,
            fingerprint={"kind": self.name, "protocol": PROTOCOL, **self._provenance_entry(), **self.identity()},
            state=self.facts.get("state", {}),
            clock=self.target.clock,
            notes=tuple(self.notes()),
            provenance=self.provenance(),
            workloads=self.target.workloads,
        )

    def identity(self) -> Mapping[str, Any]:
        """The part of the fingerprint that is specific to this kind of device."""
        return {"model": self.facts.get("model", "")}

    def provenance(self) -> str:
        """`emulator` or `simulated` where the machine is not the device that it stands for, else an empty text."""
        if self.facts.get("emulated"):
            return "emulator"
        return "" if self.is_genuine() else "simulated"

    def _provenance_entry(self) -> Mapping[str, Any]:
        """The provenance as a part of the fingerprint, so that an emulator never shares a table with the device."""
        provenance = self.provenance()
        return {"provenance": provenance} if provenance else {}

    def is_genuine(self) -> bool:
        """Whether the machine is the device that its name promises."""
        return re.search(self.genuine, self.facts.get("model", "")) is not None

    def notes(self) -> list[str]:
        notes = []
        slow = [name for name in self.facts.get("governors", ()) if name not in ("performance", "schedutil")]
        if slow:
            notes.append(f"the governor {', '.join(slow)} changes clocks as it likes")
        if self.facts.get("emulated"):
            notes.append("an emulator: its figures enter no table")
        if self.provenance() == "simulated":
            notes.append(f"stands in for {self.name}: its figures enter no table")
        return notes

    # --- a model on the machine ---

    def prepare(self, model: Any, workload: Workload) -> Handle:
        from harness.models.export.onnx_graph import export

        dtype = self.check_dtype(model)
        with tempfile.TemporaryDirectory(prefix="harness-remote-") as folder:
            exported = export(model, workload, Path(folder))
            return self.prepare_exported(exported.path, dtype)

    def check_dtype(self, model: Any) -> str:
        """The dtype of the model; raises Unsupported if this device does not run it."""
        dtype = DTYPES.get(str(next(model.parameters()).dtype), "")
        if dtype not in self.dtypes:
            raise Unsupported(f"{self.name} runs no {dtype or 'such'} models", f"give --dtype {self.dtypes[0]}")
        return dtype

    def prepare_exported(self, model: Path, dtype: str) -> Handle:
        """Prepare an exported model, whose folder holds nothing else, for timing."""
        return self.push_model(model.parent, model.name)

    def push_model(self, folder: Path, name: str) -> Handle:
        """Copy all files of a folder to the machine and verify their hashes. `name` is the model's file."""
        handle = Handle(f"m{secrets.token_hex(4)}")
        paths = sorted(folder.iterdir())
        try:
            remote = {path.name: self.folder.push(path, f"{handle.name}/{path.name}") for path in paths}
            for path, sha256 in zip(paths, self.folder.hashes(list(remote.values())), strict=True):
                if sha256 != file_sha256(path):
                    raise EnvironmentFault(f"{self.machine}: {path.name} arrived changed", "check its disk")
        except BaseException:
            self.close(handle)
            raise
        handle.model = remote[name]
        return handle

    def close(self, handle: Handle) -> None:
        if handle.process is not None:
            handle.process.close()
            handle.process = None
        if handle.name:
            self.folder.remove(handle.name)
        handle.name = handle.model = ""


def require_open(handle: Handle) -> Handle:
    """The handle itself; raises if it is closed."""
    if not handle.model:
        raise HarnessError("this handle is closed", "prepare the model again")
    return handle


def fill_time(plan: TimingPlan, handle: Handle, run: Callable[[int], list[int]]) -> list[int]:
    """Times of passes by a program that takes a number of passes and no duration.

    It runs again with more passes until they fill the plan's time.
    """
    passes = max(plan.iterations, handle.passes)
    while True:
        times = run(passes)
        missing = plan.seconds * 1e9 - sum(times)
        if missing <= 0 or passes >= MAX_PASSES:
            return times
        passes = min(MAX_PASSES, 1 + int(1.1 * plan.seconds * 1e9 / max(min(times), 1)))
        handle.passes = passes


def mean_times(plan: TimingPlan, run: Callable[[int], int]) -> list[int]:
    """Times by a program that reports only the mean of its passes.

    Each sample is the mean of one run, of as many passes as fill the sample's share of the plan's time.
    """
    passes = max(1, int(plan.seconds * 1e9 / max(run(1), 1) / plan.iterations))
    return [run(passes) for _ in range(plan.iterations)]
