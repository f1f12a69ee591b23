"""The conformance checks for devices."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo, DeviceSpec, Samples, TimingPlan, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import SideEffects, first_difference, model_state, record_side_effects
from harness.conformance.report import Fault, NotApplicable, error_line, first_line, plugin_line
from harness.conformance.spec_checks import check_light_import, check_spec
from harness.devices.attributes import torch_device
from harness.errors import Unsupported, UsageError
from harness.latency.timing import CLOCKS
from harness.models.counting import BYTES
from harness.plugins import registry

PLAN = TimingPlan(warmup=1, iterations=3)
SMALL, LARGE, DECODE = Workload("prefill", 1, 16), Workload("prefill", 8, 256), Workload("decode", 1, 16)


class Unplugged(RuntimeError):
    """Raised by the kit's faulty model in the middle of a pass."""


class DeviceBench:
    """Times tiny models on the device and holds the checks. They run in the order in which they are written here."""

    def __init__(self, name: str, settings: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: DeviceSpec = registry().get("device", name)
        self.side_effects: list[SideEffects] = []
        self.visit_ns = 0  # duration of the latest call of `measure`
        self._device: Any = None
        self._info: DeviceInfo | None = None
        self._samples: Samples | None = None
        if settings:
            raise UsageError(f"device {name} has no parameters to set", "leave --set out")

    def close(self) -> None:
        return None

    def device(self) -> Any:
        """The device in its first runtime, created once."""
        if self._device is None:
            self._device = registry().device(self.name)
        return self._device

    def info(self) -> DeviceInfo:
        """The result of the first probe."""
        if self._info is None:
            self._info = self.device().probe()
        return self._info

    def require_device(self) -> Any:
        """The device; where it cannot be used on this machine, the check does not apply."""
        if not self.info().usable:
            raise NotApplicable(f"not usable here: {self.info().reason}")
        return self.device()

    def model(self, layers: int = 4) -> Any:
        """A tiny random model with this many layers, on the torch device that the device asks for."""
        from harness.latency.random_models import RandomWeights

        device = self.require_device()
        _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
        shape = {site.name: 0 for site in anatomy.blocks() if site.layer is not None and site.layer >= layers}
        return RandomWeights(anatomy, self.spec.dtype, torch_device(device)).model(shape)

    def visit(self, model: Any, workload: Workload, plan: TimingPlan = PLAN, device: Any = None) -> Samples:
        """Prepare, measure and close once, and record the side effects."""
        device = device or self.require_device()
        with record_side_effects(self.work) as effects:
            handle = device.prepare(model, workload)
            try:
                start = time.monotonic_ns()
                samples = device.measure(handle, plan)
                self.visit_ns = time.monotonic_ns() - start
            finally:
                device.close(handle)
        self.side_effects.append(effects)
        return samples

    def samples(self) -> Samples:
        """The samples of one small visit, measured once."""
        if self._samples is None:
            self._samples = self.visit(self.model(), SMALL)
        return self._samples

    # --- the checks ---

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        check_light_import("device", self.name)

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
                infos = [registry().device(self.name, runtime).probe() for _ in range(2)]
            except (Exception, SystemExit) as error:
                raise Fault(
                    f"probe raised {type(error).__name__}: {error}; return usable=False and a reason"
                ) from error
            if not all(isinstance(info, DeviceInfo) for info in infos):
                raise Fault(f"probe returned {type(infos[0]).__name__}, not a DeviceInfo")
            if not infos[0].usable and not infos[0].reason:
                raise Fault("it is not usable and does not say why")
            first, second = (json.dumps(dict(info.fingerprint), sort_keys=True) for info in infos)
            if first != second:
                raise Fault("two probes in a row give different fingerprints: put what changes into state")
            if infos[0].usable and not infos[0].fingerprint:
                raise Fault("its fingerprint is empty: it must hold what makes two measurements comparable")

    def check_samples(self) -> None:
        """A visit has at least the requested number of passes, as many for every clock, and all are positive."""
        samples = self.samples()
        clocks = {name: getattr(samples, f"{name}_ns") for name in CLOCKS if getattr(samples, f"{name}_ns")}
        ranked = self.spec.on_machine(self.info()).clock
        if ranked not in clocks:
            raise Fault(f"it is ranked by {ranked} time, but its samples have none")
        fewest = min(map(len, clocks.values()))
        if fewest < PLAN.iterations:
            raise Fault(f"{PLAN.iterations} passes were asked for, {fewest} were timed")
        if len({len(values) for values in clocks.values()}) > 1:
            raise Fault("its clocks have different numbers of samples")
        if any(type(ns) is not int or ns < 0 for values in clocks.values() for ns in values) or not all(
            samples.wall_ns
        ):
            raise Fault("samples must be whole, positive nanoseconds")
        self._check_energy_and_memory(samples)

    def _check_energy_and_memory(self, samples: Samples) -> None:
        joules, memory = samples.energy_j, samples.memory
        if joules is not None and not (math.isfinite(joules) and joules >= 0):
            raise Fault(f"energy_j is {joules!r}: give joules, or None where they cannot be read")
        if memory is not None and (
            set(memory) != {"average", "peak"} or any(type(size) is not int or size < 0 for size in memory.values())
        ):
            raise Fault(f"memory is {dict(memory)!r}: give bytes as average and peak, or None")

    def check_units(self) -> None:
        """Samples are in nanoseconds: they add up to no more than the visit took, and to at least `plan.seconds`."""
        if self.spec.provenance == "simulated":
            raise NotApplicable("it is simulated: its time is not real time")
        samples = self.visit(self.model(), SMALL, TimingPlan(warmup=0, iterations=1, seconds=0.05))
        total = sum(samples.wall_ns)
        if total > 1.05 * self.visit_ns:
            raise Fault(f"the passes of a visit of {self.visit_ns / 1e6:.3g} ms add up to {total / 1e6:.3g} ms")
        if total < 0.9 * 5e7:
            raise Fault(
                f"passes for 50 ms were asked for, they add up to {total / 1e6:.3g} ms: plan.seconds is a minimum"
            )

    def check_runtimes(self) -> None:
        """Every runtime that it names times a model, where the packages for it are installed."""
        self.require_device()
        for runtime in self.spec.runtimes[1:]:
            device = registry().device(self.name, runtime)
            if device.probe().usable:
                self._check_visit(f"runtime {runtime}", SMALL, device)

    def check_decode(self) -> None:
        """It times one token at a context, or raises Unsupported."""
        self.require_device()
        self._check_visit("decode", DECODE)

    def _check_visit(self, what: str, workload: Workload, device: Any = None) -> None:
        try:
            if not self.visit(self.model(), workload, device=device).wall_ns:
                raise Fault(f"{what}: no pass was timed")
        except Fault:
            raise
        except Unsupported:
            return
        except Exception as error:
            raise Fault(f"{what}: {error_line(error)} ({plugin_line(error, self.spec)}); raise Unsupported") from error

    def check_states(self) -> None:
        """The readings around a visit are plain JSON."""
        samples = self.samples()
        for state in (samples.before, samples.after, self.info().state):
            try:
                json.dumps(dict(state), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise Fault(f"its readings are not JSON: {error}") from None

    def check_growth(self) -> None:
        """Time grows with work: by half at least for four times the layers and 128 times the tokens."""
        ranked = self.spec.on_machine(self.info()).clock
        device = self.require_device()
        handles = [device.prepare(self.model(layers), workload) for layers, workload in ((1, SMALL), (4, LARGE))]
        times = []
        for handle in (*handles, handles[0]):  # the first one twice: both stay open and take turns
            samples = device.measure(handle, PLAN)
            times.append(statistics.median(getattr(samples, f"{ranked}_ns") or samples.wall_ns))
        for handle in handles:
            device.close(handle)
        for small in (times[0], times[2]):
            if not times[1] > 1.5 * small:
                raise Fault(f"a large model took {times[1] / 1e6:.3g} ms, a small one {small / 1e6:.3g} ms")

    def check_model_stays(self) -> None:
        """It leaves the model unchanged."""
        model = self.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = model_state(model)
        self.visit(model, SMALL)
        changed = first_difference(state, model_state(model)) or self.side_effects[-1].changed_setting
        if changed:
            raise Fault(f"it left {changed} changed")
        for name, tensor in model.state_dict().items():
            if not tensor.equal(before[name]):
                raise Fault(f"it changed {name}")

    def check_quiet(self) -> None:
        """It prints nothing, for stdout is for the record, and leaves no file in home or the current folder."""
        self.samples()
        for effects in self.side_effects:
            if effects.stdout:
                raise Fault(f"it printed to stdout: {first_line(effects.stdout)!r}")
        leftovers = [Path(path) for effects in self.side_effects for path in effects.leftovers]
        for path in leftovers:
            if ".cache" not in path.parts:
                raise Fault(f"it left {path.name} behind in home or the current folder")

    def check_close(self) -> None:
        """A handle may be closed twice."""
        device = self.require_device()
        handle = device.prepare(self.model(), SMALL)
        device.close(handle)
        try:
            device.close(handle)
        except Exception as error:
            raise Fault(f"closing a second time raised {type(error).__name__}: {error}") from error

    def check_unplugging(self) -> None:
        """After a pass that failed half-way, the handle can be closed and the device used again."""
        device = self.require_device()
        model = self.model()
        forward = model.forward
        passes = [0]

        def faulty(*arguments: Any, **named: Any) -> Any:
            passes[0] += 1
            if passes[0] > 2:
                raise Unplugged("the kit pulled the plug")
            return forward(*arguments, **named)

        model.forward = faulty
        handle = None
        try:
            handle = device.prepare(model, SMALL)
            device.measure(handle, TimingPlan(warmup=1, iterations=5))
        except Exception:  # the device may raise what it likes
            pass
        finally:
            model.forward = forward
            if handle is not None:
                device.close(handle)
        again = self.visit(self.model(), SMALL)
        if len(again.wall_ns) < PLAN.iterations:
            raise Fault("after a pass that failed it times too few passes")
