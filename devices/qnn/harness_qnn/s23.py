"""A Galaxy S23: compiled here for its chip, pushed over ADB, and run by one of two programs of others over there."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan
from harness.devices.remote import android
from harness.devices.remote.agent_client import Agent
from harness.devices.remote.device import Handle, Look, enough, means, opened
from harness.devices.remote.folder import Folder
from harness.devices.remote.local import Local
from harness.devices.remote.phone import Phone
from harness.devices.remote.programs import net_run, perf_test
from harness.errors import EnvironmentFault
from harness_qnn import htp, inputs

PROGRAMS = {"perf-test": "onnxruntime_perf_test", "net-run": "qnn-net-run"}
COMPILED = "model_ctx.onnx"
LIBRARY = "libonnxruntime_providers_qnn.so"


class S23(Phone):
    name = "qnn-s23"
    example = (
        "{transport: adb, serial: R5CW, tools: {onnxruntime_perf_test: /data/local/tmp/ort/onnxruntime_perf_test}}"
    )
    genuine = r"\bSM8550\b"
    dtypes = ("fp16",)
    words = frozenset({"tools", "soc"})

    @property
    def soc(self) -> str:
        return self.target.soc or htp.S23

    @property
    def program(self) -> str:
        return PROGRAMS[self.runtime]

    @cached_property
    def compiler(self) -> Agent:
        """A process of its own here: what a compiler does to it is not done to us."""
        return Agent(Folder(Local()), self.target.tools.get("compiler", sys.executable))

    def more_looks(self) -> Iterator[Look]:
        yield "compiler", self._compiler
        yield from super().more_looks()

    def _compiler(self) -> str:
        try:
            self.found["onnxruntime_qnn"] = version("onnxruntime-qnn")
        except PackageNotFoundError:
            raise EnvironmentFault("no compiler for its NPU is here", "pip install onnxruntime-qnn") from None
        return f"onnxruntime-qnn {self.found['onnxruntime_qnn']}, for chip {self.soc} (HTP v{htp.arch(self.soc)})"

    def _program(self) -> str:
        told = super()._program()
        if self.runtime == "net-run":
            android.usable(self.folder.transport, f"{self.beside}/qnn-profile-viewer", self.where)
        if missing := sorted(self.needed() - set(self.folder.transport.run(["ls", self.beside]).out.split())):
            cause = f"{self.where}: {', '.join(missing)} not in {self.beside}"
            raise EnvironmentFault(cause, f"push them, no older than onnxruntime-qnn {self.found['onnxruntime_qnn']}")
        libraries = self.folder.transport.run(["sh", "-c", 'cat "$1"/*.so | sha256sum', "sh", self.beside])
        self.found["libraries"] = libraries.out.split()[0][:16]
        return told

    def needed(self) -> set[str]:
        """What must lie beside the program."""
        stub = f"libQnnHtpV{htp.arch(self.soc)}"
        found = {"libQnnHtp.so", "libQnnSystem.so", f"{stub}Stub.so", f"{stub}Skel.so"}
        return found | ({LIBRARY} if self.runtime == "perf-test" else set())

    def identity(self) -> Mapping[str, Any]:
        known = {name: self.found.get(name, "") for name in ("model", "build", "onnxruntime_qnn", "tool", "libraries")}
        return {**known, "soc": self.soc}

    def ready(self, model: Path, dtype: str) -> Handle:
        with tempfile.TemporaryDirectory(prefix="harness-qnn-") as made:
            target = Path(made) / COMPILED
            where = (str(model), str(target), self.soc, self.name)
            found = htp.compile(self.compiler, *where, self.target.timeout_s)
            if self.runtime == "net-run":
                inputs.write(model, Path(made))
            handle = self.send(Path(made), COMPILED)
        handle.told = htp.details(found)
        return handle

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        opened(handle)
        before = android.state(self.folder.transport)
        timed = self._perf_test if self.runtime == "perf-test" else self._net_run
        wall = timed(handle, plan)
        after = android.state(self.folder.transport)
        return Samples(wall_ns=wall, before=before, after=after, memory=handle.memory, told=handle.told)

    def _perf_test(self, handle: Handle, plan: TimingPlan) -> list[int]:
        beside, results = self.beside, f"{handle.model}.csv"
        known = htp.provider(self.soc, f"{beside}/{LIBRARY}", htp_performance_mode="burst")

        def run(passes: int) -> list[int]:
            asked = TimingPlan(plan.warmup, passes)
            words = perf_test.words(self.binary, handle.model, results, asked, self.target.threads, known)
            done = self.folder.transport.run(android.beside(beside, words), self.target.timeout_s)
            found = perf_test.parse_output(done.out + done.err, done.code)
            if peak := found.get("Peak working set size"):
                handle.memory = {"average": int(peak), "peak": int(peak)}
            written = self.folder.transport.run(["cat", results]).out
            self.folder.remove(f"{handle.name}/{COMPILED}.csv")
            return perf_test.samples(written)

        return enough(plan, handle, run)

    def _net_run(self, handle: Handle, plan: TimingPlan) -> list[int]:
        """Each sample is the mean of a run of its own: this program tells no single passes."""
        folder, beside = handle.model.rpartition("/")[0], self.beside
        context = f"{folder}/{Path(COMPILED).stem}_qnn.bin"

        def once(passes: int) -> int:
            words = net_run.words(beside, context, f"{folder}/{inputs.LIST}", f"{folder}/out", passes)
            there = [
                "sh",
                "-c",
                'cd "$1" && shift && "$@"',
                "sh",
                folder,
                *android.beside(beside, words),
            ]  # the list names files beside it
            done = self.folder.transport.run(there, self.target.timeout_s)
            net_run.done(done.out + done.err, done.code)
            viewer = [f"{beside}/qnn-profile-viewer", "--input_log", f"{folder}/out/{net_run.LOG}"]
            found = net_run.parse_output(self.folder.transport.run(android.beside(beside, viewer)).out)
            self.folder.remove(f"{handle.name}/out")
            return int(found["average"]["NetRun"])

        return means(plan, once)
