"""Gates on units: a model computes as if each unit were there by a share, with gradients to that share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from harness.models.anatomy.core import Anatomy
from harness.pruning.importance import output_member


@contextmanager
def gated(model: Any, anatomy: Anatomy, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, what a site's units hand to the tensor that reads them is multiplied by the site's gates.

    A unit at 0 counts as removed, one at 1 as whole. `gates` holds one number per unit and is read at every call.
    """

    def multiply(name: str, block: int) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            shares = gates[name].to(args[0])
            return (args[0] * (shares if block == 1 else shares.repeat_interleave(block)), *args[1:])

        return hook

    def removed(name: str) -> Any:
        def hook(module: Any, _: Any, out: Tensor) -> Tensor:
            return out if bool(gates[name].any()) else out - module.bias

        return hook

    hooks = []
    try:
        for name in gates:
            member = output_member(anatomy.sites[name])
            reader = model.get_submodule(member.tensor.removesuffix(".weight"))
            hooks.append(reader.register_forward_pre_hook(multiply(name, member.block)))
            if getattr(reader, "bias", None) is not None:  # an empty site takes it along
                hooks.append(reader.register_forward_hook(removed(name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
