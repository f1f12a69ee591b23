"""The GPU of an Orin: trtexec builds an engine over there and times it, and tegrastats watches meanwhile."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan
from harness.devices.remote.device import Handle, Look, Remote, opened
from harness.devices.remote.programs import trtexec
from harness.devices.remote.programs.parsing import BadOutput
from harness.errors import EnvironmentFault, HarnessError, Unsupported
from harness_orin.jetson import ORIN, POWER, Jetson, reading, watts

CANNOT = re.compile(r"no importer|not supported|[Uu]nsupported|Failed to parse|parse.*failed", re.IGNORECASE)
LEAST = 10  # TensorRT's major version that reads what torch exports
# tegrastats writes to a file while a program runs, and is gone with it
WATCHED = (
    'log=$1; shift; tegrastats --interval 100 > "$log" 2>/dev/null & watcher=$!; "$@" & program=$!;'
    ' trap "kill $program $watcher" TERM; wait $program; ended=$?; kill $watcher 2>/dev/null; exit $ended'
)


class OrinGpu(Remote):
    name = "orin-gpu"
    example = "{transport: ssh, host: orin.local, user: me, power_mode: MAXN}"
    genuine = ORIN
    clocks = ("device", "wall")
    words = frozenset({"tools", "power_mode"})
    dtypes = ("fp16", "fp32", "bf16")

    @property
    def binary(self) -> str:
        return self.target.tools.get("trtexec", trtexec.BINARY)

    @cached_property
    def jetson(self) -> Jetson:
        return Jetson(self.folder, self.target)

    @cached_property
    def help(self) -> str:
        """Which words this version of trtexec knows."""
        done = self.folder.transport.run([self.binary, "--help"])
        if "--loadEngine" not in done.out:
            cause = f"{self.where} has no trtexec at {self.binary}: {done.message}"
            raise EnvironmentFault(cause, "name it in the device's file: tools: {trtexec: /path}")
        return done.out

    def more_looks(self) -> Iterator[Look]:
        yield "trtexec", self._trtexec
        yield "power mode", self._power_mode
        yield "sensors", self._sensors

    def _trtexec(self) -> str:
        self.found["tensorrt"] = version = trtexec.version(self.help)
        self.found["model"] = self.jetson.model()
        if version and int(version.partition(".")[0]) < LEAST:
            raise EnvironmentFault(
                f"{self.where}: TensorRT {version} reads no graph of opset 20", "update to JetPack 6.1"
            )
        return f"{self.binary}, TensorRT {self.found['tensorrt'] or 'of unknown version'}"

    def _power_mode(self) -> str:
        self.found |= self.jetson.power()
        return self.jetson.words(self.found)

    def _sensors(self) -> str:
        lines = self._watch(["sleep", "0.5"])[1]
        self.found["state"] = {**(lines[-1] if lines else {}), "clocks_hz": self.found["clocks_hz"]}
        return "tegrastats tells nothing" if not lines else "tegrastats: " + ", ".join(lines[-1])

    def identity(self) -> Mapping[str, Any]:
        return {name: self.found.get(name, "") for name in ("model", "tensorrt", *POWER)}

    def ready(self, model: Path, dtype: str) -> Handle:
        """Its engine, built over there; the graph is not needed any more."""
        self.jetson.power()  # it may have been changed since it was planned
        handle = super().ready(model, dtype)
        try:
            engine = f"{self.folder.path}/{handle.name}/model.plan"
            words = trtexec.build(self.binary, handle.model, engine, dtype, self.help)
            done = self.folder.transport.run(words, self.target.timeout_s)
            found = self._built(done.out + done.err, done.code)
            self.folder.remove(f"{handle.name}/{Path(handle.model).name}", f"{handle.name}/{model.name}.data")
            handle.model = engine
            handle.told = {"engine_bytes": self._size(engine)}
            if held := sum(found["memory"].values()):
                handle.memory = {"average": held, "peak": held}
        except BaseException:
            self.close(handle)
            raise
        return handle

    def _built(self, text: str, code: int) -> dict[str, Any]:
        try:
            return trtexec.parse_output(text, code)
        except BadOutput as error:
            kind = Unsupported if CANNOT.search(error.cause) else HarnessError
            raise kind(f"{self.name}: {error.cause}") from error

    def _size(self, path: str) -> int:
        words = self.folder.transport.run(["wc", "-c", path]).out.split()
        return int(words[0]) if words and words[0].isdigit() else 0

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        engine = opened(handle).model
        times = f"{self.folder.path}/{handle.name}/times.json"
        done, seen = self._watch(trtexec.time(self.binary, engine, plan, times, self.help))
        trtexec.parse_output(done.out + done.err, done.code)
        with tempfile.TemporaryDirectory(prefix="harness-times-") as here:
            self.folder.transport.pull(times, Path(here) / "times.json")
            compute, whole = trtexec.samples((Path(here) / "times.json").read_text(encoding="utf-8"))
        power = watts(seen)
        return Samples(
            wall_ns=whole,
            device_ns=compute,
            before=seen[0] if seen else {},
            after={**seen[-1], "ram_peak_mb": max(found.get("ram_mb", 0) for found in seen)} if seen else {},
            memory=handle.memory,
            energy_j=None if power is None else power * sum(compute) / 1e9,
            energy_note="the module's power while its GPU was busy, by tegrastats"
            if power is not None
            else "tegrastats saw the GPU at work too briefly, or tells no power",
            told=handle.told,
        )

    def _watch(self, words: list[str]) -> tuple[Any, list[dict[str, Any]]]:
        """A program, and what tegrastats said while it ran."""
        log = f"{self.folder.path}/tegrastats.log"
        done = self.folder.transport.run(["sh", "-c", WATCHED, "sh", log, *words], self.target.timeout_s)
        lines = self.folder.transport.run(["cat", log]).out.splitlines()
        return done, [found for found in map(reading, lines) if found]
