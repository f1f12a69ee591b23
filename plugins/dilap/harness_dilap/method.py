"""The DiLAP method: statistics of units, a search for a target near the limit, and its projection to the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness import Budget, Context, Cut, Shape, Unsupported
from harness.errors import UsageError
from harness.models import counting
from harness.models.anatomy.core import Anatomy
from harness.pruning import importance
from harness.pruning.distance import ROWS, Distance, autocast_context, plain_attention
from harness.pruning.training.loop import seeded
from harness_dilap import inner as levels
from harness_dilap import picture, project
from harness_dilap.gates import Gates
from harness_dilap.search import Plan, Search, Splits, State
from harness_dilap.settings import TRAINS, conflict
from harness_dilap.storage import StoredLosses, load, save

ORDERS = {"activation": importance.activation, "taylor": importance.taylor, "compensated": importance.compensated}
# A stored search serves limits between these multiples of its target. After a measurement that misses the budget,
# harness asks for such a limit.
SERVES = (0.9, 1.1)
CLOSE = 1.001  # the searched shape itself serves limits up to this multiple of its target


@dataclass
class Dilap:
    samples: int = 64
    length: int = 192
    held_out: int = 8
    steps: int = 60
    batch: int = 2
    lr: float = 0.03
    ramp: float = 0.6
    softness: float = 0.05
    order: str = "compensated"
    refresh: int = 10
    mix: float = 0.3
    memory: float = 0.97
    loss: str = "kl"
    stride: int = 2
    inner: str = "none"
    inner_steps: int = 1
    inner_lr: float = 1e-3
    rank: int = 8
    unrolled: bool = False
    ridge: float = 0.1
    merge: bool = False
    guide: str = "device"
    depth: bool = True
    projection: str = "knapsack"
    swaps: int = 6
    compute: str = "auto"

    counted_searches: ClassVar[set[Path]] = set()  # searches whose training tokens this process has reported

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        """The first score of each unit, from the dense model."""
        self._check_settings(model)
        splits, windows = self._splits(), self._windows(ctx)
        with autocast_context(model, self.compute)():
            return ORDERS[self.order](model, ctx.anatomy, windows[: -len(splits.held_out)].split(ROWS))

    def prune(self, model: Any, budget: Budget, ctx: Context, state: dict[str, Tensor]) -> Cut:
        self._check_settings(model)
        cost = ctx.latency
        limit = cost.limit(budget)
        if limit >= cost.dense:
            return Cut(why="dense is fast enough")
        # Refuse limits below the fastest shape that keeps a unit.
        sites = [site.name for site in ctx.anatomy.blocks()]
        cheapest_site = min(sites, key=lambda site: cost.site_times(site)[1])
        smallest = dict.fromkeys(sites, 0) | {cheapest_site: 1} if self.depth else dict.fromkeys(sites, 1)
        fastest = cost.time(smallest)
        if fastest > limit:
            which, remedy = ("any", "ask for more time") if self.depth else ("every", "set depth=True with it")
            raise Unsupported(f"{budget} is out of reach while {which} sub-layer keeps a unit", remedy)
        # Search, or take the stored result of a search for a target nearby.
        target = search_target(ctx.work_dir, limit / cost.dense, fastest / cost.dense)
        scores = {site.name: state[site.name] for site in ctx.anatomy.blocks()}
        with plain_attention(model, self.length):
            result = self._search_once(model, ctx, scores, target)
        result_file = file_of(ctx, "found", target)
        if result_file not in self.counted_searches:
            ctx.trained(result["told"]["tokens"]["inner"])
            self.counted_searches.add(result_file)
        # Use the searched shape if it suits the limit, else project the same positions to the limit.
        shape = result["shape"]
        gates = Gates({s.name: s.units for s in ctx.anatomy.blocks()}, result["ranks"], result["positions"], 1.0)
        suits = cost.time(shape) <= limit * (1 + 1e-9) and limit <= target * cost.dense * CLOSE
        if not suits:
            shape = self._project(cost, gates, gates.positions, limit)
        title = f"dilap, searched for {target:g}x of dense"
        return Cut(
            keep=gates.keep(shape),
            rewrites=result["rewrites"],
            why=f"{self.steps} steps of ordered gates under a budget of {target:g}x",
            details={
                **result["told"],
                "widths": "the held-out text's choice" if suits else "those, fitted to the limit",
            },
            files={"search.svg": picture.draw(ctx.anatomy, shape, result["log"], title)},
        )

    def _search_once(self, model: Any, ctx: Context, scores: dict[str, Tensor], target: float) -> dict[str, Any]:
        """The result of a search for this target, from its file if there is one. A killed search is resumed."""
        result_file, state_file, losses_file = (file_of(ctx, name, target) for name in ("found", "search", "heard"))
        if (stored := load(result_file)) is not None:
            return stored
        windows, splits = self._windows(ctx), self._splits()
        model.requires_grad_(False)
        compute = "fp32" if self.unrolled else self.compute  # finite differences need fp32
        distance = Distance(model, ctx.anatomy, windows, self.loss, self.stride, compute)
        with seeded(ctx.seed("adapters")):
            inner = self._inner(distance, windows[splits.outer])
        time = time_guide(self.guide, ctx)
        search = Search(Plan.of(target, self), splits, distance, inner, time, scores, ctx, state_file)
        final = search.run()
        shape, positions, losses = self._choose_shape(ctx, search, final, target, StoredLosses(losses_file))
        result = {
            "shape": shape,
            "positions": positions,
            "ranks": final.gates.ranks,
            "rewrites": inner.rewrites() if self.merge else {},
            "log": final.log,
            "told": self._details(search, target, losses),
        }
        save(result, result_file)
        state_file.unlink(missing_ok=True)
        losses_file.unlink(missing_ok=True)
        return result

    def _choose_shape(
        self, ctx: Context, search: Search, final: State, target: float, stored_losses: StoredLosses
    ) -> tuple[dict[str, int], Tensor, dict[str, list[float]]]:
        """The shape at the searched target: the candidate of least held-out loss, improved by swaps.

        Returns the shape, its positions, and the held-out losses of all candidates and swaps.
        """
        cost, limit = ctx.latency, target * ctx.latency.dense
        shapes: list[dict[str, int]] = []
        for positions in final.candidates():
            if (shape := self._project(cost, final.gates, positions, limit)) not in shapes:
                shapes.append(shape)

        def held_out_loss(shape: Shape) -> float:
            return stored_losses(lambda: search.loss.mean_loss(search.splits.held_out, final.gates.of_shape(shape)))

        with search.inner.result_weights(self.merge):
            losses = [held_out_loss(shape) for shape in shapes]
            loss = min(losses)
            best = shapes[losses.index(loss)]
            if search.inner.refresh(final.gates.of_shape(best)):
                loss = held_out_loss(best)
                losses.append(loss)
            pairs = project.swap_pairs(cost, best, final.gates, final.values, search.tokens)
            shape, swap_losses = project.polish(
                cost, best, loss, pairs, limit, held_out_loss, self.swaps, int(not self.depth)
            )
        if self.projection == "knapsack":
            gains, _ = project.marginal_values(cost, shape, final.gates, final.values, search.tokens)
            shape = project.fill(cost, shape, [site for _, site in gains], limit)
        positions = torch.tensor([shape[site] / units for site, units in final.gates.units.items()])
        return shape, positions, {"candidates": losses, "swaps": swap_losses}

    def _project(self, cost: Any, gates: Gates, positions: Tensor, limit: float) -> dict[str, int]:
        """Turn positions into whole units, as the setting `projection` says."""
        function: Callable[..., dict[str, int]] = (
            project.round_to_limit if self.projection == "round" else project.project
        )
        return function(cost, gates, positions, limit, int(not self.depth))

    def _inner(self, distance: Distance, windows: Tensor) -> levels.Frozen:
        if self.inner == "none":
            return levels.Frozen()
        if self.inner == "least-squares":
            return levels.Compensated(distance, windows, self.ridge)
        return levels.Trained(distance, self.inner, self.inner_lr, self.rank, self.unrolled)

    def _splits(self) -> Splits:
        return Splits.of(self.samples, self.held_out, self.inner in TRAINS)

    def _windows(self, ctx: Context) -> Tensor:
        assert ctx.calibration is not None
        return ctx.calibration(self.samples, self.length)

    def _check_settings(self, model: Any) -> None:
        """Refuse settings that exclude each other, or do not suit this model."""
        if problem := conflict(vars(self)):
            raise UsageError(*problem)
        if self.inner == "full" and model.dtype != torch.float32:
            raise Unsupported(
                f"{model.dtype} is too coarse for small steps of the weights", "set inner=lora, or --dtype fp32"
            )

    def _details(self, search: Search, target: float, losses: dict[str, list[float]]) -> dict[str, Any]:
        """Deterministic facts about the search, for the record.

        Its cost is counted in training steps over all its windows. A training step is three passes: forward, backward
        to the activations, and backward to the weights.
        """
        splits, tokens = search.splits, self.samples * self.length
        outer = self.steps * self.batch * self.length
        inner = outer * self.inner_steps if search.inner.trains else 0
        passes = (2 + 8 * self.unrolled) * outer + 3 * inner + (3 if self.order == "taylor" else 1) * tokens
        passes += tokens * (self.loss == "kl") + 6 * len(splits.outer) * self.length * (self.inner == "least-squares")
        passes += sum(map(len, losses.values())) * len(splits.held_out) * self.length
        return {
            "target": target,
            "inner": self.inner,
            "passes in": "bf16" if search.loss.uses_bf16 else str(search.loss.model.dtype).removeprefix("torch."),
            "windows": {"outer": len(splits.outer), "inner": len(splits.inner), "held out": len(splits.held_out)},
            "inner steps after each outer one": self.inner_steps if search.inner.trains else 0,
            "loss by step": thinned(search.state.log),
            "tokens": {"outer": outer, "inner": inner},
            "training steps over the calibration text": round(passes / 3 / tokens, 2),
            "held-out loss": {name: [float(f"{loss:.6g}") for loss in series] for name, series in losses.items()},
        }


def thinned(log: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The losses of both levels at about a dozen steps, including the last."""
    chosen = log[:: -max(1, len(log) // 12)][::-1]
    names = [name for name in ("step", "loss", "inner") if name in log[-1]]
    return {{"loss": "outer"}.get(name, name): [row[name] for row in chosen] for name in names}


def file_of(ctx: Context, kind: str, target: float) -> Path:
    """The file of a search for this target: its result, its state, or its held-out losses."""
    return ctx.work_dir / f"{kind}-{target:.4f}.safetensors"


def search_target(folder: Path, share: float, least: float) -> float:
    """The target to search for, or whose search to reuse, for a limit at this share of the dense time.

    The target of a stored search that serves the limit, or else the share itself, to four decimal places and not below
    `least`.
    """
    targets = [float(file.stem.partition("-")[2]) for file in folder.glob("*-*.safetensors")]
    serving = [target for target in targets if SERVES[0] * target <= share <= SERVES[1] * target]
    new = max(math.floor(share * 1e4 + 1e-6), math.ceil(least * 1e4 - 1e-6)) / 1e4
    return min(serving, key=lambda target: abs(target - share), default=new)


def time_guide(kind: str, ctx: Context) -> Callable[[Tensor, float], Tensor]:
    """A function from positions to time as a share of the dense time.

    It uses the device's curves, or, for ablations, FLOPs (`flops`) or the same share for each site (`sites`).
    """
    cost, sites = ctx.latency, list(ctx.anatomy.blocks())
    units = torch.tensor([site.units for site in sites])
    names = [site.name for site in sites]
    if kind == "device":
        return lambda positions, convex: (
            cost.smooth(dict(zip(names, (positions.double() * units).unbind(), strict=True)), convex=convex)
            / cost.dense
        )
    weights = torch.ones(len(sites)) if kind == "sites" else site_flops(ctx.anatomy, ctx)
    fixed = cost.floor / cost.dense
    return lambda positions, _: fixed + (1 - fixed) * (positions * weights).sum() / weights.sum()


def site_flops(anatomy: Anatomy, ctx: Context) -> Tensor:
    """The FLOPs that the removal of each site saves, for the run's first workload."""
    dense = counting.flops(anatomy, {}, ctx.workloads[0])
    return torch.tensor([dense - counting.flops(anatomy, {s.name: 0}, ctx.workloads[0]) for s in anatomy.blocks()])
