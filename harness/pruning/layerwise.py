"""Passes through a network layer by layer, so that no method holds the statistics of more than one layer.

`forward` goes from the first layer to the last. The caller may change a layer before the next one gets its outputs.
`backward` goes from the last to the first and yields gradients. Beside the model, memory holds the hidden states of the
calibration data (for `backward` at the entry of every layer) and the results of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.models.architectures.lookup import architecture_for, task

__all__ = ["Gradients", "Layer", "backward", "check_finite", "first_bad_layer", "forward", "layer_inputs", "watched"]

Watch = Callable[[str, Tensor], None]


@dataclass
class Layer:
    """One layer with its inputs, one tensor per batch. `prefix` begins the names of its tensors."""

    index: int
    prefix: str
    module: nn.Module
    inputs: list[Tensor]
    extras: list[dict[str, Any]]
    outputs: list[Tensor] | None = field(default=None, repr=False)

    def run(self, watch: Watch | None = None) -> list[Tensor]:
        """The outputs for all inputs; `watch` is called with each linear's name and its input."""
        with torch.no_grad(), watched(self.module, watch):
            outputs = [self.module(x, **extra) for x, extra in zip(self.inputs, self.extras, strict=True)]
        check_finite(outputs, f"layer {self.index} gives values that are not finite")
        return outputs

    def run_unchanged(self, watch: Watch | None = None) -> list[Tensor]:
        """The same for a layer that will not be changed: the outputs feed the next layer without another pass."""
        self.outputs = self.run(watch)
        return self.outputs

    def squares(self, settled: bool = False) -> dict[str, Tensor]:
        """Per linear the mean over sequences of the sum over tokens of x^2."""
        totals: dict[str, Tensor] = {}

        def add(name: str, x: Tensor) -> None:
            squares = x.float().pow(2).flatten(0, -2).sum(dim=0)
            totals[name] = totals[name] + squares if name in totals else squares

        (self.run_unchanged if settled else self.run)(add)
        sequences = sum(x.shape[0] for x in self.inputs)
        return {name: total / sequences for name, total in totals.items()}

    def by_weight(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values per linear of this layer, under the full names of the linears' weights."""
        return {f"{self.prefix}.{name}.weight": value for name, value in values.items()}


@dataclass
class Gradients:
    """One layer's gradients of the mean loss, by the tensors' full names, and if asked for the mean of their squares
    over batches."""

    index: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor]


def forward(model: Any, batches: Iterable[Tensor]) -> Iterator[Layer]:
    """The layers in order, each with what enters it."""
    hidden, extras = layer_inputs(model, batches)
    for index, (prefix, module) in enumerate(architecture_for(model).layers(model).items()):
        layer = Layer(index, prefix, module, hidden, [extra[index] for extra in extras])
        yield layer
        hidden = layer.outputs if layer.outputs is not None else layer.run()


def backward(model: Any, batches: Iterable[Tensor], squares: bool = False) -> Iterator[Gradients]:
    """The layers from last to first, each with the gradients of the task's loss.

    Hidden states are held at the entry of every layer and each layer is run again for its gradients, so that memory
    never holds the gradients of two layers. All batches have equal weight, whatever their length.
    """
    batches = [batch.to(model.device) for batch in batches]
    layers = []
    for layer in forward(model, batches):
        layer.run_unchanged()
        layers.append(layer)
    assert layers[-1].outputs is not None
    flow = [_head_gradient(model, x, ids) for x, ids in zip(layers[-1].outputs, batches, strict=True)]
    for layer in reversed(layers):
        layer.outputs = None
        weights = {f"{layer.prefix}.{name}": p for name, p in layer.module.named_parameters()}
        mean = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        second = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()} if squares else {}
        for at, (x, extra) in enumerate(zip(layer.inputs, layer.extras, strict=True)):
            with torch.enable_grad(), trainable(weights.values()):
                x = x.detach().requires_grad_()
                gradients = torch.autograd.grad(layer.module(x, **extra), [x, *weights.values()], flow[at])
            flow[at] = gradients[0]
            for name, gradient in zip(weights, gradients[1:], strict=True):
                mean[name] += gradient.float() / len(batches)
                if squares:
                    second[name] += gradient.float().pow(2) / len(batches)
        check_finite(mean.values(), f"the gradients of layer {layer.index} are not finite")
        layer.inputs = []
        yield Gradients(layer.index, mean, second)


def layer_inputs(model: Any, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """What enters the first layer, and the masks and positions that each layer is called with.

    Those depend on a batch's shape alone, so that only the first batch of a shape goes through the whole model.
    """
    kind = architecture_for(model)
    layers, run = list(kind.layers(model).values()), task(kind.task).forward
    hidden: list[Tensor] = []
    by_shape: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    per_batch: list[list[dict[str, Any]]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module is layers[0]:
            hidden.append(args[0])
        if is_first_of_shape:
            extras.append(kwargs)
        else:
            raise _StopAtFirstLayer

    with torch.no_grad(), _hooks(layers, record):
        for batch in batches:
            is_first_of_shape = tuple(batch.shape) not in by_shape
            extras: list[dict[str, Any]] = []
            try:
                run(model, {"input_ids": batch})
                by_shape[tuple(batch.shape)] = extras
            except _StopAtFirstLayer:
                pass
            per_batch.append(by_shape[tuple(batch.shape)])
    check_finite(hidden, "the embeddings are not finite")
    return hidden, per_batch


class _StopAtFirstLayer(Exception):
    """Ends a pass as soon as the input of the first layer is recorded."""


@contextmanager
def _hooks(layers: Iterable[nn.Module], record: Callable[..., None]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched(module: nn.Module, watch: Watch | None) -> Iterator[None]:
    """Call `watch` with the name and the input of each linear of the module, meanwhile."""

    def call_watch(name: str) -> Callable[..., None]:
        return lambda _, args: watch(name, args[0].detach())  # type: ignore[misc]

    linears = module.named_modules() if watch is not None else ()
    hooks = [m.register_forward_pre_hook(call_watch(name)) for name, m in linears if isinstance(m, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def trainable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Let these tensors have gradients, meanwhile."""
    before = [(w, w.requires_grad) for w in weights]
    for w, _ in before:
        w.requires_grad_()
    try:
        yield
    finally:
        for w, was in before:
            w.requires_grad_(was)


def _head_gradient(model: Any, x: Tensor, batch: Tensor) -> Tensor:
    kind = architecture_for(model)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = task(kind.task).loss(kind.head(model, x), {"input_ids": batch})
        return torch.autograd.grad(loss, x)[0]


def check_finite(tensors: Iterable[Tensor], cause: str) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise HarnessError(
            f"{cause} on the calibration text",
            "load the model in fp32 (--dtype fp32); if it stays, its weights are bad",
        )


def first_bad_layer(model: Any, ids: Tensor) -> str:
    """`; ` and the first layer that gives values that are not finite; empty if none does."""
    try:
        for _ in forward(model, [ids]):
            pass
    except HarnessError as error:
        return f"; {error.cause}"
    return ""
