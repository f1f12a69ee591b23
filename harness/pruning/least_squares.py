"""Least squares: restores in closed form, sub-layer by sub-layer, what a cut took from the residual stream.

The residual streams of the dense and of the pruned model go through the layers side by side. Where a sub-layer lost
something, its last linear is solved for: with its inputs as they are now, the pruned stream comes as near to the dense
one as a linear can bring it. Later sub-layers get the solved outputs, so that they reduce what error remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.api import Context, Shape
from harness.errors import HarnessError, Unsupported
from harness.models.anatomy.core import Anatomy, Site
from harness.models.architectures.lookup import architecture, architecture_for

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TOKENS", "Underdetermined", "compensate"]

Position = tuple[int, str]  # a layer's number and the kind of sub-layer
FINE = 1e-4  # a ridge below which the rounding of fp32 sums would count, differently on every CPU
TOKENS = 2048  # that go through a sub-layer at once


@dataclass
class LeastSquares:
    samples: int = 32
    length: int = 256
    ridge: float = 0.1

    def recover(self, model: Any, teacher: Any, ctx: Context) -> None:
        cut, anatomy = ctx.cut, ctx.anatomy
        if not all(bool(mask.all()) for mask in cut.masks.values()):
            raise Unsupported(
                "least-squares solves for all rows of a matrix at once; with masked elements each row needs its own",
                "use --recovery lora",
            )
        if not cut.keep:
            return
        assert ctx.calibration is not None
        batches = ctx.calibration(self.samples, self.length).split(max(1, TOKENS // self.length))
        numbers = architecture(anatomy.architecture).layer_numbers(anatomy, cut.shape)
        channels = cut.keep.get("hidden", slice(None))
        compensate(model, teacher, anatomy, cut.shape, batches, self.ridge, numbers, channels, ctx.progress)


def compensate(
    model: Any,
    teacher: Any,
    anatomy: Anatomy,
    shape: Shape,
    batches: Sequence[Tensor],
    ridge: float,
    numbers: Mapping[int, int] | None = None,
    channels: Any = slice(None),
    progress: Callable[..., None] = lambda *_, **__: None,
) -> None:
    """Solve for the last linear of every sub-layer that lost something, in place, from the first to the last.

    `numbers` are the model's own of the dense layers, where some are gone; a model whose lost units are gated to zero
    keeps all of them. `channels` are those of the residual stream that it has.
    """
    import torch

    groups = replacements(anatomy, shape)
    with torch.no_grad():
        dense, pruned = Stream(teacher, batches), Stream(model, batches)
        for done, (site, replaced) in enumerate(groups, 1):
            for dense_site in replaced:
                dense.through(position_of(dense_site))
            layer, kind = position_of(site)
            position = (layer if numbers is None else numbers[layer]), kind
            lost_units = any(shape.get(name, units) < units for name, units in _units(anatomy, site))
            if lost_units or len(replaced) > 1:
                aims = (x[..., channels] for x in dense.hidden)
                gram, cross = normal_equations(pruned, position, aims, exact=ridge < FINE)
                adjust(pruned.last(position).weight, gram, cross, ridge, site.name)
            pruned.through(position)
            progress(done, len(groups))


def _units(anatomy: Anatomy, site: Site) -> list[tuple[str, int]]:
    """The site and the residual stream that it writes to, each with the units it had."""
    return [(name, anatomy.sites[name].units) for name in (site.name, "hidden") if name in anatomy.sites]


def position_of(site: Site) -> Position:
    assert site.layer is not None
    return site.layer, site.kind


def replacements(anatomy: Anatomy, shape: Shape) -> list[tuple[Site, list[Site]]]:
    """Each sub-layer that remains with the dense ones it replaces: itself and the removed ones behind it, in order.

    The first that remains replaces those removed before it too.
    """
    shape = anatomy.complete(shape)
    groups: list[tuple[Site, list[Site]]] = []
    before_first: list[Site] = []
    for site in anatomy.blocks():
        if shape[site.name]:
            groups.append((site, [*before_first, site]))
            before_first = []
        elif groups:
            groups[-1][1].append(site)
        else:
            before_first.append(site)
    return groups


class Stream:
    """A model's residual stream over the calibration text, taken through one sub-layer after the other."""

    def __init__(self, model: Any, batches: Sequence[Tensor]) -> None:
        from harness.pruning.layerwise import layer_inputs

        kind = architecture_for(model)
        if not hasattr(kind, "sublayers"):
            raise Unsupported(f"least-squares needs a residual stream; {kind.name} has none", "use another recovery")
        self.sublayers = [dict(kind.sublayers(layer)) for layer in kind.layers(model).values()]
        self.hidden, self.extras = layer_inputs(model, batches)

    def last(self, position: Position) -> Any:
        """The linear that writes a sub-layer's result into the stream."""
        layer, kind = position
        return self.sublayers[layer][kind].last

    def after(self, batch: int, position: Position) -> Tensor:
        """The stream of one batch behind a sub-layer."""
        layer, kind = position
        return self.sublayers[layer][kind].after(self.hidden[batch], self.extras[batch][layer])

    def through(self, position: Position) -> None:
        """Take all batches through a sub-layer."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.after(batch, position)


def normal_equations(stream: Stream, position: Position, aims: Iterable[Tensor], exact: bool) -> tuple[Tensor, Tensor]:
    """X'X and X'E over the calibration text: X enters the last linear, E is the stream's error behind it."""
    import torch

    from harness.pruning.layerwise import watched

    linear = stream.last(position)
    precision = torch.float64 if exact else torch.float32
    wide: Any = {"dtype": precision, "device": linear.weight.device}
    gram = torch.zeros(linear.in_features, linear.in_features, **wide)
    cross = torch.zeros(linear.in_features, linear.out_features, **wide)
    inputs: list[Tensor] = []
    with watched(linear, lambda _, x: inputs.append(x)):
        for batch, aim in enumerate(aims):
            error = aim.to(precision) - stream.after(batch, position).to(precision)
            x = inputs.pop().flatten(0, -2).to(precision)
            with torch.autocast(x.device.type, enabled=False):  # sums of squares need the full precision
                gram += x.T @ x
                cross += x.T @ error.flatten(0, -2)
    return gram.double(), cross.double()


class Underdetermined(HarnessError):
    """The text, or the ridge, is too small for the equations to have one solution."""


def adjust(weight: Tensor, gram: Tensor, cross: Tensor, ridge: float, name: str) -> None:
    """Solve (X'X + lambda I) D = X'E and add D' to the weight, lambda a share of the mean of X'X's diagonal."""
    import torch

    if not bool(gram.isfinite().all() and cross.isfinite().all()):
        raise HarnessError(
            f"the calibration text gives values that are not finite in {name}",
            "load the model in fp32 (--dtype fp32); if it stays, its weights are bad",
        )
    mean = gram.diagonal()[gram.diagonal() > 0].mean().nan_to_num()  # inputs that are gated to zero do not count
    damped = gram.clone()
    damped.diagonal().add_(ridge * mean)
    factor, failed = torch.linalg.cholesky_ex(damped)
    del damped
    # float32 sums cannot tell such a small pivot from zero
    if failed or factor.diagonal().min() ** 2 <= torch.finfo(torch.float32).eps * mean:
        raise Underdetermined(
            f"the calibration text says too little about {name}: its {len(gram)} inputs depend on each other",
            "give a larger ridge (ridge=0.1) or more samples: --recovery least-squares:samples=…:ridge=…",
        )
    changed = weight + torch.cholesky_solve(cross, factor).T.to(weight)
    change = (changed - weight).double().T
    if 2 * (change * cross).sum() > (change * (gram @ change)).sum():  # rounding may cost more than a small gain
        weight.copy_(changed)
