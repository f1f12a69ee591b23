"""DiLAP as a whole: statistics, the search for a nearby target, its projection to the limit that was asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import Budget, Context, Cut, Shape, Unsupported, accounting
from harness.anatomy import Anatomy
from harness.training import seeded
from harness_dilap import inner as levels
from harness_dilap import orders, picture, project
from harness_dilap.gates import Gates
from harness_dilap.loss import Distance, caster
from harness_dilap.search import Plan, Search, Splits, State

SERVES = (0.93, 1.02)  # a search is good for limits so far below and above its own, which measuring asks for


@dataclass
class Dilap:
    samples: int = 96
    length: int = 192
    held_out: int = 12
    steps: int = 150
    batch: int = 2
    lr: float = 0.01
    ramp: float = 0.6
    softness: float = 0.05
    order: str = "activation"
    refresh: int = 10
    mix: float = 0.5
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
    swaps: int = 24
    compute: str = "auto"

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        """What each unit is worth before anything is gone."""
        with caster(model, self.compute)():
            return orders.ORDERS[self.order](model, ctx.anatomy, self._windows(ctx).split(4))

    def prune(self, model: Any, budget: Budget, ctx: Context, state: dict[str, Tensor]) -> Cut:
        self._possible()
        cost = ctx.latency
        limit = cost.limit(budget)
        if limit >= cost.dense:
            return Cut(why="dense is fast enough")
        target = nearby(ctx.work_dir, limit / cost.dense)
        found = self._found(model, ctx, state, target)
        gates = Gates({s.name: s.units for s in ctx.anatomy.blocks()}, found["ranks"], found["positions"], 1.0)
        shape = self._whole(cost, gates, gates.positions, limit)
        title = f"dilap, searched for {target:g}x of dense"
        return Cut(
            keep=gates.kept(shape),
            rewrites=found["rewrites"],
            why=f"{self.steps} steps of ordered gates under a budget of {target:g}x",
            told=found["told"],
            files={"search.svg": picture.drawn(ctx.anatomy, shape, found["log"], title)},
        )

    def _found(self, model: Any, ctx: Context, scores: dict[str, Tensor], target: float) -> dict[str, Any]:
        """What a search for this target found, made once; a killed one goes on where it was saved."""
        file = ctx.work_dir / f"found-{target:.4f}.pt"
        if file.exists():
            return torch.load(file, weights_only=True)
        windows = self._windows(ctx)
        splits = Splits.of(len(windows), self.held_out, self.inner in ("lora", "full"))
        model.requires_grad_(False)
        distance = Distance(model, ctx.anatomy, windows, self.loss, self.stride, self.compute)
        with seeded(ctx.seed("adapters")):
            inner = self._inner(distance, windows[splits.outer])
        plan = Plan(
            target, self.steps, self.batch, self.lr, self.ramp, self.softness, self.refresh, self.mix,
            self.inner_steps,
        )  # fmt: skip
        time = guide(self.guide, ctx)
        kept = scores | {}
        search = Search(plan, splits, distance, inner, time, kept, ctx, ctx.work_dir / f"search-{target:.4f}.pt")
        search.state.priced.least = self._least(kept)
        done = search.run()
        positions, losses = self._polished(ctx, search, done, target)
        found = {
            "positions": positions,
            "ranks": done.gates.ranks,
            "rewrites": inner.rewrites() if self.merge else {},
            "log": done.log,
            "told": self._told(search, target, losses),
        }
        torch.save(found, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)
        return found

    def _polished(self, ctx: Context, search: Search, done: State, target: float) -> tuple[Tensor, dict[str, list[float]]]:
        """Whole units at the searched budget: what the held-out text likes best, exchanged while it likes that."""
        cost, limit = ctx.latency, target * ctx.latency.dense
        shapes = [self._whole(cost, done.gates, positions, limit) for positions in done.candidates()]

        def judge(shape: Shape) -> float:
            return search.loss.held_out(search.splits.held_out, done.gates.shut(shape))

        weights = search.inner.dense if search.inner.trains and not self.merge else levels.Frozen().dense
        with weights():
            losses = [judge(shape) for shape in shapes]
            best = losses.index(min(losses))
            least = int(not self.depth)
            pairs = project.swaps(cost, shapes[best], done.gates, done.worth, search.tokens)
            shape, tried = project.polish(cost, shapes[best], min(losses), pairs, limit, judge, self.swaps, least)
        told = {"candidates": losses, "swaps": tried}
        if not tried or min(tried) >= min(losses):  # positions know more than whole units
            return done.candidates()[best], told
        return torch.tensor([shape[site] / units for site, units in done.gates.units.items()]), told

    def _whole(self, cost: Any, gates: Gates, positions: Tensor, limit: float) -> dict[str, int]:
        way: Callable[..., dict[str, int]] = project.rounded if self.projection == "round" else project.project
        return way(cost, gates, positions, limit, int(not self.depth))

    def _inner(self, distance: Distance, windows: Tensor) -> levels.Frozen:
        if self.inner == "none":
            return levels.Frozen()
        if self.inner == "least-squares":
            return levels.Compensated(distance, windows, self.ridge)
        return levels.Trained(distance, self.inner, self.inner_lr, self.rank, self.unrolled)

    def _least(self, scores: dict[str, Tensor]) -> Tensor:
        """The least position of each site."""
        return torch.tensor([0.0 if self.depth else 1 / len(worth) for worth in scores.values()])

    def _possible(self) -> None:
        if self.held_out > self.samples - 2:
            raise Unsupported(
                f"{self.held_out} of {self.samples} windows held out leave too few to search with",
                "set samples higher, or held_out lower",
            )
        trains = self.inner in ("lora", "full")
        for name, needs in (("merge", trains), ("unrolled", trains)):
            if getattr(self, name) and not needs:
                raise Unsupported(f"{name} needs weights that learn", "set inner=lora or inner=full with it")

    def _windows(self, ctx: Context) -> Tensor:
        assert ctx.calibration is not None
        return ctx.calibration(self.samples, self.length)

    def _told(self, search: Search, target: float, losses: dict[str, list[float]]) -> dict[str, Any]:
        """Facts for the record, the same on every run. A training step is three passes: forward, back to the
        activations, back to the weights; the search's passes are counted in those over all its windows."""
        steps, splits, tokens = self.steps, search.splits, self.samples * self.length
        outer = steps * self.batch * self.length
        inner = outer * self.inner_steps if search.inner.trains else 0
        passes = (2 + 6 * self.unrolled) * outer + 3 * inner + tokens
        passes += sum(map(len, losses.values())) * len(splits.held_out) * self.length
        return {
            "target": target,
            "inner": self.inner,
            "windows": {"outer": len(splits.outer), "inner": len(splits.inner), "held out": len(splits.held_out)},
            "tokens": {"outer": outer, "inner": inner},
            "training steps over the calibration text": round(passes / 3 / tokens, 2),
            "held-out loss": {name: [float(f"{loss:.6g}") for loss in tried] for name, tried in losses.items()},
            "loss of the last step": search.state.log[-1]["loss"],
        }


def nearby(folder: Path, share: float) -> float:
    """The target of a search, finished or killed, that serves this share of dense; without any the share itself."""
    targets = [float(file.stem.partition("-")[2]) for file in folder.glob("*-*.pt")]
    serving = [target for target in targets if SERVES[0] * target <= share <= SERVES[1] * target]
    return min(serving, key=lambda target: abs(target - share), default=round(share, 4))


def guide(kind: str, ctx: Context) -> Callable[[Tensor, float], Tensor]:
    """Time as a share of dense at positions: by the device's curves, or by what a method knows that has none."""
    sites = list(ctx.anatomy.blocks())
    units = torch.tensor([site.units for site in sites])
    names = [site.name for site in sites]
    if kind == "device":
        cost = ctx.latency
        return lambda at, convex: (
            cost.smooth(dict(zip(names, (at.double() * units).unbind(), strict=True)), convex=convex) / cost.dense
        )
    worth = torch.ones(len(sites)) if kind == "sites" else site_flops(ctx.anatomy, ctx)
    return lambda at, _: (at * worth).sum() / worth.sum()


def site_flops(anatomy: Anatomy, ctx: Context) -> Tensor:
    dense = accounting.flops(anatomy, {}, ctx.workloads[0])
    return torch.tensor([dense - accounting.flops(anatomy, {s.name: 0}, ctx.workloads[0]) for s in anatomy.blocks()])
