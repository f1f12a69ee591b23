"""The search: outer steps on the gates under a tightening budget, and inner steps on the weights. It can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import Context, HarnessError
from harness.pruning.training.loop import random_batches
from harness_dilap.gates import Gates, UnitValues, ranks_of
from harness_dilap.price import PricedSteps
from harness_dilap.storage import load, save

SAVE_EVERY = 10  # steps
STRETCHES = 3  # parts of the course of the search that are averaged
FEWEST = 4  # least number of steps in a mean


@dataclass(frozen=True)
class Plan:
    """The settings of one search. `target` is a share of the dense model's time."""

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
        """A plan from an object with settings of the same names."""
        return Plan(target, *(getattr(settings, field.name) for field in fields(Plan)[1:]))


@dataclass(frozen=True)
class Splits:
    """Indices of calibration windows: for the gates, for the weights, and for comparing candidate shapes."""

    outer: list[int]
    inner: list[int]
    held_out: list[int]

    @staticmethod
    def of(count: int, held_out: int, bilevel: bool) -> Splits:
        """Split `count` windows: the last ones are held out, and the others are halved for a bilevel search."""
        rows = list(range(count))
        training, last = rows[: count - held_out], rows[count - held_out :]
        half = len(training) // 2
        return Splits(training[:half], training[half:], last) if bilevel else Splits(training, [], last)


@dataclass
class State:
    """The complete state of a search between two steps."""

    gates: Gates
    priced: PricedSteps
    values: UnitValues
    step: int = 0
    trail: list[Tensor] = field(default_factory=list)  # the positions after each step at the full budget
    log: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The state as it is stored."""
        gates, priced, values = self.gates, self.priced, self.values
        return {
            "step": self.step,
            "positions": gates.positions,
            "ranks": gates.ranks,
            "priced": [priced.mean, priced.square, priced.steps, priced.price],
            "worth": [values.gradient, values.square, values.weight],
            "trail": self.trail,
            "log": self.log,
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.step = stored["step"]
        self.trail = stored["trail"]
        self.log = stored["log"]
        self.gates.positions = stored["positions"]
        self.gates.ranks = stored["ranks"]
        self.priced.mean, self.priced.square, self.priced.steps, self.priced.price = stored["priced"]
        self.values.gradient, self.values.square, self.values.weight = stored["worth"]

    def candidates(self) -> list[Tensor]:
        """Candidate positions: means over all steps at the full budget, over the last ones, and over stretches.

        The positions of a single step swing with the text of its batch. Means swing less.
        """
        trail = torch.stack(self.trail)
        means, count = [], len(trail)
        while count >= FEWEST or not means:
            means.append(trail[-count:].mean(0))
            count //= 2
        return means + [part.mean(0) for part in trail.split(max(1, len(trail) // STRETCHES))]


class Search:
    """One search for one target. It knows the network only by `loss(rows, gates, step)` and the device by `time`."""

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
        self.plan = plan
        self.splits = splits
        self.loss = loss
        self.inner = inner
        self.time = time
        self.ctx = ctx
        self.file = file
        self.tokens = loss.tokens(plan.batch)
        self.first_ranks = {site: ranks_of(site_scores) for site, site_scores in scores.items()}
        units = {site: len(site_scores) for site, site_scores in scores.items()}
        gates = Gates(units, dict(self.first_ranks), torch.ones(len(units)), plan.softness)
        self.state = State(gates, PricedSteps.of(gates.positions, plan.lr), UnitValues.of(units, plan.memory))
        if not plan.depth:
            self.state.priced.lowest = torch.tensor([1 / count for count in units.values()])

    def run(self) -> State:
        """Run to the last step, from the stored state or else from the dense model."""
        plan, state = self.plan, self.state
        if (stored := load(self.file)) is not None:
            state.restore(stored["search"])
            if stored["inner"]:
                self.inner.load(stored["inner"])
        outer = list(random_batches(torch.tensor(self.splits.outer), plan.batch, plan.steps, self.ctx.seed("outer")))
        inner_steps = plan.steps * plan.inner_steps if self.inner.trains else 0
        inner = list(random_batches(torch.tensor(self.splits.inner), plan.batch, inner_steps, self.ctx.seed("inner")))
        while state.step < plan.steps:
            at = state.step * plan.inner_steps
            self._outer(outer[state.step].tolist(), [rows.tolist() for rows in inner[at : at + plan.inner_steps]])
            state.step += 1
            if state.step % SAVE_EVERY == 0 or state.step == plan.steps:
                save({"search": state.to_dict(), "inner": self.inner.save()}, self.file)
            self.ctx.progress(state.step, plan.steps)
        return state

    def _outer(self, rows: list[int], inner: list[list[int]]) -> None:
        """One outer step on the gates, followed by its inner steps on the weights."""
        plan, state, number = self.plan, self.state, self.state.step + 1
        progress = min(1.0, number / self.ramp_end)
        limit = plan.target**progress
        gates = state.gates.open()
        loss = self.inner.outer(
            lambda: self.loss.finite_loss(rows, gates, number),
            gates,
            lambda: self.loss.finite_loss(inner[0], gates, number),
        )
        gradients = {site: gate.grad for site, gate in gates.items()}
        position_gradients = self._position_gradients(gradients, number)
        state.values.update(gradients)
        time = float(self.open_time(state.gates.positions, 1 - progress))
        # The time moves from its convex hull to the exact curve while the budget tightens.
        state.gates.positions = state.priced.step(
            state.gates.positions,
            position_gradients,
            lambda p: self.open_time(p, 1 - progress),
            limit,
            self.rate(number),
        )
        if progress == 1 or number == plan.steps:
            state.trail.append(state.gates.positions)
        row = {"step": number, "loss": float(loss), "time": time, "limit": limit, "price": state.priced.price}
        gates_after = state.gates.open()
        for at, inner_rows in enumerate(inner):
            row["inner"] = self.inner.step(inner_rows, gates_after, number + at)
        state.log.append({name: float(f"{value:.6g}") for name, value in row.items()})
        if plan.refresh and number % plan.refresh == 0 and number < plan.steps:
            self._reorder(gates)
        if number in self.refresh_steps():
            self.inner.refresh(state.gates.open())

    def _position_gradients(self, gradients: dict[str, Tensor], number: int) -> Tensor:
        """The gradients of the loss to the positions. Raises HarnessError if they are not finite."""
        for site, gradient in gradients.items():
            if not gradient.isfinite().all():
                raise HarnessError(
                    f"the gradients of {site} are not finite at step {number}",
                    "set compute=fp32, load the model in fp32 (--dtype fp32), or lower inner_lr if weights learn",
                )
        return self.state.gates.position_gradients(gradients)

    def open_time(self, positions: Tensor, convex: float) -> Tensor:
        """The time of the open units at these positions.

        A position just past the edge of a unit pays for the whole unit. Otherwise, at sites of few units, positions
        would settle just past an edge, and no model that the search runs would meet the budget.
        """
        return self.time(self.state.gates.open_shares(positions), convex)

    @property
    def ramp_end(self) -> int:
        """The first step whose budget is the target."""
        return max(1, round(self.plan.ramp * self.plan.steps))

    def rate(self, number: int) -> float:
        """The share of the learning rate: 1 while the budget tightens, then falling linearly towards zero."""
        return min(1.0, (self.plan.steps + 1 - number) / (self.plan.steps + 1 - self.ramp_end))

    def refresh_steps(self) -> tuple[int, int]:
        """The steps after which the weights are solved for: when the target is reached, and halfway to the end."""
        return self.ramp_end, (self.ramp_end + self.plan.steps) // 2

    def _reorder(self, gates: dict[str, Tensor]) -> None:
        """Order the units anew, by the values from their gates' gradients mixed with the first order."""
        state, mix = self.state, self.plan.mix
        for site, gate in gates.items():
            learned = ranks_of(state.values.of_site(site, gate.detach(), self.tokens))
            state.gates.ranks[site] = ranks_of(-(mix * learned + (1 - mix) * self.first_ranks[site]))
