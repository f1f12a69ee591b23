"""Times candidate shapes next to a resident dense model; used by the budget search."""

from __future__ import annotations

from dataclasses import dataclass

from harness.api import Device, Samples, Shape, TimingPlan, Workload
from harness.devices.attributes import torch_device
from harness.latency import timing
from harness.latency.random_models import RandomWeights
from harness.models.anatomy.core import Anatomy

# Many short visits: a machine's speed drifts, and a ratio is only wrong by what drifts between two visits.
PROBING = timing.TimingProtocol(rounds=6, warmup=0, iterations=1, seconds=0.05)
NOISE_LIMIT = 0.03  # a shape is measured a second time above this


@dataclass(frozen=True)
class Measurement:
    """A measurement of a shape."""

    value: float  # in the budget's unit
    noise: float  # the noise floor: how far the dense model's own times differ


@dataclass
class ResidentSession:
    """A session that stays open when the rounds that used it close it."""

    session: timing.Session

    def measure(self, plan: TimingPlan) -> Samples:
        return self.session.measure(plan)

    def close(self) -> None:
        return None


class Prober:
    """Times shapes on a device where the dense model stays open.

    Values are shares of the dense model's latency, or milliseconds, by `unit`.
    """

    def __init__(self, device: Device, anatomy: Anatomy, dtype: str, workload: Workload, clock: str, unit: str) -> None:
        self.device, self.workload = device, workload
        self.clock, self.unit = clock, unit
        self.pool = RandomWeights(anatomy, dtype, torch_device(device))
        self.dense = ResidentSession(self._open({}))

    def measure(self, shape: Shape) -> Measurement:
        """Time a shape in rounds with the dense model; once more if the noise is high."""
        first = self._measure_once(shape)
        if first.noise <= NOISE_LIMIT:
            return first
        second = self._measure_once(shape)
        return Measurement((first.value * second.value) ** 0.5, max(first.noise, second.noise) / 2**0.5)

    def _measure_once(self, shape: Shape) -> Measurement:
        rounds = timing.interleave(lambda: self.dense, lambda: self._open(shape), PROBING, self.clock)
        latency = timing.latency(rounds, self.clock, PROBING, "device")
        value = latency.pruned.median_ns / 1e6 if self.unit == "ms" else 1 / latency.speedup
        return Measurement(value, latency.noise_floor or 0.0)

    def _open(self, shape: Shape) -> timing.Session:
        """Open a model on the device and run it once, so that no visit times its first pass."""
        session = timing.local_opener(self.device, self.pool.model(shape), self.workload)()
        session.measure(TimingPlan(warmup=0, iterations=1))
        return session

    def close(self) -> None:
        self.dense.session.close()

    def scale(self) -> float:
        """The dense model's value: what a share of it is multiplied with to be in the budget's unit."""
        return self.measure({}).value if self.unit == "ms" else 1.0
