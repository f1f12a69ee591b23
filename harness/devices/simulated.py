"""Simulated devices, for dry runs, tests, and methods without a device at hand.

They take no time, their times are exact, and they never enter a leaderboard.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from harness.api import DeviceInfo, Samples, TimingPlan, Workload
from harness.models.architectures.lookup import anatomy_of, architecture_for
from harness.models.counting import flops

FLOPS_PER_NS = 1000  # one TFLOP/s
CALL_NS = 1000


class Null:
    """A device whose time is proportional to the FLOPs."""

    fingerprint: ClassVar[dict[str, Any]] = {"kind": "null", "flops_per_ns": FLOPS_PER_NS, "call_ns": CALL_NS}

    def probe(self) -> DeviceInfo:
        return DeviceInfo(usable=True, fingerprint=self.fingerprint)

    def prepare(self, model: Any, workload: Workload) -> int:
        return round(self.time(architecture_for(model).config(model), workload))

    def time(self, config: dict[str, Any], workload: Workload) -> float:
        """Nanoseconds of one pass of a model with this config."""
        return CALL_NS + flops(anatomy_of(config), {}, workload) / FLOPS_PER_NS

    def measure(self, handle: int, plan: TimingPlan) -> Samples:
        return Samples(wall_ns=[handle] * plan.iterations)

    def close(self, handle: int) -> None:
        return None


class Staircase(Null):
    """A device with steps, as a GPU has them: widths round up to whole tiles, and every sub-layer has a launch cost.

    A tile of an MLP has 64 channels, a tile of attention one group. Every fourth number of tiles has a better kernel
    and is faster than one tile less, so that time is not monotone.
    """

    TILES: ClassVar[dict[str, int]] = {"attention": 1, "mlp": 64}  # units in a tile
    LAUNCH_NS = 2000
    DIP = 1.2  # the better kernel saves the time of this many tiles

    fingerprint: ClassVar[dict[str, Any]] = {"kind": "staircase", "tiles": TILES, "launch_ns": LAUNCH_NS, "dip": DIP}

    def time(self, config: dict[str, Any], workload: Workload) -> float:
        anatomy = anatomy_of(config)
        hidden = int(anatomy.config["hidden_size"])
        tokens = workload.batch if workload.kind == "decode" else workload.batch * workload.size
        total = CALL_NS + 2 * workload.batch * hidden * int(anatomy.config["vocab_size"]) / FLOPS_PER_NS
        for site in anatomy.blocks():
            total += self.LAUNCH_NS + self.sublayer(site.kind, site.units, anatomy.unit_params(site), tokens)
        return total

    def sublayer(self, kind: str, units: int, unit_params: int, tokens: int) -> float:
        """Nanoseconds of one sub-layer without its launch."""
        tile = self.TILES[kind]
        tiles = math.ceil(units / tile)
        tiles_of_time = tiles - self.DIP if tiles % 4 == 0 else tiles
        rows = math.ceil(tokens / 16) * 16
        return 2 * unit_params * tile * tiles_of_time * rows / FLOPS_PER_NS
