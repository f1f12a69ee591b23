"""NVIDIA GPUs: eager torch or a CUDA graph, CUDA events, and what NVML tells about the GPU meanwhile."""

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
WARM = 3  # passes before a capture or a count of memory
BATCH = 256  # passes launched in a row at most
MOST = 10_000  # passes to fill a time with


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
    """A model that is ready to be timed. `static` holds the logits of the last pass of the graph runtime."""

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
            raise UsageError(f"{place!r} is no place of a CUDA device", "give cuda, cuda:N, or cpu to test the code")
        self.runtime, self.place = runtime, place

    @cached_property
    def _place(self) -> Any:
        from harness_cuda.places import Gpu, Host, why_no_gpu

        if self.place == "cpu":
            return Host()
        if missing := why_no_gpu():
            raise EnvironmentFault(missing, "see what this machine can do: harness doctor cuda")
        return Gpu(self.place)

    @cached_property
    def meter(self) -> Any:
        return self._place.meter()

    def probe(self) -> DeviceInfo:
        try:
            return self._probe()
        except HarnessError as error:
            return DeviceInfo(usable=False, reason=error.cause)
        except Exception as error:  # a broken installation of torch or of the driver can raise anything
            return DeviceInfo(usable=False, reason=f"{type(error).__name__}: {error}")

    def _probe(self) -> DeviceInfo:
        place, meter = self._place, self.meter
        state = meter.readings(ours=bool(place.allocated()))
        notes = [*place.notes(), meter.note]
        if state.get("other_processes"):
            notes.append(f"other compute processes on this GPU: {state['other_processes']}")
        if state.get("throttle"):
            notes.append(f"the GPU is being slowed down: {', '.join(state['throttle'])}")
        return DeviceInfo(
            usable=True,
            fingerprint={**place.identity(), **meter.limits()},
            state=state,
            notes=tuple(note for note in notes if note),
        )

    def prepare(self, model: Any, workload: Workload) -> Handle:
        place = self._place  # says why there is no GPU, before anything else fails for want of one

        import torch

        try:
            return self._prepared(place, model, workload)
        except torch.OutOfMemoryError as error:
            said = (str(error).strip().splitlines() or ["out of memory"])[0]
            raise HarnessError(f"no room on the GPU for {workload}: {said}", "give a smaller workload") from error

    def _prepared(self, place: Any, model: Any, workload: Workload) -> Handle:
        from harness.models.workloads import runner
        from harness_cuda.passes import StaticPass, footprint, placed, prime

        graphed = self.runtime == "graph"
        place.tidy()  # what would be freed later must not be counted now
        with place.lane(aside=graphed):
            model = placed(model, place.device)
            prime(model)
            base = place.allocated()
            if not graphed:
                handle = Handle(model, runner(model, workload), rewind=lambda: None)
                for _ in range(WARM):
                    handle.run()
                handle.memory = footprint(place, model, base, handle.run, held=False)
                return handle
            static = StaticPass(model, workload)
            for _ in range(WARM):
                static.rewind()
                static.step()
            static.rewind()
            static.logits = None  # the ones to come lie in the graph's own memory
            handle = Handle(model, static.step, static.rewind, static)

            def captured() -> None:
                handle.graph = place.capture(static.step)

            # A graph keeps the memory of its activations for itself; the most that lives at once while it is recorded
            # is what it needs.
            handle.memory = footprint(place, model, base, captured, held=True)
            if handle.graph is not None:
                handle.run = handle.graph.replay
        return handle

    def measure(self, handle: Handle, plan: TimingPlan) -> Samples:
        """Device time of passes in a row, then wall time of as many passes alone.

        One kind of pass cannot give both. In a row, nothing waits for results: events tell what the GPU needs, and the
        host's launches show only where the GPU is the faster of the two. Alone, with a wait after each, wall time is
        what a caller sees from launch to result; cpu_ns is the launch without the wait, which only spins.
        """
        place = self._place
        with place.lane(aside=False):
            for _ in range(plan.warmup):
                handle.rewind()
                handle.run()
            before = self.meter.readings(ours=True)  # while the last of them still run: an idle GPU lowers its clocks
            place.synchronize()
            device, after, energy = self._in_a_row(handle, plan)
            wall, cpu = self._alone(handle, len(device))
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

    def _in_a_row(self, handle: Handle, plan: TimingPlan) -> tuple[list[int], dict[str, Any], float | None]:
        """Batches of passes, one wait at the end of each; half of the time to fill is theirs."""
        from harness_cuda.nvml import THROTTLE, joules

        place, found, launched, slowed = self._place, [], 0, set()
        goal_ns, most = plan.seconds * 1e9 / 2, max(MOST, plan.iterations)
        batch = min(max(plan.iterations, 1), BATCH)
        start, start_mj = time.monotonic(), self.meter.energy_mj()
        while True:
            handle.rewind()
            handle.run()  # not timed: the GPU is busy with it while the first timed pass is being launched
            marks = []
            for _ in range(batch):
                handle.rewind()
                begin = place.mark()
                handle.run()
                marks.append((begin, place.mark()))
            after = self.meter.readings(ours=True)  # while they run
            slowed |= set(after.get("throttle", ()))
            place.synchronize()
            found += [place.between(*pair) for pair in marks]
            launched += batch + 1
            filled = sum(found)
            if len(found) >= most or (len(found) >= plan.iterations and filled >= goal_ns):
                break
            missing = math.ceil((goal_ns - filled) / max(filled / len(found), 1))
            batch = max(1, min(max(missing, plan.iterations - len(found)), most - len(found), BATCH))
        end_mj, seconds = self.meter.energy_mj(), time.monotonic() - start
        after["time_ns"] = time.monotonic_ns()
        if end_mj is not None:
            after["energy_mj"] = end_mj
        if "throttle" in after:
            after["throttle"] = [name for name in THROTTLE if name in slowed]
        energy = joules(start_mj, end_mj, seconds)
        # All passes of the window are alike; the untimed ones take their share with them.
        return found, after, None if energy is None else energy * len(found) / launched

    def _alone(self, handle: Handle, passes: int) -> tuple[list[int], list[int]]:
        place, wall, cpu = self._place, [], []
        for _ in range(passes):
            handle.rewind()
            place.synchronize()
            wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
            handle.run()
            cpu.append(max(1, time.process_time_ns() - cpu_start))
            place.synchronize()
            wall.append(time.perf_counter_ns() - wall_start)
        return wall, cpu

    def close(self, handle: Handle) -> None:
        if handle.model is None:
            return
        if handle.graph is not None:
            self._place.end(handle.graph)
        handle.model = handle.static = handle.graph = None
        handle.run = handle.rewind = closed
        self._place.tidy()


def closed() -> None:
    raise HarnessError("this handle is closed", "prepare the model again")
