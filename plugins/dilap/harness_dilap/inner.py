"""The inner level: what the weights do while the gates are learned. None of it stays unless it is merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness import HarnessError
from harness.pruning.gates import gated
from harness.pruning.importance import output_member
from harness.pruning.least_squares import TOKENS, TooLittle, mend
from harness.pruning.training import loop
from harness.pruning.training.adapters import Adapters

TINY = 0.01  # the length of the step that takes a finite difference, as DARTS has it


class Frozen:
    """Dense weights throughout."""

    trains = False

    def step(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int) -> float | None:
        return None

    def outer(self, loss: Callable[[], Tensor], gates: Mapping[str, Tensor], again: Callable[[], Tensor]) -> Tensor:
        """The outer loss, its gradients left in the gates."""
        value = loss()
        value.backward()
        return value.detach()

    def refresh(self, gates: Mapping[str, Tensor]) -> bool:
        """Weights in closed form, where there is one, for these gates."""
        return False

    def save(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...

    def judged(self, merge: bool) -> AbstractContextManager[None]:
        """As long as it lasts the model computes with weights like those that the result will have."""
        return nullcontext()

    def rewrites(self) -> dict[str, Tensor]:
        return {}


class Trained(Frozen):
    """Adapters, or all weights of the layers, trained towards the dense model at the present gates.

    First order the gates see the weights as they are. Unrolled they see them one step ahead (down the plain
    gradient, as far as Adam's first goes), and the gradient through that step as a finite difference (Liu et al. 2019).
    """

    trains = True

    def __init__(self, distance: Any, kind: str, lr: float, rank: int, unrolled: bool) -> None:
        self.distance, self.lr, self.unrolled = distance, lr, unrolled
        model = distance.model
        model.requires_grad_(False)
        self.adapters = Adapters(model, rank, 2 * rank) if kind == "lora" else None
        self.start: dict[str, Tensor] = {}
        if self.adapters is not None:
            self.weights = self.adapters.parameters()
        else:
            names = {m.tensor for s in distance.anatomy.blocks() for m in s.members}
            self.named = {name: model.get_parameter(name) for name in sorted(names)}
            self.start = {name: weight.detach().clone() for name, weight in self.named.items()}
            self.weights = list(self.named.values())
        self.optimiser = loop.optimiser(self.weights, lr)
        self._require(False)

    def step(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int) -> float:
        self._require(True)
        self.optimiser.zero_grad()
        closed = {site: gate.detach() for site, gate in gates.items()}
        loss = self.distance.checked(rows, closed, step)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._require(False)
        return float(loss.detach())

    def outer(self, loss: Callable[[], Tensor], gates: Mapping[str, Tensor], again: Callable[[], Tensor]) -> Tensor:
        if not self.unrolled:
            return super().outer(loss, gates, again)
        names = list(gates)
        before = [weight.detach().clone() for weight in self.weights]
        self._require(True)
        ahead = torch.autograd.grad(again(), self.weights)
        pace = self.lr * sum(weight.numel() for weight in before) ** 0.5 / _length(ahead)
        self._shift(before, ahead, -pace)
        value = loss()
        found = torch.autograd.grad(value, [*gates.values(), *self.weights])
        direct, by_weight = found[: len(names)], found[len(names) :]
        reach = TINY / _length(by_weight)
        sides = []
        for sign in (1, -1):
            self._shift(before, by_weight, sign * reach)
            sides.append(torch.autograd.grad(again(), list(gates.values())))
        self._shift(before, by_weight, 0.0)
        self._require(False)
        for gate, straight, plus, minus in zip(gates.values(), direct, *sides, strict=True):
            gate.grad = straight - pace * (plus - minus) / (2 * reach)
        return value.detach()

    def save(self) -> dict[str, Any]:
        return {
            "weights": [w.detach().cpu().clone() for w in self.weights],
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])

    def judged(self, merge: bool) -> AbstractContextManager[None]:
        return nullcontext() if merge else _Without(self)

    def rewrites(self) -> dict[str, Tensor]:
        if self.adapters is not None:
            return {name: self.adapters.merged(name).cpu() for name in self.adapters.linears}
        return {name: weight.detach().cpu().clone() for name, weight in self.named.items()}

    def _require(self, gradients: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(gradients)

    def _shift(self, before: Sequence[Tensor], along: Sequence[Tensor], by: float) -> None:
        with torch.no_grad():
            for weight, start, direction in zip(self.weights, before, along, strict=True):
                weight.copy_(start + by * direction)


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.float().norm() for tensor in tensors]).norm()) + 1e-12


class _Without:
    """While it lasts, what the inner level learned is laid aside."""

    def __init__(self, inner: Trained) -> None:
        self.inner = inner

    def __enter__(self) -> None:
        named = {} if self.inner.adapters else self.inner.named
        self.learned = {name: weight.detach().clone() for name, weight in named.items()}
        self._put(self.inner.start)
        self._switch(False)

    def __exit__(self, *_: Any) -> None:
        self._put(self.learned)
        self._switch(True)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.inner.named[name].copy_(value)

    def _switch(self, on: bool) -> None:
        for layer in self.inner.adapters.linears.values() if self.inner.adapters else ():
            layer.enable_adapters(on)


class Compensated(Frozen):
    """The closed form: the last linear of each sub-layer solved for at the present gates, now and then.

    Gates that learn on these weights learn what cannot be given back.
    """

    def __init__(self, distance: Any, windows: Tensor, ridge: float) -> None:
        self.distance, self.ridge = distance, ridge
        self.teacher = copy.deepcopy(distance.model)
        self.batches = windows.split(max(1, TOKENS // windows.shape[1]))
        self.names = [output_member(site).tensor for site in distance.anatomy.blocks()]

    def refresh(self, gates: Mapping[str, Tensor]) -> bool:
        model, anatomy = self.distance.model, self.distance.anatomy
        self.load({"weights": [self.teacher.get_parameter(name) for name in self.names]})
        shape = {site: int(gate.sum()) for site, gate in gates.items()}
        closed = {site: gate.detach() for site, gate in gates.items()}
        with gated(model, anatomy, closed), self.distance.cast():
            try:
                mend(model, self.teacher, anatomy, shape, self.batches, self.ridge)
            except TooLittle as error:
                raise HarnessError(error.cause, "set ridge or samples higher") from None
        return True

    def save(self) -> dict[str, Any]:
        return {"weights": [self.distance.model.get_parameter(name).detach().cpu().clone() for name in self.names]}

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, weight in zip(self.names, state["weights"], strict=True):
                self.distance.model.get_parameter(name).copy_(weight)
