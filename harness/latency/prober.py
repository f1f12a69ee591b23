"""A device with the dense shape on it, where other shapes are laid beside it: what a matcher measures with."""

from __future__ import annotations

from dataclasses import dataclass

from harness.api import Device, Samples, Shape, TimingPlan, Workload
from harness.devices.attributes import torch_device
from harness.latency import timing
from harness.latency.random_models import Pool
from harness.models.anatomy.core import Anatomy

# Many short visits: a machine's speed drifts, and what drifts between two visits is all that a ratio suffers from.
PROBING = timing.TimingProtocol(rounds=6, warmup=0, iterations=1, seconds=0.05)
TWICE_ABOVE = 0.03  # noise from which one look says too little


@dataclass(frozen=True)
class Measured:
    """A shape on the device: in the budget's unit, with how far dense strays from itself."""

    value: float
    noise: float


@dataclass
class Kept:
    """The dense model stays open from probe to probe."""

    session: timing.Session

    def measure(self, plan: TimingPlan) -> Samples:
        return self.session.measure(plan)

    def close(self) -> None:
        return None


class Bed:
    """A device with the dense shape on it, where other shapes are laid beside it. Values are shares of dense, or ms."""

    def __init__(self, device: Device, anatomy: Anatomy, dtype: str, workload: Workload, clock: str, unit: str) -> None:
        self.device, self.workload, self.clock, self.unit = device, workload, clock, unit
        self.pool = Pool(anatomy, dtype, torch_device(device))
        self.dense = Kept(self._open({}))

    def measure(self, shape: Shape) -> Measured:
        """Beside dense; twice where dense strays too far from itself for one look to say much."""
        first = self._look(shape)
        if first.noise <= TWICE_ABOVE:
            return first
        second = self._look(shape)
        return Measured((first.value * second.value) ** 0.5, max(first.noise, second.noise) / 2**0.5)

    def _look(self, shape: Shape) -> Measured:
        rounds = timing.interleave(lambda: self.dense, lambda: self._open(shape), PROBING, self.clock)
        found = timing.latency(rounds, self.clock, PROBING, "device")
        value = found.pruned.median_ns / 1e6 if self.unit == "ms" else 1 / found.speedup
        return Measured(value, found.noise_floor or 0.0)

    def _open(self, shape: Shape) -> timing.Session:
        """A model on the device, run once: no visit is its first pass."""
        session = timing.here(self.device, self.pool.model(shape), self.workload)()
        session.measure(TimingPlan(warmup=0, iterations=1))
        return session

    def close(self) -> None:
        self.dense.session.close()

    def scale(self) -> float:
        """What a share of dense is multiplied with to be in the budget's unit."""
        return self.measure({}).value if self.unit == "ms" else 1.0
