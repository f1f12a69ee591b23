"""DiLAP as a whole: statistics, the search for a nearby target, its projection to the limit that was asked."""

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
from harness.pruning.distance import ROWS, Distance, caster, plain_attention
from harness.pruning.training.loop import seeded
from harness_dilap import inner as levels
from harness_dilap import picture, project
from harness_dilap.gates import Gates
from harness_dilap.keep import Judgements, save, saved
from harness_dilap.search import Plan, Search, Splits, State
from harness_dilap.settings import TRAINS, fault

ORDERS = {"activation": importance.activation, "taylor": importance.taylor, "compensated": importance.compensated}
SERVES = (0.9, 1.1)  # a search is good for limits so far below and above its own, which measuring asks for next
CLOSE = 1.001  # and what the held-out text chose is, unless it is too slow, up to so much above


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

    counted: ClassVar[set[Path]] = set()  # searches whose training the record of this process knows of

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        """What each unit is worth before anything is gone."""
        self._possible(model)
        splits, windows = self._splits(), self._windows(ctx)
        with caster(model, self.compute)():
            return ORDERS[self.order](model, ctx.anatomy, windows[: -len(splits.held_out)].split(ROWS))

    def prune(self, model: Any, budget: Budget, ctx: Context, state: dict[str, Tensor]) -> Cut:
        self._possible(model)
        cost = ctx.latency
        limit = cost.limit(budget)
        if limit >= cost.dense:
            return Cut(why="dense is fast enough")
        sites = [site.name for site in ctx.anatomy.blocks()]
        one = dict.fromkeys(sites, 0) | {min(sites, key=lambda site: cost.site_times(site)[1]): 1}
        if (fastest := cost.time(one if self.depth else dict.fromkeys(sites, 1))) > limit:
            which, remedy = ("any", "ask for more time") if self.depth else ("every", "set depth=True with it")
            raise Unsupported(f"{budget} is out of reach while {which} sub-layer keeps a unit", remedy)
        target = nearby(ctx.work_dir, limit / cost.dense, fastest / cost.dense)
        worth = {site.name: state[site.name] for site in ctx.anatomy.blocks()}
        with plain_attention(model, self.length):
            found = self._search_once(model, ctx, worth, target)
        if (search := file_of(ctx, "found", target)) not in self.counted:
            ctx.trained(found["told"]["tokens"]["inner"])
            self.counted.add(search)
        shape = found["shape"]
        gates = Gates({s.name: s.units for s in ctx.anatomy.blocks()}, found["ranks"], found["positions"], 1.0)
        chosen = cost.time(shape) <= limit * (1 + 1e-9) and limit <= target * cost.dense * CLOSE
        if not chosen:
            shape = self._whole(cost, gates, gates.positions, limit)
        title = f"dilap, searched for {target:g}x of dense"
        return Cut(
            keep=gates.kept(shape),
            rewrites=found["rewrites"],
            why=f"{self.steps} steps of ordered gates under a budget of {target:g}x",
            details={
                **found["told"],
                "widths": "the held-out text's choice" if chosen else "those, fitted to the limit",
            },
            files={"search.svg": picture.drawn(ctx.anatomy, shape, found["log"], title)},
        )

    def _search_once(self, model: Any, ctx: Context, worth: dict[str, Tensor], target: float) -> dict[str, Any]:
        """What a search for this target found, made once; a killed one goes on where it was saved."""
        file, going, heard = (file_of(ctx, name, target) for name in ("found", "search", "heard"))
        if (known := saved(file)) is not None:
            return known
        windows, splits = self._windows(ctx), self._splits()
        model.requires_grad_(False)
        compute = "fp32" if self.unrolled else self.compute  # a finite difference is no place to save
        distance = Distance(model, ctx.anatomy, windows, self.loss, self.stride, compute)
        with seeded(ctx.seed("adapters")):
            inner = self._inner(distance, windows[splits.outer])
        search = Search(Plan.of(target, self), splits, distance, inner, guide(self.guide, ctx), worth, ctx, going)
        done = search.run()
        shape, positions, losses = self._polished(ctx, search, done, target, Judgements(heard))
        found = {
            "shape": shape,
            "positions": positions,
            "ranks": done.gates.ranks,
            "rewrites": inner.rewrites() if self.merge else {},
            "log": done.log,
            "told": self._details(search, target, losses),
        }
        save(found, file)
        for spent in (going, heard):
            spent.unlink(missing_ok=True)
        return found

    def _polished(
        self, ctx: Context, search: Search, done: State, target: float, heard: Judgements
    ) -> tuple[dict[str, int], Tensor, dict[str, list[float]]]:
        """Whole units at the searched budget: what the held-out text likes best, exchanged while it likes that."""
        cost, limit = ctx.latency, target * ctx.latency.dense
        shapes: list[dict[str, int]] = []
        for positions in done.candidates():
            if (shape := self._whole(cost, done.gates, positions, limit)) not in shapes:
                shapes.append(shape)

        def judge(shape: Shape) -> float:
            return heard(lambda: search.loss.held_out(search.splits.held_out, done.gates.shut(shape)))

        with search.inner.judged(self.merge):
            losses = [judge(shape) for shape in shapes]
            loss = min(losses)
            best = shapes[losses.index(loss)]
            if search.inner.refresh(done.gates.shut(best)):
                losses.append(loss := judge(best))
            pairs = project.swaps(cost, best, done.gates, done.worth, search.tokens)
            shape, tried = project.polish(cost, best, loss, pairs, limit, judge, self.swaps, int(not self.depth))
        if self.projection == "knapsack":
            gains, _ = project.edges(cost, shape, done.gates, done.worth, search.tokens)
            shape = project.filled(cost, shape, [site for _, site in gains], limit)
        positions = torch.tensor([shape[site] / units for site, units in done.gates.units.items()])
        return shape, positions, {"candidates": losses, "swaps": tried}

    def _whole(self, cost: Any, gates: Gates, positions: Tensor, limit: float) -> dict[str, int]:
        way: Callable[..., dict[str, int]] = project.rounded if self.projection == "round" else project.project
        return way(cost, gates, positions, limit, int(not self.depth))

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

    def _possible(self, model: Any) -> None:
        """Settings that do not go together, or not with this model, before anything is spent."""
        if wrong := fault(vars(self)):
            raise UsageError(*wrong)
        if self.inner == "full" and model.dtype != torch.float32:
            raise Unsupported(
                f"{model.dtype} swallows the small steps of all weights", "set inner=lora, or --dtype fp32"
            )

    def _details(self, search: Search, target: float, losses: dict[str, list[float]]) -> dict[str, Any]:
        """Facts for the record, the same on every run. A training step is three passes: forward, back to the
        activations, back to the weights; the search's passes are counted in those over all its windows."""
        steps, splits, tokens = self.steps, search.splits, self.samples * self.length
        outer = steps * self.batch * self.length
        inner = outer * self.inner_steps if search.inner.trains else 0
        passes = (2 + 8 * self.unrolled) * outer + 3 * inner + (3 if self.order == "taylor" else 1) * tokens
        passes += tokens * (self.loss == "kl") + 6 * len(splits.outer) * self.length * (self.inner == "least-squares")
        passes += sum(map(len, losses.values())) * len(splits.held_out) * self.length
        return {
            "target": target,
            "inner": self.inner,
            "passes in": "bf16" if search.loss.half else str(search.loss.model.dtype).removeprefix("torch."),
            "windows": {"outer": len(splits.outer), "inner": len(splits.inner), "held out": len(splits.held_out)},
            "inner steps after each outer one": self.inner_steps if search.inner.trains else 0,
            "loss by step": thinned(search.state.log),
            "tokens": {"outer": outer, "inner": inner},
            "training steps over the calibration text": round(passes / 3 / tokens, 2),
            "held-out loss": {name: [float(f"{loss:.6g}") for loss in tried] for name, tried in losses.items()},
        }


def thinned(log: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The losses of both levels at about a dozen steps, the last among them."""
    chosen = log[:: -max(1, len(log) // 12)][::-1]
    names = [name for name in ("step", "loss", "inner") if name in log[-1]]
    return {{"loss": "outer"}.get(name, name): [row[name] for row in chosen] for name in names}


def file_of(ctx: Context, what: str, target: float) -> Path:
    return ctx.work_dir / f"{what}-{target:.4f}.safetensors"


def nearby(folder: Path, share: float, least: float) -> float:
    """The target of a search, finished or killed, that serves this share of dense; without any the share itself, to
    four places, but no less than can be had."""
    targets = [float(file.stem.partition("-")[2]) for file in folder.glob("*-*.safetensors")]
    serving = [target for target in targets if SERVES[0] * target <= share <= SERVES[1] * target]
    own = max(math.floor(share * 1e4 + 1e-6), math.ceil(least * 1e4 - 1e-6)) / 1e4
    return min(serving, key=lambda target: abs(target - share), default=own)


def guide(kind: str, ctx: Context) -> Callable[[Tensor, float], Tensor]:
    """Time as a share of dense at positions: by the device's curves, or by what a method knows that has none."""
    cost, sites = ctx.latency, list(ctx.anatomy.blocks())
    units = torch.tensor([site.units for site in sites])
    names = [site.name for site in sites]
    if kind == "device":
        return lambda at, convex: (
            cost.smooth(dict(zip(names, (at.double() * units).unbind(), strict=True)), convex=convex) / cost.dense
        )
    worth = torch.ones(len(sites)) if kind == "sites" else site_flops(ctx.anatomy, ctx)
    fixed = cost.floor / cost.dense
    return lambda at, _: fixed + (1 - fixed) * (at * worth).sum() / worth.sum()


def site_flops(anatomy: Anatomy, ctx: Context) -> Tensor:
    dense = counting.flops(anatomy, {}, ctx.workloads[0])
    return torch.tensor([dense - counting.flops(anatomy, {s.name: 0}, ctx.workloads[0]) for s in anatomy.blocks()])
