"""Shared importances of units: magnitude, activation, Taylor. Each returns site -> one score per unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.anatomy import Anatomy, Member, Site


def per_unit(element_scores: Tensor, member: Member) -> Tensor:
    """Element scores of a tensor summed to one per unit of the site that cuts its `dim`."""
    others = [d for d in range(element_scores.dim()) if d != member.dim]
    lines = element_scores.sum(dim=others) if others else element_scores
    return lines.reshape(-1, member.block).sum(dim=1)


def grouped(anatomy: Anatomy, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Element scores summed over the coupled group; tensors without scores count nothing."""
    found = {}
    for site in anatomy.blocks():
        parts = [per_unit(elements[m.tensor].float(), m) for m in site.members if m.tensor in elements]
        found[site.name] = torch.stack(parts).sum(dim=0).cpu()
    return found


def magnitude(anatomy: Anatomy, state: Mapping[str, Tensor], p: int = 2) -> dict[str, Tensor]:
    """Sum of |w|^p over the weights of the coupled group."""
    wanted = {m.tensor for site in anatomy.blocks() for m in site.members if m.tensor.endswith(".weight")}
    return grouped(anatomy, {name: state[name].detach().float().abs().pow(p) for name in wanted})


def output_member(site: Site) -> Member:
    """The linear that carries a site back into the residual stream."""
    return next(m for m in site.members if m.dim == 1)


def output_magnitude(anatomy: Anatomy, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """L2 norms of the output projection's columns, summed over a unit's columns."""
    found = {}
    for site in anatomy.blocks():
        member = output_member(site)
        norms = state[member.tensor].detach().float().norm(dim=0)
        found[site.name] = norms.reshape(-1, member.block).sum(dim=1).cpu()
    return found


def taylor(model: nn.Module, anatomy: Anatomy, batches: Iterable[Tensor], second_order: bool = False) -> dict[str, Any]:
    """|w g| per element, g from the mean loss of all batches; or |w^2 a|, a the mean of squared gradients."""
    names = {m.tensor for site in anatomy.blocks() for m in site.members if m.tensor.endswith(".weight")}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in names}
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    count = 0
    for batch in batches:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            sums[name] += grad.float().pow(2) if second_order else grad.float()
        count += 1
    power = 2 if second_order else 1
    with torch.no_grad():
        return grouped(anatomy, {n: (w.float().pow(power) * sums[n] / count).abs() for n, w in weights.items()})


@dataclass
class Layer:
    """One decoder layer while its inputs are in hand. `norms` maps a linear to the mean over sequences of sum x^2."""

    index: int
    module: nn.Module
    norms: dict[str, Tensor]


def stream(model: Any, batches: Iterable[Tensor]) -> Iterator[Layer]:
    """Walk the decoder a layer at a time, holding one layer's activations.

    Whoever iterates may change the layer in place before asking for the next one: the next layer's inputs come from
    the changed layer, which is what sequential methods mean.
    """
    layers = model.model.layers
    with torch.no_grad():
        hidden, extras = _first_inputs(model, layers, batches)
        for index, layer in enumerate(layers):
            norms, sequences = _watch(layer), 0
            for at, x in enumerate(hidden):
                layer(x, **extras[at][index])
                sequences += x.shape[0]
            yield Layer(index, layer, {name: total / sequences for name, total in norms.finish().items()})
            hidden = [layer(x, **extras[at][index]) for at, x in enumerate(hidden)]


def activation(model: Any, anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """|W| times the norm of its input, averaged over rows, at the output side of each site."""
    found = {}
    for layer in stream(model, batches):
        for site in anatomy.blocks():
            if site.layer != layer.index:
                continue
            member = output_member(site)
            linear = member.tensor.removeprefix(f"model.layers.{layer.index}.").removesuffix(".weight")
            weight = layer.module.get_submodule(linear).weight.float().abs()  # type: ignore[operator]
            columns = (weight * layer.norms[linear].sqrt()).mean(dim=0)
            found[site.name] = columns.reshape(-1, member.block).sum(dim=1).cpu()
    return found


def _first_inputs(model: Any, layers: Any, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[list[dict]]]:
    """What enters the first layer, and the masks and positions each layer is called with."""
    hidden: list[Tensor] = []
    extras: list[list[dict]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is layers[0]:
            hidden.append(args[0])
        extras[-1].append(kwargs)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        for batch in batches:
            extras.append([])
            model(batch, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return hidden, extras


class _watch:
    """Sums the squares of what enters each linear of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.totals: dict[str, Tensor] = {}
        self.hooks = [
            module.register_forward_pre_hook(self._add(name))
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def _add(self, name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares = args[0].detach().float().pow(2).flatten(0, -2).sum(dim=0)
            self.totals[name] = self.totals.get(name, 0) + squares

        return add

    def finish(self) -> dict[str, Tensor]:
        for hook in self.hooks:
            hook.remove()
        return self.totals
