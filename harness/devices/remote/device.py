"""A device that is another machine: reached, looked at, sent models, and left as it was found.

What is special of one says its subclass: what to look at on the way (`looks`), what becomes of an exported model
(`ready`), and how it is timed (`measure`).
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
from harness.devices.remote import device_file as targets
from harness.devices.remote.device_file import Target, path_of
from harness.devices.remote.folder import Folder
from harness.errors import EnvironmentFault, HarnessError, Unsupported, UsageError
from harness.models.saved.contents import file_sha256

PROTOCOL = 2  # raise when what is sent, asked or read over there changes what a figure means
HOT = 95.0  # degrees at which phones and boards hold their clocks down
WARM = 60.0  # a start from here says little of a device at rest
MOST = 10_000  # passes of one visit
SPECIAL = frozenset({"python", "threads", "tools", "power_mode", "accelerator", "soc"})
NAMES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
Look = tuple[str, Callable[[], str]]


@dataclass
class Handle:
    """A model over there: a folder of its own, its file in it, and what else is known of it."""

    name: str
    model: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] | None = None
    process: Any = None  # that holds it open over there
    passes: int = 0  # that fill the time of a visit, as the last one showed


class Remote:
    name = ""
    example = "{transport: ssh, host: board.local, user: me}"
    genuine = ""  # how its machine calls itself, as a regular expression
    dtypes: tuple[str, ...] = ("fp32",)
    clocks: tuple[str, ...] = ("wall",)
    words: frozenset[str] = frozenset()  # of the device's file, beside those that all have
    place = "cpu"
    copies_weights = True
    most_open = 8  # each may be a process over there

    def __init__(self, runtime: str = "") -> None:
        self.runtime = runtime
        self.found: dict[str, Any] = {}  # what the last walk saw

    @cached_property
    def target(self) -> Target:
        return targets.read(self.name, self.example)

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.target.connect(), self.target.folder)

    @property
    def where(self) -> str:
        return self.folder.transport.where

    # --- on the way to it ---

    def walk(self) -> Iterator[Step]:
        """To the first step that fails."""
        self.found = {}
        for name, look in self.looks():
            try:
                yield Step(name, True, look())
            except HarnessError as error:
                yield Step(name, False, error.line)
                return
            except Exception as error:  # whatever a machine answers
                yield Step(name, False, f"{type(error).__name__}: {error}")
                return

    def looks(self) -> Iterator[Look]:
        yield "file", self._file
        yield "reach", self._reach
        yield "folder", self._space
        yield from self.more_looks()
        yield "machine", self._machine
        yield "temperature", self._temperature

    def more_looks(self) -> Iterator[Look]:
        """They fill `found`: model, state, what else makes two measurements comparable."""
        return iter(())

    def _file(self) -> str:
        target, path = self.target, path_of(self.name)
        if idle := sorted((SPECIAL & target.model_fields_set) - self.words):
            raise UsageError(f"{path}: {self.name} knows no {', '.join(idle)}", f"such as: {self.example}")
        if target.clock and target.clock not in self.clocks:
            raise UsageError(f"{path}: {self.name} has no {target.clock} clock", f"known: {', '.join(self.clocks)}")
        return f"{path}: {target.transport}"

    def _reach(self) -> str:
        done = self.folder.transport.run(self.folder.shell.temporary())
        if done.code:
            remedy = "log in by hand and look" if self.target.system == "posix" else "name its Python: python"
            raise EnvironmentFault(f"{self.where} runs no command: {done.message}", remedy)
        return f"{self.where} answers"

    def _space(self) -> str:
        free = self.folder.free()
        return f"{self.folder.root} may be written to" + (f", {free / 1e6:,.0f} MB free" if free is not None else "")

    def _machine(self) -> str:
        words = [self.found.get("model") or "of unknown make", *self.notes()]
        return "; ".join(words)

    def _temperature(self) -> str:
        degrees = self.found.get("state", {}).get("temperatures_c", {})
        if not degrees:
            return "not told"
        name, most = max(degrees.items(), key=lambda item: item[1])
        if most >= HOT:
            raise EnvironmentFault(f"{name} is at {most:.0f} °C", "let it cool, or give it a fan")
        return f"warmest is {name}, {most:.0f} °C" + ("; let it cool before timing" if most >= WARM else "")

    def probe(self) -> DeviceInfo:
        *_, last = self.walk()
        if not last.ok:
            return DeviceInfo(usable=False, reason=last.detail)
        return DeviceInfo(
            usable=True,
            fingerprint={"kind": self.name, "protocol": PROTOCOL, **self.stand_in(), **self.identity()},
            state=self.found.get("state", {}),
            clock=self.target.clock,
            notes=tuple(self.notes()),
            provenance=self.provenance(),
            workloads=self.target.workloads,
        )

    def identity(self) -> Mapping[str, Any]:
        """What else makes two measurements comparable."""
        return {"model": self.found.get("model", "")}

    def provenance(self) -> str:
        """An emulator is not a device; nor is another machine in its place."""
        if self.found.get("emulated"):
            return "emulator"
        return "" if self.is_genuine() else "simulated"

    def stand_in(self) -> Mapping[str, Any]:
        """A part of what compares: an emulator and its device share no table, and no record can forget it."""
        return {"provenance": found} if (found := self.provenance()) else {}

    def is_genuine(self) -> bool:
        return re.search(self.genuine, self.found.get("model", "")) is not None

    def notes(self) -> list[str]:
        slow = [name for name in self.found.get("governors", ()) if name not in ("performance", "schedutil")]
        return [
            *([f"the governor {', '.join(slow)} changes clocks as it likes"] if slow else []),
            *(["an emulator: no table takes its figures"] if self.found.get("emulated") else []),
            *([f"stands in for {self.name}: no table takes its figures"] if self.provenance() == "simulated" else []),
        ]

    # --- a model on it ---

    def prepare(self, model: Any, workload: Workload) -> Handle:
        from harness.models.export.onnx_graph import export

        dtype = self.fits(model)
        with tempfile.TemporaryDirectory(prefix="harness-remote-") as made:
            exported = export(model, workload, Path(made))
            return self.ready(exported.path, dtype)

    def fits(self, model: Any) -> str:
        """Its dtype, if it is one that this device runs."""
        dtype = NAMES.get(str(next(model.parameters()).dtype), "")
        if dtype not in self.dtypes:
            raise Unsupported(f"{self.name} runs no {dtype or 'such'} models", f"give --dtype {self.dtypes[0]}")
        return dtype

    def ready(self, model: Path, dtype: str) -> Handle:
        """Of an exported model, in a folder of its own."""
        return self.send(model.parent, model.name)

    def send(self, made: Path, name: str) -> Handle:
        """All files of a folder, under a name of their own; what arrived is what was sent, or it is an error."""
        handle, paths = Handle(f"m{secrets.token_hex(4)}"), sorted(made.iterdir())
        try:
            there = {path.name: self.folder.push(path, f"{handle.name}/{path.name}") for path in paths}
            for path, sha256 in zip(paths, self.folder.hashes(list(there.values())), strict=True):
                if sha256 != file_sha256(path):
                    raise EnvironmentFault(f"{self.where}: {path.name} arrived changed", "check its disk")
        except BaseException:
            self.close(handle)
            raise
        handle.model = there[name]
        return handle

    def close(self, handle: Handle) -> None:
        if handle.process is not None:
            handle.process.close()
            handle.process = None
        if handle.name:
            self.folder.remove(handle.name)
        handle.name = handle.model = ""


def opened(handle: Handle) -> Handle:
    if not handle.model:
        raise HarnessError("this handle is closed", "prepare the model again")
    return handle


def enough(plan: TimingPlan, handle: Handle, run: Callable[[int], list[int]]) -> list[int]:
    """Passes by a program that takes their number only: as many as fill the plan's time, once one showed how long."""
    passes = max(plan.iterations, handle.passes)
    while True:
        found = run(passes)
        missing = plan.seconds * 1e9 - sum(found)
        if missing <= 0 or passes >= MOST:
            return found
        handle.passes = passes = min(MOST, 1 + int(1.1 * plan.seconds * 1e9 / max(min(found), 1)))


def means(plan: TimingPlan, run: Callable[[int], int]) -> list[int]:
    """By a program that tells its passes' mean only: a sample is a run, of as many as fill its share of the time."""
    passes = max(1, int(plan.seconds * 1e9 / max(run(1), 1) / plan.iterations))
    return [run(passes) for _ in range(plan.iterations)]
