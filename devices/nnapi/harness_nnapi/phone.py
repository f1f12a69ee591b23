"""A phone's accelerator by NNAPI: graphs are converted here, pushed over ADB, and timed without the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan, Workload
from harness.devices.remote import android
from harness.devices.remote.device import Handle, StepCheck, mean_times, require_open
from harness.devices.remote.phone import Phone
from harness.devices.remote.programs import benchmark_model
from harness.errors import Unsupported
from harness.models.export import isolated_env, tflite_model


class Nnapi(Phone):
    name = "nnapi"
    example = "{transport: adb, serial: R5CW, tools: {benchmark_model: /data/local/tmp/benchmark_model}}"
    file_fields = frozenset({"tools", "threads", "accelerator"})
    program = "benchmark_model"

    def more_steps(self) -> Iterator[StepCheck]:
        yield "converter", self._converter
        yield from super().more_steps()

    def _converter(self) -> str:
        installed = isolated_env.is_ready(tflite_model.NAME, tflite_model.PACKAGES)
        status = "installed" if installed else "to be installed at first use, which takes uv, a network and 1 GB"
        return f"{tflite_model.PACKAGES[0]}, {status}"

    def identity(self) -> Mapping[str, Any]:
        facts = {name: self.facts.get(name, "") for name in ("model", "build", "tool")}
        return {**facts, "accelerator": self.target.accelerator, "converter": tflite_model.PACKAGES[0]}

    def is_genuine(self) -> bool:
        """Any device with Android is genuine."""
        return super().is_genuine() and bool(self.facts.get("sdk"))

    def notes(self) -> list[str]:
        sdk = self.facts.get("sdk", "")
        supported = sdk.isdigit() and int(sdk) < android.NNAPI_DEPRECATED
        deprecation = [] if supported else ["NNAPI is deprecated since Android 15: drivers may be missing"]
        return [*super().notes(), *deprecation]

    def prepare(self, model: Any, workload: Workload) -> Handle:
        self.check_dtype(model)
        with tempfile.TemporaryDirectory(prefix="harness-nnapi-") as folder:
            path = tflite_model.export(model, workload, Path(folder))
            return self.push_model(path.parent, path.name)

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        """Each sample is the mean of one run of the program, which reports no single passes."""
        require_open(handle)
        before = android.state(self.folder.transport)
        peaks = []

        def mean_time(passes: int) -> int:
            figures = self._run(handle, passes)
            peaks.append(figures.get("peak_bytes"))
            return int(figures["avg"])

        wall = mean_times(plan, mean_time)
        after = android.state(self.folder.transport)
        peaks = [peak for peak in peaks[1:] if peak]  # the first run only finds out how long a pass takes
        return Samples(
            wall_ns=wall,
            before={**before, "fallback": []},
            after={**after, "fallback": []},
            memory={"average": max(peaks), "peak": max(peaks)} if peaks else None,
            told=handle.details,
        )

    def _run(self, handle: Handle, passes: int) -> dict[str, Any]:
        command = benchmark_model.timing_command(
            self.binary, handle.model, passes, self.target.threads, nnapi=True, accelerator=self.target.accelerator
        )
        result = self.folder.transport.run(command, self.target.timeout_s)
        text = result.out + result.err
        fallback = benchmark_model.fallback(text)
        # A program that failed before it reported anything about NNAPI has another fault, which parse_output raises.
        if fallback and (result.code == 0 or not fallback[0].startswith(benchmark_model.NO_REPORT)):
            raise Unsupported(f"{self.name}: not all of it runs on NNAPI: {'; '.join(fallback)}")
        return benchmark_model.parse_output(text, result.code)
