"""The device `cuda`: an NVIDIA GPU with eager torch or CUDA graphs, timed by CUDA events and watched by NVML."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness import DeviceInfo, DeviceSpec, Samples, TimingPlan, Workload, hookimpl
from harness.errors import EnvironmentFault, HarnessError, UsageError

RUNTIMES = ("eager", "graph")
WARMUP_PASSES = 3  # before a capture or a measurement of memory
MAX_BATCH = 256  # passes that are launched in a row
MAX_PASSES = 10_000  # of one visit, to fill a time


@hookimpl
def harness_register_devices():
    return [
        DeviceSpec(
            name="cuda",
            target="harness_cuda:Cuda",
            summary="an NVIDIA GPU in this process; ranked by CUDA events",
            runtimes=RUNTIMES,
            clock="device",
            dtype="bf16",
            workload="prefill:1x512",
            in_process=True,
        )
    ]


@dataclass
class Handle:
    """A model that is ready to be timed. Call `rewind` before each `run`. `static` is the pass of the graph runtime."""

    model: Any
    run: Callable[[], None]
    rewind: Callable[[], None]
    static: Any = None
    graph: Any = None
    memory: dict[str, int] | None = None


class Cuda:
    def __init__(self, runtime: str = "eager", place: str = "cuda") -> None:
        if runtime not in RUNTIMES:
            raise UsageError(f"cuda has no runtime {runtime!r}", f"give {' or '.join(RUNTIMES)}")
        if place != "cpu" and not place.startswith("cuda"):
            raise UsageError(f"{place!r} is no CUDA device of torch", "give cuda, cuda:N, or cpu to test the code")
        self.runtime, self.place = runtime, place

    @cached_property
    def _backend(self) -> Any:
        from harness_cuda.backends import Gpu, Host, why_no_gpu

        if self.place == "cpu":
            return Host()
        if missing := why_no_gpu():
            raise EnvironmentFault(missing, "see what this machine can do: harness doctor cuda")
        return Gpu(self.place)

    @cached_property
    def meter(self) -> Any:
        return self._backend.meter()

    def probe(self) -> DeviceInfo:
        try:
            return self._probe()
        except HarnessError as error:
            return DeviceInfo(usable=False, reason=error.cause)
        except Exception as error:  # a broken installation of torch or the driver can raise anything
            return DeviceInfo(usable=False, reason=f"{type(error).__name__}: {error}")

    def _probe(self) -> DeviceInfo:
        backend, meter = self._backend, self.meter
        state = meter.readings(working=bool(backend.allocated_bytes()))
        notes = [*backend.notes(), meter.note]
        if state.get("other_processes"):
            notes.append(f"other compute processes on this GPU: {state['other_processes']}")
        if state.get("throttle"):
            notes.append(f"the GPU is being slowed down: {', '.join(state['throttle'])}")
        return DeviceInfo(
            usable=True,
            fingerprint={**backend.identity(), **meter.limits()},
            state=state,
            notes=tuple(note for note in notes if note),
        )

    def prepare(self, model: Any, workload: Workload) -> Handle:
        backend = self._backend  # first, because its error says why there is no GPU

        import torch

        try:
            return self._prepare(backend, model, workload)
        except torch.OutOfMemoryError as error:
            reason = (str(error).strip().splitlines() or ["out of memory"])[0]
            raise HarnessError(f"no room on the GPU for {workload}: {reason}", "give a smaller workload") from error

    def _prepare(self, backend: Any, model: Any, workload: Workload) -> Handle:
        from harness.models.workloads import runner
        from harness_cuda.passes import StaticPass, allocate_workspaces, measure_memory, on_device

        use_graph = self.runtime == "graph"
        backend.free_unused_memory()  # so that it is not counted in `base`
        with backend.use(own_stream=use_graph):
            model = on_device(model, backend.device)
            allocate_workspaces(model)
            base = backend.allocated_bytes()
            if not use_graph:
                handle = Handle(model, runner(model, workload), rewind=lambda: None)
                for _ in range(WARMUP_PASSES):
                    handle.run()
                handle.memory = measure_memory(backend, model, base, handle.run, capture=False)
                return handle
            static = StaticPass(model, workload)
            for _ in range(WARMUP_PASSES):
                static.rewind()
                static.step()
            static.rewind()
            static.logits = None  # frees them; the graph's logits are in its own memory
            handle = Handle(model, static.step, static.rewind, static)

            def capture() -> None:
                handle.graph = backend.capture(static.step)

            # A graph keeps the memory of its activations: as much as is in use at once while it is recorded.
            handle.memory = measure_memory(backend, model, base, capture, capture=True)
            if handle.graph is not None:
                handle.run = handle.graph.replay
        return handle

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        """Measure the device time of passes in batches, then the wall time of as many single passes.

        One kind of pass cannot give both. In a batch nothing waits for results: events show the time that the GPU
        needs, and the host's launches matter only where the GPU is faster than they are. With a wait after each pass,
        wall time is what a caller sees from launch to result. cpu_ns is the launch without the wait, which only spins.
        """
        backend = self._backend
        with backend.use(own_stream=False):
            for _ in range(plan.warmup):
                handle.rewind()
                handle.run()
            # Read while the last passes still run, because an idle GPU lowers its clocks.
            before = self.meter.readings(working=True)
            backend.synchronize()
            device, after, energy = self._time_batches(handle, plan)
            wall, cpu = self._time_single_passes(handle, len(device))
        return Samples(
            wall_ns=wall,
            cpu_ns=cpu,
            device_ns=device,
            before=before,
            after=after,
            memory=handle.memory,
            energy_j=energy,
            energy_note=self.meter.energy_note(energy is not None),
        )

    def _time_batches(self, handle: Handle, plan: TimingPlan) -> tuple[list[int], dict[str, Any], float | None]:
        """Device times of passes in batches, the readings at the end, and the energy of the timed passes.

        There is one wait at the end of each batch. Batches get half of the time that the plan asks for.
        """
        from harness_cuda.nvml import THROTTLE, joules

        backend = self._backend
        times: list[int] = []
        launched = 0  # passes, including those that are not timed
        throttle: set[str] = set()
        goal_ns = plan.seconds * 1e9 / 2
        max_passes = max(MAX_PASSES, plan.iterations)
        batch = min(max(plan.iterations, 1), MAX_BATCH)
        start, start_mj = time.monotonic(), self.meter.energy_mj()
        while True:
            handle.rewind()
            handle.run()  # not timed: the GPU is busy with it while the first timed pass is being launched
            events = []
            for _ in range(batch):
                handle.rewind()
                begin = backend.record_event()
                handle.run()
                events.append((begin, backend.record_event()))
            after = self.meter.readings(working=True)  # while they run
            throttle |= set(after.get("throttle", ()))
            backend.synchronize()
            times += [backend.elapsed_ns(*pair) for pair in events]
            launched += batch + 1
            total_ns = sum(times)
            if len(times) >= max_passes or (len(times) >= plan.iterations and total_ns >= goal_ns):
                break
            missing = math.ceil((goal_ns - total_ns) / max(total_ns / len(times), 1))
            batch = max(1, min(max(missing, plan.iterations - len(times)), max_passes - len(times), MAX_BATCH))
        end_mj, seconds = self.meter.energy_mj(), time.monotonic() - start
        after["time_ns"] = time.monotonic_ns()
        if end_mj is not None:
            after["energy_mj"] = end_mj
        if "throttle" in after:
            after["throttle"] = [name for name in THROTTLE if name in throttle]
        energy = joules(start_mj, end_mj, seconds)
        # All passes take the same energy, so that of the untimed passes is subtracted by their share.
        return times, after, None if energy is None else energy * len(times) / launched

    def _time_single_passes(self, handle: Handle, passes: int) -> tuple[list[int], list[int]]:
        """Wall times from launch to result, and CPU times of the launches."""
        backend = self._backend
        wall: list[int] = []
        cpu: list[int] = []
        for _ in range(passes):
            handle.rewind()
            backend.synchronize()
            wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
            handle.run()
            cpu.append(max(1, time.process_time_ns() - cpu_start))
            backend.synchronize()
            wall.append(time.perf_counter_ns() - wall_start)
        return wall, cpu

    def close(self, handle: Handle) -> None:
        if handle.model is None:
            return
        if handle.graph is not None:
            self._backend.release_graph(handle.graph)
        handle.model = handle.static = handle.graph = None
        handle.run = handle.rewind = raise_closed
        self._backend.free_unused_memory()


def raise_closed() -> None:
    raise HarnessError("this handle is closed", "prepare the model again")
