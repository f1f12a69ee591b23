"""The three trainings of Compresso: LoRA alone, masks with LoRA towards the target, LoRA on the remaining units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import Budget, Context, Cut, to_remove
from harness.models.anatomy.core import Anatomy
from harness.pruning.training import loop
from harness.pruning.training.adapters import Adapters

from . import choose, gates
from .text import Text, training_text

RANK, ALPHA, TARGETS = 8, 8, ("q_proj", "v_proj")


@dataclass
class Compresso:
    samples: int = 40
    length: int = 64
    batch: int = 1
    lora_epochs: int = 1
    prune_epochs: int = 7
    ramp_epochs: int = 4
    tune_epochs: int = 1
    lr: float = 5e-5
    mask_lr: float = 0.1
    multiplier_lr: float = 0.1
    tune_lr: float = 4e-4
    tune_accumulation: int = 1
    prompt: str = ""

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        """The adapters after the epochs without masks. They are the same for every budget."""
        text = training_text(ctx, self.samples, self.length, self.prompt)
        steps = self.lora_epochs * self.epoch(text)
        with loop.seeded(ctx.seed("adapters")), adapted(model) as adapters:
            optim = loop.optimiser(adapters.parameters(), self.lr)
            for step, rows in enumerate(loop.random_batches(text.rows, self.batch, steps, ctx.seed("order", "lora"))):
                optim.zero_grad()
                text.loss(model, rows, step).backward()
                optim.step()
                ctx.progress(step + 1, steps)
            return {name: weight.detach().cpu().clone() for name, weight in weights(adapters).items()}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Mapping[str, Tensor]) -> Cut:
        anatomy, goal = ctx.anatomy, to_remove(ctx.anatomy, budget.value)
        if not goal:
            return Cut(why="nothing is cut")
        choose.check_reach(anatomy, budget.value)
        text = training_text(ctx, self.samples, self.length, self.prompt)
        with adapted(model) as adapters:
            for name, weight in weights(adapters).items():
                weight.data.copy_(state[name])
            log_alpha = self.learn(model, adapters, text, budget.value, ctx)
            masks = choose.to_budget(anatomy, log_alpha, choose.expected_units(anatomy, log_alpha), goal)
            self.tune(model, adapters, text, masks, ctx)
            merged = {name: adapters.merged(name).cpu() for name in adapters.linears}
        sparsity = float(expected_sparsity(anatomy, log_alpha))
        keep = {name: units.nonzero().flatten().tolist() for name, units in masks.items()}
        return Cut(keep, rewrites=merged, why=f"learned masks, at an expected sparsity of {sparsity:.4f}")

    def learn(self, model: Any, adapters: Adapters, text: Text, ratio: float, ctx: Context) -> dict[str, Tensor]:
        """Train gates and adapters together towards the target sparsity. Returns log alpha of every unit."""
        steps, ramp = self.prune_epochs * self.epoch(text), self.ramp_epochs * self.epoch(text)
        start = gates.initial_gates(ctx.anatomy, ctx.seed("gates"))
        log_alpha = {name: values.to(model.device).requires_grad_() for name, values in start.items()}
        constraint = gates.Constraint(self.multiplier_lr, model.device)
        optims = [
            loop.optimiser(adapters.parameters(), self.lr),
            loop.optimiser(log_alpha.values(), self.mask_lr),
            constraint.optimiser,
        ]
        generator = torch.Generator().manual_seed(ctx.seed("draws"))
        for step, rows in enumerate(loop.random_batches(text.rows, self.batch, steps, ctx.seed("order", "masks"))):
            with gates.masked(model, ctx.anatomy, gates.sample_gates(log_alpha, generator)):
                loss = text.loss(model, rows, step)
            sparsity = expected_sparsity(ctx.anatomy, log_alpha)
            loss = loss + constraint.penalty(sparsity - gates.target(step, ramp, ratio))
            for optim in optims:
                optim.zero_grad()
            loss.backward()
            for optim in optims:
                optim.step()
            gates.clamp(log_alpha)
            ctx.progress(step + 1, steps + self.tune_steps(text))
        return {name: values.detach().cpu() for name, values in log_alpha.items()}

    def tune(self, model: Any, adapters: Adapters, text: Text, masks: Mapping[str, Tensor], ctx: Context) -> None:
        """Train the adapters with the chosen units masked, and the other units unscaled."""
        steps, before = self.tune_steps(text), self.prune_epochs * self.epoch(text)
        optim = loop.optimiser(adapters.parameters(), self.tune_lr)
        binary = {name: units.float().to(model.device) for name, units in masks.items()}
        rows_per_step = self.batch * self.tune_accumulation
        with gates.masked(model, ctx.anatomy, binary):
            for step, rows in enumerate(
                loop.random_batches(text.rows, rows_per_step, steps, ctx.seed("order", "tune"))
            ):
                loop.set_learning_rate(optim, self.tune_lr * loop.cosine(step, steps))
                optim.zero_grad()
                for part in rows.split(self.batch):
                    (text.loss(model, part, step) / self.tune_accumulation).backward()
                optim.step()
                ctx.progress(before + step + 1, before + steps)

    def epoch(self, text: Text) -> int:
        """The number of batches in an epoch."""
        return math.ceil(len(text.rows) / self.batch)

    def tune_steps(self, text: Text) -> int:
        """The number of optimiser steps of the last training."""
        return math.ceil(self.tune_epochs * self.epoch(text) / self.tune_accumulation)


def expected_sparsity(anatomy: Anatomy, log_alpha: Mapping[str, Tensor]) -> Tensor:
    """The sparsity that the gates are expected to give, with gradients."""
    return gates.sparsity(anatomy, {name: gates.open_probability(values) for name, values in log_alpha.items()})


def weights(adapters: Adapters) -> dict[str, Tensor]:
    """The weights of all adapters by name, as `prepare` stores them."""
    parts = {f"{name} a": adapters.a(name) for name in adapters.linears}
    return parts | {f"{name} b": adapters.b(name) for name in adapters.linears}


@contextmanager
def adapted(model: Any) -> Iterator[Adapters]:
    """Add LoRA to queries and values inside the block. The model's own weights are unchanged afterwards."""
    adapters = Adapters(model, RANK, ALPHA, targets=TARGETS)
    try:
        yield adapters
    finally:
        for weight in adapters.parameters():
            weight.data.zero_()
        adapters.merge()
