"""The GPU of an Orin: trtexec builds an engine on the board and times it, while tegrastats logs power and heat."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan
from harness.devices.remote.device import Handle, Remote, StepCheck, require_open
from harness.devices.remote.programs import trtexec
from harness.devices.remote.programs.parsing import BadOutput
from harness.devices.remote.transport import CommandResult
from harness.errors import EnvironmentFault, HarnessError, Unsupported
from harness_orin.jetson import ORIN, POWER, Jetson, mean_power_w, parse_line

UNSUPPORTED = re.compile(r"no importer|not supported|[Uu]nsupported|Failed to parse|parse.*failed", re.IGNORECASE)
MIN_VERSION = 10  # the first major version of TensorRT that reads what torch exports
# Runs a program with tegrastats beside it, which writes to a file and ends with the program.
WITH_TEGRASTATS = (
    'log=$1; shift; tegrastats --interval 100 > "$log" 2>/dev/null & watcher=$!; "$@" & program=$!;'
    ' trap "kill $program $watcher" TERM; wait $program; ended=$?; kill $watcher 2>/dev/null; exit $ended'
)


class OrinGpu(Remote):
    name = "orin-gpu"
    example = "{transport: ssh, host: orin.local, user: me, power_mode: MAXN}"
    genuine = ORIN
    clocks = ("device", "wall")
    file_fields = frozenset({"tools", "power_mode"})
    dtypes = ("fp16", "fp32", "bf16")

    @property
    def binary(self) -> str:
        return self.target.tools.get("trtexec", trtexec.BINARY)

    @cached_property
    def jetson(self) -> Jetson:
        return Jetson(self.folder, self.target)

    @cached_property
    def help(self) -> str:
        """The output of trtexec --help, which shows the options of this version."""
        result = self.folder.transport.run([self.binary, "--help"])
        if "--loadEngine" not in result.out:
            cause = f"{self.machine} has no trtexec at {self.binary}: {result.message}"
            raise EnvironmentFault(cause, "name it in the device's file: tools: {trtexec: /path}")
        return result.out

    def more_steps(self) -> Iterator[StepCheck]:
        yield "trtexec", self._trtexec
        yield "power mode", self._power_mode
        yield "sensors", self._sensors

    def _trtexec(self) -> str:
        version = trtexec.version(self.help)
        self.facts["tensorrt"] = version
        self.facts["model"] = self.jetson.model()
        if version and int(version.partition(".")[0]) < MIN_VERSION:
            raise EnvironmentFault(
                f"{self.machine}: TensorRT {version} reads no graph of opset 20", "update to JetPack 6.1"
            )
        return f"{self.binary}, TensorRT {version or 'of unknown version'}"

    def _power_mode(self) -> str:
        self.facts |= self.jetson.power()
        return self.jetson.describe(self.facts)

    def _sensors(self) -> str:
        _, readings = self._run_with_tegrastats(["sleep", "0.5"])
        self.facts["state"] = {**(readings[-1] if readings else {}), "clocks_hz": self.facts["clocks_hz"]}
        return "tegrastats: " + ", ".join(readings[-1]) if readings else "tegrastats reports nothing"

    def identity(self) -> Mapping[str, Any]:
        return {name: self.facts.get(name, "") for name in ("model", "tensorrt", *POWER)}

    def prepare_exported(self, model: Path, dtype: str) -> Handle:
        """Build the engine on the board and delete the graph, which is not needed any more."""
        self.jetson.power()  # again, because it may have been changed since the run was planned
        handle = super().prepare_exported(model, dtype)
        try:
            engine = f"{self.folder.path}/{handle.name}/model.plan"
            command = trtexec.build_command(self.binary, handle.model, engine, dtype, self.help)
            result = self.folder.transport.run(command, self.target.timeout_s)
            build = self._parse_build(result.out + result.err, result.code)
            self.folder.remove(f"{handle.name}/{Path(handle.model).name}", f"{handle.name}/{model.name}.data")
            handle.model = engine
            handle.details = {"engine_bytes": self._size(engine)}
            memory = sum(build["memory"].values())
            if memory:
                handle.memory = {"average": memory, "peak": memory}
        except BaseException:
            self.close(handle)
            raise
        return handle

    def _parse_build(self, text: str, code: int) -> dict[str, Any]:
        """The output of a build; raises Unsupported where TensorRT cannot build the graph."""
        try:
            return trtexec.parse_output(text, code)
        except BadOutput as error:
            error_class = Unsupported if UNSUPPORTED.search(error.cause) else HarnessError
            raise error_class(f"{self.name}: {error.cause}") from error

    def _size(self, path: str) -> int:
        """Bytes of a remote file, or 0 if they cannot be read."""
        columns = self.folder.transport.run(["wc", "-c", path]).out.split()
        return int(columns[0]) if columns and columns[0].isdigit() else 0

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        engine = require_open(handle).model
        times = f"{self.folder.path}/{handle.name}/times.json"
        command = trtexec.timing_command(self.binary, engine, plan, times, self.help)
        result, readings = self._run_with_tegrastats(command)
        trtexec.parse_output(result.out + result.err, result.code)
        with tempfile.TemporaryDirectory(prefix="harness-times-") as folder:
            local = Path(folder) / "times.json"
            self.folder.transport.pull(times, local)
            compute, whole = trtexec.samples(local.read_text(encoding="utf-8"))
        before, after = {}, {}
        if readings:
            before = readings[0]
            after = {**readings[-1], "ram_peak_mb": max(line.get("ram_mb", 0) for line in readings)}
        power = mean_power_w(readings)
        if power is None:
            energy, note = None, "tegrastats saw the GPU at work too briefly, or reports no power"
        else:
            energy, note = power * sum(compute) / 1e9, "the module's power while its GPU was busy, by tegrastats"
        return Samples(
            wall_ns=whole,
            device_ns=compute,
            before=before,
            after=after,
            memory=handle.memory,
            energy_j=energy,
            energy_note=note,
            told=handle.details,
        )

    def _run_with_tegrastats(self, command: list[str]) -> tuple[CommandResult, list[dict[str, Any]]]:
        """Run a program; return its result and the readings of tegrastats while it ran."""
        log = f"{self.folder.path}/tegrastats.log"
        shell = ["sh", "-c", WITH_TEGRASTATS, "sh", log, *command]
        result = self.folder.transport.run(shell, self.target.timeout_s)
        lines = self.folder.transport.run(["cat", log]).out.splitlines()
        return result, [readings for readings in map(parse_line, lines) if readings]
