"""A phone: the graph is converted here, pushed over ADB, and timed by benchmark_model with the CPU forbidden."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan, Workload
from harness.devices.remote import android
from harness.devices.remote.device import Handle, Look, means, opened
from harness.devices.remote.phone import Phone
from harness.devices.remote.programs import benchmark_model
from harness.errors import Unsupported
from harness.models.export import isolated_env, tflite_model


class Nnapi(Phone):
    name = "nnapi"
    example = "{transport: adb, serial: R5CW, tools: {benchmark_model: /data/local/tmp/benchmark_model}}"
    words = frozenset({"tools", "threads", "accelerator"})
    program = "benchmark_model"

    def more_looks(self) -> Iterator[Look]:
        yield "converter", self._converter
        yield from super().more_looks()

    def _converter(self) -> str:
        made = isolated_env.is_ready(tflite_model.NAME, tflite_model.PACKAGES)
        return f"{tflite_model.PACKAGES[0]}, " + ("there" if made else "made at its first use: uv, a network and 1 GB")

    def identity(self) -> Mapping[str, Any]:
        known = {name: self.found.get(name, "") for name in ("model", "build", "tool")}
        return {**known, "accelerator": self.target.accelerator, "converter": tflite_model.PACKAGES[0]}

    def is_genuine(self) -> bool:
        return super().is_genuine() and bool(self.found.get("sdk"))  # any Android, but an Android

    def notes(self) -> list[str]:
        sdk = self.found.get("sdk", "")
        old = sdk.isdigit() and int(sdk) < android.NNAPI_DEPRECATED
        return [*super().notes(), *([] if old else ["NNAPI is deprecated since Android 15: drivers may be gone"])]

    def prepare(self, model: Any, workload: Workload) -> Handle:
        self.fits(model)
        with tempfile.TemporaryDirectory(prefix="harness-nnapi-") as made:
            path = tflite_model.export(model, workload, Path(made))
            return self.send(path.parent, path.name)

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        """Each sample is the mean of a run of its own: this program tells no single passes."""
        opened(handle)
        before = android.state(self.folder.transport)
        peaks = []

        def once(passes: int) -> int:
            found = self._run(handle, passes)
            peaks.append(found.get("peak_bytes"))
            return int(found["avg"])

        wall = means(plan, once)
        after = android.state(self.folder.transport)
        peaks = [peak for peak in peaks[1:] if peak]  # the first only shows how long a pass is
        return Samples(
            wall_ns=wall,
            before={**before, "fallback": []},
            after={**after, "fallback": []},
            memory={"average": max(peaks), "peak": max(peaks)} if peaks else None,
            told=handle.told,
        )

    def _run(self, handle: Handle, passes: int) -> dict[str, Any]:
        words = benchmark_model.words(
            self.binary, handle.model, passes, self.target.threads, nnapi=True, accelerator=self.target.accelerator
        )
        done = self.folder.transport.run(words, self.target.timeout_s)
        text = done.out + done.err
        elsewhere = benchmark_model.fallback(text)
        if elsewhere and (done.code == 0 or not elsewhere[0].startswith(benchmark_model.UNTOLD)):
            raise Unsupported(f"{self.name}: not all of it runs on NNAPI: {'; '.join(elsewhere)}")
        return benchmark_model.parse_output(text, done.code)
