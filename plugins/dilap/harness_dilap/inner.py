"""The inner level of the search: how the weights change while the gates learn. Changes stay only if merged."""

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
from harness.pruning.least_squares import TOKENS, Underdetermined, compensate
from harness.pruning.training import loop
from harness.pruning.training.adapters import Adapters

DIFFERENCE = 0.01  # length of the weight change for the finite difference, as in DARTS


class Frozen:
    """An inner level without changes: the weights stay dense. It is also the base class of the others."""

    trains = False

    def step(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int) -> float | None:
        """One training step on the weights. Returns its loss, or None if nothing trains."""
        return None

    def outer(
        self, loss: Callable[[], Tensor], gates: Mapping[str, Tensor], inner_loss: Callable[[], Tensor]
    ) -> Tensor:
        """Compute the outer loss and leave its gradients in the gates. `inner_loss` is used if unrolled."""
        value = loss()
        value.backward()
        return value.detach()

    def refresh(self, gates: Mapping[str, Tensor]) -> bool:
        """Solve for the weights at these gates in closed form. Returns False if there is none."""
        return False

    def save(self) -> dict[str, Any]:
        """The state from which `load` continues."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...

    def result_weights(self, merge: bool) -> AbstractContextManager[None]:
        """Inside the block, the model computes with weights like those of the result."""
        return nullcontext()

    def rewrites(self) -> dict[str, Tensor]:
        """The learned weights by name, for a result that merges them."""
        return {}


class Trained(Frozen):
    """Trains adapters, or all weights of the layers, towards the dense model at the present gates.

    In first order the gates see the weights as they are. Unrolled, they see the weights one step ahead, down the plain
    gradient by the length of Adam's first step. The gradient through that step is a finite difference, as in Liu et
    al. 2019.
    """

    trains = True

    def __init__(self, distance: Any, kind: str, lr: float, rank: int, unrolled: bool) -> None:
        self.distance = distance
        self.lr = lr
        self.unrolled = unrolled
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
        fixed = {site: gate.detach() for site, gate in gates.items()}
        loss = self.distance.finite_loss(rows, fixed, step)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._require(False)
        return float(loss.detach())

    def outer(
        self, loss: Callable[[], Tensor], gates: Mapping[str, Tensor], inner_loss: Callable[[], Tensor]
    ) -> Tensor:
        if not self.unrolled:
            return super().outer(loss, gates, inner_loss)
        before = [weight.detach().clone() for weight in self.weights]
        # Take one step on the weights, and the gradients of the outer loss there.
        self._require(True)
        weight_gradients = torch.autograd.grad(inner_loss(), self.weights)
        step_size = self.lr * sum(weight.numel() for weight in before) ** 0.5 / _length(weight_gradients)
        self._shift(before, weight_gradients, -step_size)
        value = loss()
        gradients = torch.autograd.grad(value, [*gates.values(), *self.weights])
        direct, by_weight = gradients[: len(gates)], gradients[len(gates) :]
        # The gradient through the step is a finite difference along the outer loss's gradient to the weights.
        difference = DIFFERENCE / _length(by_weight)
        self._shift(before, by_weight, difference)
        plus = torch.autograd.grad(inner_loss(), list(gates.values()))
        self._shift(before, by_weight, -difference)
        minus = torch.autograd.grad(inner_loss(), list(gates.values()))
        self._shift(before, by_weight, 0.0)
        self._require(False)
        for gate, gate_direct, gate_plus, gate_minus in zip(gates.values(), direct, plus, minus, strict=True):
            gate.grad = gate_direct - step_size * (gate_plus - gate_minus) / (2 * difference)
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

    def result_weights(self, merge: bool) -> AbstractContextManager[None]:
        return nullcontext() if merge else _DenseWeights(self)

    def rewrites(self) -> dict[str, Tensor]:
        if self.adapters is not None:
            return {name: self.adapters.merged(name).cpu() for name in self.adapters.linears}
        return {name: weight.detach().cpu().clone() for name, weight in self.named.items()}

    def _require(self, gradients: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(gradients)

    def _shift(self, before: Sequence[Tensor], directions: Sequence[Tensor], factor: float) -> None:
        """Set the weights to `before` + `factor` x `directions`."""
        with torch.no_grad():
            for weight, start, direction in zip(self.weights, before, directions, strict=True):
                weight.copy_(start + factor * direction)


def _length(tensors: Sequence[Tensor]) -> float:
    """The L2 norm over all tensors; never zero."""
    return float(torch.stack([tensor.float().norm() for tensor in tensors]).norm()) + 1e-12


class _DenseWeights:
    """A context manager that replaces the learned weights by the dense ones, or switches the adapters off."""

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
    """Solves for the last linear of each sub-layer at the present gates, by least squares, at some steps.

    Gates that learn on these weights see only the error that least squares cannot compensate.
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
        fixed = {site: gate.detach() for site, gate in gates.items()}
        with gated(model, anatomy, fixed), self.distance.cast():
            try:
                compensate(model, self.teacher, anatomy, shape, self.batches, self.ridge)
            except Underdetermined as error:
                raise HarnessError(error.cause, "set ridge or samples higher") from None
        return True

    def save(self) -> dict[str, Any]:
        return {"weights": [self.distance.model.get_parameter(name).detach().cpu().clone() for name in self.names]}

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, weight in zip(self.names, state["weights"], strict=True):
                self.distance.model.get_parameter(name).copy_(weight)
