"""Least squares: what a cut took from the residual stream is given back in closed form, sub-layer by sub-layer.

Two streams go through the layers side by side, the dense model's and the pruned one's. Where a sub-layer lost
something, its last linear is solved for: with its inputs as they are now, the pruned stream shall come as near to the
dense one as a linear brings it. What was solved feeds what follows: later sub-layers mend what earlier ones could not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.api import Context, Shape
from harness.errors import HarnessError, Unsupported
from harness.models.anatomy.core import Anatomy, Site
from harness.models.architectures.decoder import survivors

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {  # of a sub-layer: its norm, its module, the last linear in that
    "attention": ("input_layernorm", "self_attn", "o_proj"),
    "mlp": ("post_attention_layernorm", "mlp", "down_proj"),
}
Place = tuple[int, str]  # a layer's number and the kind of sub-layer
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
        numbers, channels = survivors(anatomy, cut.shape), cut.keep.get("hidden", slice(None))
        mend(model, teacher, anatomy, cut.shape, batches, self.ridge, numbers, channels, ctx.progress)


def mend(
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

    found = stretches(anatomy, shape)
    with torch.no_grad():
        dense, pruned = Stream(teacher, batches), Stream(model, batches)
        for done, (site, replaced) in enumerate(found, 1):
            for old in replaced:
                dense.through(place(old))
            layer, kind = place(site)
            here = (layer if numbers is None else numbers[layer]), kind
            less = any(shape.get(name, units) < units for name, units in _units(anatomy, site))
            if less or len(replaced) > 1:
                aims = (x[..., channels] for x in dense.hidden)
                gram, cross = normal_equations(pruned, here, aims, exact=ridge < FINE)
                adjust(pruned.last(here).weight, gram, cross, ridge, site.name)
            pruned.through(here)
            progress(done, len(found))


def _units(anatomy: Anatomy, site: Site) -> list[tuple[str, int]]:
    """The site and the residual stream that it writes to, each with the units it had."""
    return [(name, anatomy.sites[name].units) for name in (site.name, "hidden") if name in anatomy.sites]


def place(site: Site) -> Place:
    assert site.layer is not None
    return site.layer, site.kind


def stretches(anatomy: Anatomy, shape: Shape) -> list[tuple[Site, list[Site]]]:
    """Each sub-layer that stays, in order, with the dense ones it stands for: itself and the lost ones behind it.

    Those lost before the first that stays are its own too.
    """
    shape = anatomy.complete(shape)
    found: list[tuple[Site, list[Site]]] = []
    first: list[Site] = []
    for site in anatomy.blocks():
        if shape[site.name]:
            found.append((site, [*first, site]))
            first = []
        else:
            (found[-1][1] if found else first).append(site)
    return found


class Stream:
    """A model's residual stream over the calibration text, taken through one sub-layer after the other."""

    def __init__(self, model: Any, batches: Sequence[Tensor]) -> None:
        from harness.pruning.layerwise import entries

        self.layers = model.model.layers
        self.hidden, self.extras = entries(model, batches)

    def last(self, here: Place) -> Any:
        """The linear that writes a sub-layer's result into the stream."""
        layer, kind = here
        _, inner, last = PARTS[kind]
        return self.layers[layer].get_submodule(f"{inner}.{last}")

    def after(self, batch: int, here: Place) -> Tensor:
        """The stream of one batch behind a sub-layer."""
        layer, kind = here
        norm, inner, _ = PARTS[kind]
        x, module = self.hidden[batch], self.layers[layer]
        entered = module.get_submodule(norm)(x)
        if kind == "attention":
            return x + module.get_submodule(inner)(entered, **self.extras[batch][layer])[0]
        return x + module.get_submodule(inner)(entered)

    def through(self, here: Place) -> None:
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.after(batch, here)


def normal_equations(stream: Stream, here: Place, aims: Iterable[Tensor], exact: bool) -> tuple[Tensor, Tensor]:
    """X'X and X'E over the calibration text: X enters the last linear, E is what the stream lacks behind it."""
    import torch

    from harness.pruning.layerwise import watched

    linear = stream.last(here)
    precision = torch.float64 if exact else torch.float32
    wide: Any = {"dtype": precision, "device": linear.weight.device}
    gram = torch.zeros(linear.in_features, linear.in_features, **wide)
    cross = torch.zeros(linear.in_features, linear.out_features, **wide)
    entered: list[Tensor] = []
    with watched(linear, lambda _, x: entered.append(x)):
        for batch, aim in enumerate(aims):
            lacking = aim.to(precision) - stream.after(batch, here).to(precision)
            x = entered.pop().flatten(0, -2).to(precision)
            with torch.autocast(x.device.type, enabled=False):  # sums of squares are no place to save
                gram += x.T @ x
                cross += x.T @ lacking.flatten(0, -2)
    return gram.double(), cross.double()


class TooLittle(HarnessError):
    """Text, or ridge, for the equations to have one answer."""


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
    # what float32 sums cannot tell from nothing is nothing
    if failed or factor.diagonal().min() ** 2 <= torch.finfo(torch.float32).eps * mean:
        raise TooLittle(
            f"the calibration text says too little about {name}: its {len(gram)} inputs depend on each other",
            "give a larger ridge (ridge=0.1) or more samples: --recovery least-squares:samples=…:ridge=…",
        )
    changed = weight + torch.cholesky_solve(cross, factor).T.to(weight)
    change = (changed - weight).double().T
    if 2 * (change * cross).sum() > (change * (gram @ change)).sum():  # rounding may eat up a small gain
        weight.copy_(changed)
