"""Gates on units: a model computes as if each unit were there by a share, with gradients to that share.

The gates of a measurement are in `harness.latency.gates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy, Member

__all__ = ["gated"]


@contextmanager
def gated(model: Any, anatomy: Anatomy, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply what each weight reads of a site's units by the site's gates, meanwhile.

    A unit at 0 counts as removed, one at 1 as whole. `gates` holds one number per unit and is read at every call.
    """
    hooks = []
    try:
        for name in gates:
            for member in anatomy.sites[name].readers:
                reader = model.get_submodule(member.tensor.removesuffix(".weight"))
                if len(anatomy.tensors[member.tensor]) != 2:  # with an adapter it is linear, too
                    raise Unsupported(f"{name} is read by a {type(reader).__name__}; gates work on linear layers only")
                hooks.append(reader.register_forward_pre_hook(_multiply(gates, name, member)))
                if getattr(reader, "bias", None) is not None:  # an empty site loses the bias too
                    hooks.append(reader.register_forward_hook(_without_bias_if_empty(gates, name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply(gates: Mapping[str, Tensor], name: str, member: Member) -> Callable[..., tuple[Tensor, ...]]:
    def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shares = gates[name].to(args[0])
        shares = shares if member.block == 1 else shares.repeat_interleave(member.block)
        if member.at is not None:
            shares = shares.new_ones(args[0].shape[-1]).scatter(0, _indices(member, shares), shares)
        return (args[0] * shares, *args[1:])

    return hook


def _indices(member: Member, like: Tensor) -> Tensor:
    import torch

    return torch.tensor(member.rows(range(len(member.at or ()))), device=like.device)


def _without_bias_if_empty(gates: Mapping[str, Tensor], name: str) -> Callable[..., Tensor]:
    def hook(module: Any, _: Any, out: Tensor) -> Tensor:
        return out if bool(gates[name].any()) else out - module.bias

    return hook
