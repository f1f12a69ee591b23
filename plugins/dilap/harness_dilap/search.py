"""The search: outer steps on the gates under a tightening budget, inner steps on the weights, a state that survives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import Context, HarnessError
from harness.pruning.training.loop import drawn
from harness_dilap.gates import Gates, Worth, ranked
from harness_dilap.keep import save, saved
from harness_dilap.price import Priced

SAVE_EVERY = 10  # steps
STRETCHES, FEW = 3, 4  # parts of the way that are looked at, and steps that make a mean


@dataclass(frozen=True)
class Plan:
    """What the search is to do. `target` is a share of the dense model's time."""

    target: float
    steps: int
    batch: int
    lr: float
    ramp: float
    softness: float
    refresh: int
    mix: float
    memory: float
    inner_steps: int
    depth: bool

    @staticmethod
    def of(target: float, settings: Any) -> Plan:
        """From settings of the same names."""
        return Plan(target, *(getattr(settings, field.name) for field in fields(Plan)[1:]))


@dataclass(frozen=True)
class Splits:
    """Rows of the calibration windows: for the gates, for the weights, and for judging what was found."""

    outer: list[int]
    inner: list[int]
    held_out: list[int]

    @staticmethod
    def of(count: int, held_out: int, bilevel: bool) -> Splits:
        rows = list(range(count))
        left = rows[: count - held_out]
        half = len(left) // 2
        return Splits(left[:half] if bilevel else left, left[half:] if bilevel else [], rows[count - held_out :])


@dataclass
class State:
    """All that a search is, between two steps."""

    gates: Gates
    priced: Priced
    worth: Worth
    step: int = 0
    trail: list[Tensor] = field(default_factory=list)  # positions at the budget, step by step
    log: list[dict[str, float]] = field(default_factory=list)

    def words(self) -> dict[str, Any]:
        gates, priced, worth = self.gates, self.priced, self.worth
        return {
            "step": self.step,
            "positions": gates.positions,
            "ranks": gates.ranks,
            "priced": [priced.mean, priced.square, priced.steps, priced.price],
            "worth": [worth.slope, worth.square, worth.weight],
            "trail": self.trail,
            "log": self.log,
        }

    def take(self, words: dict[str, Any]) -> None:
        self.step, self.trail, self.log = words["step"], words["trail"], words["log"]
        self.gates.positions, self.gates.ranks = words["positions"], words["ranks"]
        self.priced.mean, self.priced.square, self.priced.steps, self.priced.price = words["priced"]
        self.worth.slope, self.worth.square, self.worth.weight = words["worth"]

    def candidates(self) -> list[Tensor]:
        """Positions worth a look: means over the last steps, all of them and fewer, and the way there in stretches.

        A step's positions swing with the text of its batch, and whole units swing with them; means do less.
        """
        trail, found, count = torch.stack(self.trail), [], len(self.trail)
        while count >= FEW or not found:
            found.append(trail[-count:].mean(0))
            count //= 2
        return found + [part.mean(0) for part in trail.split(max(1, len(trail) // STRETCHES))]


class Search:
    """One search for one target. `loss(rows, gates, step)` is all it knows of the network, `time` all of the device."""

    def __init__(
        self,
        plan: Plan,
        splits: Splits,
        loss: Any,
        inner: Any,
        time: Callable[[Tensor, float], Tensor],
        scores: dict[str, Tensor],
        ctx: Context,
        file: Path,
    ) -> None:
        self.plan, self.splits, self.loss, self.inner, self.time = plan, splits, loss, inner, time
        self.ctx, self.file = ctx, file
        self.tokens = loss.tokens(plan.batch)
        self.first = {site: ranked(worth) for site, worth in scores.items()}
        units = {site: len(worth) for site, worth in scores.items()}
        gates = Gates(units, dict(self.first), torch.ones(len(units)), plan.softness)
        self.state = State(gates, Priced.of(gates.positions, plan.lr), Worth.of(units, plan.memory))
        if not plan.depth:
            self.state.priced.least = torch.tensor([1 / count for count in units.values()])

    def run(self) -> State:
        """From where it was left, or from the dense model, to the last step."""
        plan, state = self.plan, self.state
        if (left := saved(self.file)) is not None:
            state.take(left["search"])
            if left["inner"]:
                self.inner.load(left["inner"])
        outer = list(drawn(torch.tensor(self.splits.outer), plan.batch, plan.steps, self.ctx.seed("outer")))
        inner_steps = plan.steps * plan.inner_steps if self.inner.trains else 0
        inner = list(drawn(torch.tensor(self.splits.inner), plan.batch, inner_steps, self.ctx.seed("inner")))
        while state.step < plan.steps:
            at = state.step * plan.inner_steps
            self._outer(outer[state.step].tolist(), [rows.tolist() for rows in inner[at : at + plan.inner_steps]])
            state.step += 1
            if state.step % SAVE_EVERY == 0 or state.step == plan.steps:
                save({"search": state.words(), "inner": self.inner.save()}, self.file)
            self.ctx.progress(state.step, plan.steps)
        return state

    def _outer(self, rows: list[int], inner: list[list[int]]) -> None:
        plan, state, number = self.plan, self.state, self.state.step + 1
        progress = min(1.0, number / self.reached)
        limit = plan.target**progress
        gates = state.gates.open()
        loss = self.inner.outer(
            lambda: self.loss.checked(rows, gates, number), gates, lambda: self.loss.checked(inner[0], gates, number)
        )
        gradients = {site: gate.grad for site, gate in gates.items()}
        slopes = self._slopes(gradients, number)
        state.worth.learn(gradients)
        took = float(self.takes(state.gates.positions, 1 - progress))
        # while the budget tightens the hull shows the way; in the end what counts is what a position costs
        state.gates.positions = state.priced.step(
            state.gates.positions,
            slopes,
            lambda p: self.takes(p, 1 - progress),
            limit,
            self.rate(number),
        )
        if progress == 1 or number == plan.steps:
            state.trail.append(state.gates.positions)
        row = {"step": number, "loss": float(loss), "time": took, "limit": limit, "price": state.priced.price}
        closed = state.gates.open()
        for number_of, more in enumerate(inner):
            row["inner"] = self.inner.step(more, closed, number + number_of)
        state.log.append({name: float(f"{value:.6g}") for name, value in row.items()})
        if plan.refresh and number % plan.refresh == 0 and number < plan.steps:
            self._reorder(gates)
        if number in self.refreshes():
            self.inner.refresh(state.gates.open())

    def _slopes(self, gradients: dict[str, Tensor], number: int) -> Tensor:
        """Where positions want to go, or an end with a reason if the way back through the network is lost."""
        for site, gradient in gradients.items():
            if not gradient.isfinite().all():
                raise HarnessError(
                    f"the gradients of {site} are not finite at step {number}",
                    "set compute=fp32, load the model in fp32 (--dtype fp32), or lower inner_lr if weights learn",
                )
        return self.state.gates.slopes(gradients)

    def takes(self, positions: Tensor, convex: float) -> Tensor:
        """What the units that are open take. A position just past the edge of a unit pays for all of it: where units
        are few, positions would settle there, and the budget would be met by none of the models that were seen."""
        return self.time(self.state.gates.whole(positions), convex)

    @property
    def reached(self) -> int:
        """The step that ends on the target for the first time."""
        return max(1, round(self.plan.ramp * self.plan.steps))

    def rate(self, number: int) -> float:
        """The share of the rate: whole while the budget tightens, then falling to nothing."""
        return min(1.0, (self.plan.steps + 1 - number) / (self.plan.steps + 1 - self.reached))

    def refreshes(self) -> tuple[int, int]:
        """When weights in closed form are solved anew: where the budget is reached, and halfway from there."""
        return self.reached, (self.reached + self.plan.steps) // 2

    def _reorder(self, gates: dict[str, Tensor]) -> None:
        """Units change places by what their gates' gradients say, mixed with the order of the statistics."""
        state, mix = self.state, self.plan.mix
        for site, gate in gates.items():
            learned = ranked(state.worth.now(site, gate.detach(), self.tokens))
            state.gates.ranks[site] = ranked(-(mix * learned + (1 - mix) * self.first[site]))
