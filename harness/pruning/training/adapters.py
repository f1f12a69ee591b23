"""Low-rank adapters on a decoder's projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["Adapters"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapters:
    """LoRA on some of a model's linears, by peft. All other weights are frozen.

    The model is changed in place: use a copy, or remove the adapters again with `merge`.
    """

    def __init__(
        self,
        model: Any,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        targets: Sequence[str] = PROJECTIONS,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        model.requires_grad_(False)
        self.model, self.scaling = model, alpha / rank
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=list(targets),
        )
        inject_adapter_in_model(config, model)
        self.linears: dict[str, Any] = {
            f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        for parameter in self.parameters():  # bf16 would round small steps to nothing
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def a(self, name: str) -> Tensor:
        return self.linears[name].lora_A["default"].weight

    def b(self, name: str) -> Tensor:
        return self.linears[name].lora_B["default"].weight

    def base(self, name: str) -> Tensor:
        return self.linears[name].base_layer.weight

    def parameters(self) -> list[Tensor]:
        return [weight for name in self.linears for weight in (self.a(name), self.b(name))]

    def merged(self, name: str) -> Tensor:
        """The weight with its adapter added."""
        base = self.base(name).detach()
        return (base.float() + self.scaling * self.b(name).detach().float() @ self.a(name).detach().float()).to(base)

    def merge(self) -> None:
        """Add the adapters to the weights and remove them from the model."""
        for name, layer in self.linears.items():
            base = layer.base_layer
            base.weight.data.copy_(self.merged(name))
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            setattr(self.model.get_submodule(parent), child, base)
        self.linears = {}
        vars(self.model).pop("peft_config", None)  # or peft warns when it comes to this model again
