"""A Galaxy S23: models are compiled here for its chip, pushed over ADB, and timed by one of two programs."""

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
from harness.devices.remote.device import Handle, StepCheck, fill_time, mean_times, require_open
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
    file_fields = frozenset({"tools", "soc"})

    @property
    def soc(self) -> str:
        return self.target.soc or htp.S23

    @property
    def program(self) -> str:
        return PROGRAMS[self.runtime]

    @cached_property
    def compiler(self) -> Agent:
        """The agent on this machine. It compiles in a process of its own, which a compiler's crash does not end."""
        return Agent(Folder(Local()), self.target.tools.get("compiler", sys.executable))

    def more_steps(self) -> Iterator[StepCheck]:
        yield "compiler", self._compiler
        yield from super().more_steps()

    def _compiler(self) -> str:
        try:
            self.facts["onnxruntime_qnn"] = version("onnxruntime-qnn")
        except PackageNotFoundError:
            raise EnvironmentFault(
                "the compiler for its NPU is not installed on this machine", "pip install onnxruntime-qnn"
            ) from None
        return f"onnxruntime-qnn {self.facts['onnxruntime_qnn']}, for chip {self.soc} (HTP v{htp.arch(self.soc)})"

    def _program(self) -> str:
        binary = super()._program()
        folder = self.program_folder
        if self.runtime == "net-run":
            android.check_program(self.folder.transport, f"{folder}/qnn-profile-viewer", self.machine)
        present = set(self.folder.transport.run(["ls", folder]).out.split())
        if missing := sorted(self.required_libraries() - present):
            cause = f"{self.machine}: {', '.join(missing)} not in {folder}"
            raise EnvironmentFault(cause, f"push them, no older than onnxruntime-qnn {self.facts['onnxruntime_qnn']}")
        libraries = self.folder.transport.run(["sh", "-c", 'cat "$1"/*.so | sha256sum', "sh", folder])
        self.facts["libraries"] = libraries.out.split()[0][:16]
        return binary

    def required_libraries(self) -> set[str]:
        """File names that must be in the program's folder."""
        prefix = f"libQnnHtpV{htp.arch(self.soc)}"
        names = {"libQnnHtp.so", "libQnnSystem.so", f"{prefix}Stub.so", f"{prefix}Skel.so"}
        return names | ({LIBRARY} if self.runtime == "perf-test" else set())

    def identity(self) -> Mapping[str, Any]:
        names = ("model", "build", "onnxruntime_qnn", "tool", "libraries")
        return {**{name: self.facts.get(name, "") for name in names}, "soc": self.soc}

    def prepare_exported(self, model: Path, dtype: str) -> Handle:
        """Compile the model on this machine and push the result."""
        with tempfile.TemporaryDirectory(prefix="harness-qnn-") as name:
            folder = Path(name)
            target = str(folder / COMPILED)
            reply = htp.compile(self.compiler, str(model), target, self.soc, self.name, self.target.timeout_s)
            if self.runtime == "net-run":
                inputs.write(model, folder)
            handle = self.push_model(folder, COMPILED)
        handle.details = htp.details(reply)
        return handle

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        require_open(handle)
        before = android.state(self.folder.transport)
        run = self._perf_test if self.runtime == "perf-test" else self._net_run
        wall = run(handle, plan)
        after = android.state(self.folder.transport)
        return Samples(wall_ns=wall, before=before, after=after, memory=handle.memory, told=handle.details)

    def _perf_test(self, handle: Handle, plan: TimingPlan) -> list[int]:
        """Times of all passes by onnxruntime_perf_test."""
        folder, results = self.program_folder, f"{handle.model}.csv"
        provider = htp.provider(self.soc, f"{folder}/{LIBRARY}", htp_performance_mode="burst")

        def run(passes: int) -> list[int]:
            threads = self.target.threads
            command = perf_test.timing_command(
                self.binary, handle.model, results, TimingPlan(plan.warmup, passes), threads, provider
            )
            result = self.folder.transport.run(android.with_libraries(folder, command), self.target.timeout_s)
            figures = perf_test.parse_output(result.out + result.err, result.code)
            if peak := figures.get("Peak working set size"):
                handle.memory = {"average": int(peak), "peak": int(peak)}
            text = self.folder.transport.run(["cat", results]).out
            self.folder.remove(f"{handle.name}/{COMPILED}.csv")
            return perf_test.samples(text)

        return fill_time(plan, handle, run)

    def _net_run(self, handle: Handle, plan: TimingPlan) -> list[int]:
        """Each sample is the mean of one run of qnn-net-run, which reports no single passes."""
        folder = handle.model.rpartition("/")[0]
        programs = self.program_folder
        context = f"{folder}/{Path(COMPILED).stem}_qnn.bin"

        def mean_time(passes: int) -> int:
            command = net_run.timing_command(programs, context, f"{folder}/{inputs.LIST}", f"{folder}/out", passes)
            # It runs in the model's folder, because the list of inputs has relative paths.
            in_folder = ["sh", "-c", 'cd "$1" && shift && "$@"', "sh", folder]
            result = self.folder.transport.run(
                [*in_folder, *android.with_libraries(programs, command)], self.target.timeout_s
            )
            net_run.check_finished(result.out + result.err, result.code)
            viewer = [f"{programs}/qnn-profile-viewer", "--input_log", f"{folder}/out/{net_run.LOG}"]
            output = self.folder.transport.run(android.with_libraries(programs, viewer)).out
            statistics = net_run.parse_output(output)
            self.folder.remove(f"{handle.name}/out")
            return int(statistics["average"]["NetRun"])

        return mean_times(plan, mean_time)
