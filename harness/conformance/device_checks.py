"""What a device must hold."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo, DeviceSpec, Samples, TimingPlan, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import Seen, disturbed, standing, watched
from harness.conformance.report import Fault, NotApplicable, in_a_line, where
from harness.conformance.spec_checks import check_spec, heavy
from harness.errors import Unsupported, UsageError
from harness.latency.timing import CLOCKS
from harness.models.counting import BYTES
from harness.plugins import registry

PLAN = TimingPlan(warmup=1, iterations=3)
SMALL, LARGE, DECODE = Workload("prefill", 1, 16), Workload("prefill", 8, 256), Workload("decode", 1, 16)


class Unplugged(RuntimeError):
    """What the kit's faulty model raises in the middle of a pass."""


class DeviceBench:
    def __init__(self, name: str, given: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: DeviceSpec = registry().get("device", name)
        self.seen: list[Seen] = []
        self.took_ns = 0
        if given:
            raise UsageError(f"device {name} has no parameters to set", "leave --set out")

    def close(self) -> None:
        return None

    @cached_property
    def device(self) -> Any:
        return registry().device(self.name)

    @cached_property
    def info(self) -> DeviceInfo:
        return self.device.probe()

    def usable(self) -> Any:
        if not self.info.usable:
            raise NotApplicable(f"not usable here: {self.info.reason}")
        return self.device

    def model(self, layers: int = 4) -> Any:
        from harness.latency.random_models import Pool

        self.usable()
        _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
        gone = {site.name: 0 for site in anatomy.blocks() if site.layer is not None and site.layer >= layers}
        return Pool(anatomy, self.spec.dtype, getattr(self.device, "place", "cpu")).model(gone)

    def visit(self, model: Any, workload: Workload, plan: TimingPlan = PLAN, device: Any = None) -> Samples:
        device = device or self.usable()
        with watched(self.work) as seen:
            handle = device.prepare(model, workload)
            try:
                start = time.monotonic_ns()
                samples = device.measure(handle, plan)
                self.took_ns = time.monotonic_ns() - start
            finally:
                device.close(handle)
        self.seen.append(seen)
        return samples

    @cached_property
    def samples(self) -> Samples:
        return self.visit(self.model(), SMALL)

    # --- the checks, in the order they are told ---

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        heavy("device", self.name)

    def check_spec(self) -> None:
        """The spec is complete: summary, runtimes, clock, provenance, dtype and a workload that can be read."""
        check_spec(self.spec, lambda: None)
        if self.spec.clock not in CLOCKS:
            raise Fault(f"its clock {self.spec.clock!r} is none of {', '.join(CLOCKS)}")
        if self.spec.provenance not in ("device", "emulator", "simulated"):
            raise Fault(f"its provenance {self.spec.provenance!r} is none of device, emulator, simulated")
        if self.spec.dtype not in BYTES or not self.spec.runtimes:
            raise Fault("its spec names no runtime, or a dtype that is not fp32, bf16 or fp16")
        Workload.parse(self.spec.workload)
        for runtime in self.spec.runtimes:
            registry().device(self.name, runtime)

    def check_probe(self) -> None:
        """A probe never raises; it says why the device is not usable, and its fingerprint is plain and stable."""
        for runtime in self.spec.runtimes:
            try:
                found = [registry().device(self.name, runtime).probe() for _ in range(2)]
            except (Exception, SystemExit) as error:
                raise Fault(
                    f"probe raised {type(error).__name__}: {error}; return usable=False and a reason"
                ) from error
            if not all(isinstance(info, DeviceInfo) for info in found):
                raise Fault(f"probe returned {type(found[0]).__name__}, not a DeviceInfo")
            if not found[0].usable and not found[0].reason:
                raise Fault("it is not usable and does not say why")
            first, second = (json.dumps(dict(info.fingerprint), sort_keys=True) for info in found)
            if first != second:
                raise Fault("two probes in a row give different fingerprints: what changes belongs into state")
            if found[0].usable and not found[0].fingerprint:
                raise Fault("its fingerprint is empty: it must hold what makes two measurements comparable")

    def check_samples(self) -> None:
        """A visit has at least the passes that were asked for, every clock as many, all positive."""
        samples = self.samples
        clocks = {name: getattr(samples, f"{name}_ns") for name in CLOCKS if getattr(samples, f"{name}_ns")}
        ranked = self.spec.on_machine(self.info).clock
        if ranked not in clocks:
            raise Fault(f"it is ranked by {ranked} time, but its samples have none")
        if (fewest := min(map(len, clocks.values()))) < PLAN.iterations:
            raise Fault(f"{PLAN.iterations} passes were asked for, {fewest} were timed")
        if len({len(values) for values in clocks.values()}) > 1:
            raise Fault("its clocks have different numbers of samples")
        if any(type(ns) is not int or ns < 0 for values in clocks.values() for ns in values) or not all(
            samples.wall_ns
        ):
            raise Fault("samples must be whole, positive nanoseconds")
        self._extras()

    def _extras(self) -> None:
        joules, memory = self.samples.energy_j, self.samples.memory
        if joules is not None and not (math.isfinite(joules) and joules >= 0):
            raise Fault(f"energy_j is {joules!r}: give joules, or None where they cannot be read")
        if memory is not None and (
            set(memory) != {"average", "peak"} or any(type(size) is not int or size < 0 for size in memory.values())
        ):
            raise Fault(f"memory is {dict(memory)!r}: give bytes as average and peak, or None")

    def check_units(self) -> None:
        """Samples are nanoseconds: no more than the visit took, and what was asked to fill a time fills it."""
        if self.spec.provenance == "simulated":
            raise NotApplicable("it is made up: its time is not ours")
        samples = self.visit(self.model(), SMALL, TimingPlan(warmup=0, iterations=1, seconds=0.05))
        if (total := sum(samples.wall_ns)) > 1.05 * self.took_ns:
            raise Fault(f"the passes of a visit of {self.took_ns / 1e6:.3g} ms add up to {total / 1e6:.3g} ms")
        if total < 0.9 * 5e7:
            raise Fault(
                f"passes for 50 ms were asked for, they add up to {total / 1e6:.3g} ms: plan.seconds is a floor"
            )

    def check_runtimes(self) -> None:
        """Every runtime it names times a model, where what it needs is installed."""
        self.usable()
        for runtime in self.spec.runtimes[1:]:
            device = registry().device(self.name, runtime)
            if device.probe().usable:
                self._works(f"runtime {runtime}", SMALL, device)

    def check_decode(self) -> None:
        """It times one token at a context, or says that it cannot."""
        self.usable()
        self._works("decode", DECODE)

    def _works(self, what: str, workload: Workload, device: Any = None) -> None:
        try:
            if not self.visit(self.model(), workload, device=device).wall_ns:
                raise Fault(f"{what}: no pass was timed")
        except Fault:
            raise
        except Unsupported:
            return
        except Exception as error:
            raise Fault(f"{what}: {in_a_line(error)} ({where(error, self.spec)}); raise Unsupported") from error

    def check_states(self) -> None:
        """The readings around a visit are plain JSON."""
        for state in (self.samples.before, self.samples.after, self.info.state):
            try:
                json.dumps(dict(state), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise Fault(f"its readings are not JSON: {error}") from None

    def check_growth(self) -> None:
        """Time grows with work: four layers and 128 times the tokens, by half at least."""
        ranked = self.spec.on_machine(self.info).clock
        device = self.usable()
        handles = [device.prepare(self.model(layers), workload) for layers, workload in ((1, SMALL), (4, LARGE))]
        times = []
        for handle in (*handles, handles[0]):  # the first again: both stay open while they take turns
            samples = device.measure(handle, PLAN)
            times.append(statistics.median(getattr(samples, f"{ranked}_ns") or samples.wall_ns))
        for handle in handles:
            device.close(handle)
        for small in (times[0], times[2]):
            if not times[1] > 1.5 * small:
                raise Fault(f"a large model took {times[1] / 1e6:.3g} ms, a small one {small / 1e6:.3g} ms")

    def check_model_stays(self) -> None:
        """The model it was lent is as it was."""
        model = self.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        stood = standing(model)
        self.visit(model, SMALL)
        if left := disturbed(stood, standing(model)) or self.seen[-1].left:
            raise Fault(f"it left {left} changed")
        for name, tensor in model.state_dict().items():
            if not tensor.equal(before[name]):
                raise Fault(f"it changed {name}")

    def check_quiet(self) -> None:
        """It prints nothing: stdout is the record's; and it leaves nothing in home or the current folder."""
        assert self.samples
        if printed := next((seen.printed for seen in self.seen if seen.printed), ""):
            raise Fault(f"it printed to stdout: {printed.strip().splitlines()[0][:80]!r}")
        left = [path for seen in self.seen for path in seen.remains if ".cache" not in Path(path).parts]
        if left:
            raise Fault(f"it left {Path(left[0]).name} behind in home or the current folder")

    def check_close(self) -> None:
        """Closing twice is fine."""
        handle = self.usable().prepare(self.model(), SMALL)
        self.device.close(handle)
        try:
            self.device.close(handle)
        except Exception as error:
            raise Fault(f"closing a second time raised {type(error).__name__}: {error}") from error

    def check_unplugging(self) -> None:
        """After a pass that died half-way it can be closed and used again."""
        self.usable()
        model, passes = self.model(), [0]
        forward = model.forward

        def faulty(*arguments: Any, **named: Any) -> Any:
            passes[0] += 1
            if passes[0] > 2:
                raise Unplugged("the kit pulled the plug")
            return forward(*arguments, **named)

        model.forward = faulty
        handle = None
        try:
            handle = self.device.prepare(model, SMALL)
            self.device.measure(handle, TimingPlan(warmup=1, iterations=5))
        except Exception:  # what is raised is the device's business
            pass
        finally:
            model.forward = forward
            if handle is not None:
                self.device.close(handle)
        again = self.visit(self.model(), SMALL)
        if len(again.wall_ns) < PLAN.iterations:
            raise Fault("after a pass that died it times no more")
