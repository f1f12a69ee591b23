"""Walks through a decoder a layer at a time, so that no method holds more than one layer's statistics.

`forward` goes from the first layer to the last and lets whoever iterates change a layer before the next one sees its
outputs. `backward` goes from the last to the first and yields gradients. What is kept are the model, the calibration
text's hidden states (for `backward` at the entry of every layer) and one layer's results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError

Watch = Callable[[str, Tensor], None]


@dataclass
class Layer:
    """One decoder layer while its inputs are in hand, one tensor per batch."""

    index: int
    module: nn.Module
    inputs: list[Tensor]
    extras: list[dict[str, Any]]
    outputs: list[Tensor] | None = field(default=None, repr=False)

    def run(self, watch: Watch | None = None) -> list[Tensor]:
        """A pass over the inputs; `watch` hears each linear's name and what enters it."""
        with torch.no_grad(), watched(self.module, watch):
            found = [self.module(x, **extra) for x, extra in zip(self.inputs, self.extras, strict=True)]
        finite(found, f"layer {self.index} gives values that are not finite")
        return found

    def settled(self, watch: Watch | None = None) -> list[Tensor]:
        """The same by one who leaves the layer as it is: these outputs feed the next layer without another pass."""
        self.outputs = self.run(watch)
        return self.outputs

    def squares(self, settled: bool = False) -> dict[str, Tensor]:
        """Per linear the mean over sequences of the sum over tokens of x^2."""
        totals: dict[str, Tensor] = {}

        def add(name: str, x: Tensor) -> None:
            found = x.float().pow(2).flatten(0, -2).sum(dim=0)
            totals[name] = totals[name] + found if name in totals else found

        (self.settled if settled else self.run)(add)
        sequences = sum(x.shape[0] for x in self.inputs)
        return {name: total / sequences for name, total in totals.items()}


@dataclass
class Gradients:
    """One layer's gradients of the mean loss, by the tensors' full names, and if asked for the mean of their squares
    over batches."""

    index: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor]


def forward(model: Any, batches: Iterable[Tensor]) -> Iterator[Layer]:
    """The layers in order, each with what enters it."""
    hidden, extras = entries(model, batches)
    for index, module in enumerate(model.model.layers):
        layer = Layer(index, module, hidden, [extra[index] for extra in extras])
        yield layer
        hidden = layer.outputs if layer.outputs is not None else layer.run()


def backward(model: Any, batches: Iterable[Tensor], squares: bool = False) -> Iterator[Gradients]:
    """The layers from last to first, each with the gradients of the language loss.

    Hidden states are kept at the entry of every layer and each layer is run again for its gradients, so that the
    gradients of one layer are all there ever are. Batches count alike, whatever their length.
    """
    batches = [batch.to(model.device) for batch in batches]
    layers = []
    for layer in forward(model, batches):
        layer.settled()
        layers.append(layer)
    assert layers[-1].outputs is not None
    flow = [_head_gradient(model, x, ids) for x, ids in zip(layers[-1].outputs, batches, strict=True)]
    for layer in reversed(layers):
        layer.outputs = None
        prefix = f"model.layers.{layer.index}."
        weights = {prefix + name: p for name, p in layer.module.named_parameters()}
        mean = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        second = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()} if squares else {}
        for at, (x, extra) in enumerate(zip(layer.inputs, layer.extras, strict=True)):
            with torch.enable_grad(), trainable(weights.values()):
                x = x.detach().requires_grad_()
                found = torch.autograd.grad(layer.module(x, **extra), [x, *weights.values()], flow[at])
            flow[at] = found[0]
            for name, gradient in zip(weights, found[1:], strict=True):
                mean[name] += gradient.float() / len(batches)
                if squares:
                    second[name] += gradient.float().pow(2) / len(batches)
        finite(mean.values(), f"the gradients of layer {layer.index} are not finite")
        layer.inputs = []
        yield Gradients(layer.index, mean, second)


def entries(model: Any, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """What enters the first layer, and the masks and positions that each layer is called with.

    Those depend on a batch's shape alone, so that only the first batch of a shape goes through the whole model.
    """
    layers = model.model.layers
    hidden: list[Tensor] = []
    known: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    found: list[list[dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module is layers[0]:
            hidden.append(args[0])
        if whole:
            extras.append(kwargs)
        else:
            raise _Enough

    with torch.no_grad(), _each(layers, note):
        for batch in batches:
            whole = tuple(batch.shape) not in known
            extras: list[dict[str, Any]] = []
            try:
                model(batch.to(model.device), use_cache=False, logits_to_keep=1)
                known[tuple(batch.shape)] = extras
            except _Enough:
                pass
            found.append(known[tuple(batch.shape)])
    finite(hidden, "the embeddings are not finite")
    return hidden, found


class _Enough(Exception):
    """The first layer's input is in hand."""


@contextmanager
def _each(layers: Iterable[nn.Module], note: Callable[..., None]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched(module: nn.Module, watch: Watch | None) -> Iterator[None]:
    """`watch` hears what enters each linear of the module."""

    def hear(name: str) -> Callable[..., None]:
        return lambda _, args: watch(name, args[0].detach())  # type: ignore[misc]

    linears = module.named_modules() if watch is not None else ()
    hooks = [m.register_forward_pre_hook(hear(name)) for name, m in linears if isinstance(m, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def trainable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Gradients for these tensors, and afterwards as it was."""
    before = [(w, w.requires_grad) for w in weights]
    for w, _ in before:
        w.requires_grad_()
    try:
        yield
    finally:
        for w, was in before:
            w.requires_grad_(was)


def language_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean negative log likelihood of each next token."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _head_gradient(model: Any, x: Tensor, ids: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = language_loss(model.lm_head(model.model.norm(x)), ids)
        return torch.autograd.grad(loss, x)[0]


def finite(tensors: Iterable[Tensor], cause: str) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise HarnessError(
            f"{cause} on the calibration text",
            "load the model in fp32 (--dtype fp32); if it stays, its weights are bad",
        )


def by_linear(layer: int, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was seen at a layer's linears, by the full names of their weights."""
    return {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in found.items()}


def first_bad_layer(model: Any, ids: Tensor) -> str:
    """The end of a sentence about a loss that is not finite, where a layer is to blame."""
    try:
        for _ in forward(model, [ids]):
            pass
    except HarnessError as found:
        return f"; {found.cause}"
    return ""
