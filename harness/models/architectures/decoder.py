"""The architecture of decoders of gated MLPs and grouped-query attention: configs, shapes, layers and sub-layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Shape
from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy
from harness.models.architectures import modeling
from harness.models.architectures.config_fields import SUBLAYERS, check
from harness.models.architectures.decoder_families import FAMILIES, decoder, family_of, layer_facts, sliding_window

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "decoder"
PARTS = {  # of a sub-layer: its norm, its module, and the last linear in that
    "attention": ("input_layernorm", "self_attn", "o_proj"),
    "mlp": ("post_attention_layernorm", "mlp", "down_proj"),
}


def survivors(anatomy: Anatomy, shape: Shape) -> dict[int, int]:
    """Old layer number -> new one. A layer that keeps neither sub-layer is gone."""
    shape = anatomy.complete(shape)
    alive = sorted({site.layer for site in anatomy.blocks() if shape[site.name] and site.layer is not None})
    return {old: new for new, old in enumerate(alive)}


def config_of(anatomy: Anatomy, shape: Shape) -> dict[str, Any]:
    """The config.json of a shape: plain where all layers agree, `per_layer_config` where they differ."""
    shape = anatomy.complete(shape)
    fields = dict(anatomy.config)
    base = str(fields["model_type"]).removeprefix("pruned_")
    for key in ("auto_map", "architectures", "per_layer_config"):
        fields.pop(key, None)
    numbers = survivors(anatomy, shape)
    layers = [_layer_config(anatomy, shape, old) for old in numbers]
    if "hidden" in anatomy.sites:
        fields |= _hidden_config(anatomy, shape["hidden"])
    fields["num_hidden_layers"] = len(layers)
    if not layers:
        return fields | {"model_type": base, "layer_types": None}
    if fields.get("layer_types"):
        fields["layer_types"] = [fields["layer_types"][old] for old in numbers]
        if fields.get("max_window_layers") is not None:
            fields["max_window_layers"] = min(fields["max_window_layers"], len(layers))
    if all(layer == layers[0] for layer in layers) and "skip" not in layers[0]:
        plain = fields | layers[0]
        if not (FAMILIES[base].heads_divide_hidden and plain["hidden_size"] % plain["num_attention_heads"]):
            return plain | {"model_type": base}
    per_layer = {str(i): {k: v for k, v in layer.items() if v != fields.get(k)} for i, layer in enumerate(layers)}
    return fields | {
        "model_type": f"pruned_{base}",
        "per_layer_config": {i: layer for i, layer in per_layer.items() if layer},
    }


def _layer_config(anatomy: Anatomy, shape: Shape, layer: int) -> dict[str, Any]:
    widths = layer_facts(anatomy.config, layer)
    ratio = widths["num_attention_heads"] // widths["num_key_value_heads"]
    groups, channels = shape.get(f"layers.{layer}.attention", 0), shape.get(f"layers.{layer}.mlp", 0)
    values: dict[str, Any] = {}
    if groups:
        values |= {"num_attention_heads": groups * ratio, "num_key_value_heads": groups}
    if channels:
        values |= {"intermediate_size": channels}
    missing = [name for name, units in zip(SUBLAYERS, (groups, channels), strict=True) if not units]
    return values | ({"skip": missing} if missing else {})


def _hidden_config(anatomy: Anatomy, channels: int) -> dict[str, Any]:
    """A norm over fewer channels takes its mean over fewer: epsilon shrinks with the width."""
    width = anatomy.config["hidden_size"]
    if channels == width:
        return {}
    eps = anatomy.config.get("rms_norm_eps", 1e-6)
    return {"hidden_size": channels, "rms_norm_eps": eps * width / channels}


def rename(tensor: str, numbers: Mapping[int, int]) -> str:
    """A tensor's name after the layers were renumbered."""
    parts = tensor.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(numbers[int(parts[2])])
    return ".".join(parts)


def norm_scale(anatomy: Anatomy, tensor: str, channels: int) -> float:
    """By what a norm's factor grows when the residual stream narrows to so many channels.

    The dense norm divides by the root of the mean over all channels, the narrow one over those that remain.
    Gemma's embedding factor sqrt(hidden) is restored in the embedding, see `embedding_scale`; where the head is tied
    to it, the final norm takes that back.
    """
    width = anatomy.config["hidden_size"]
    scale = (width / channels) ** 0.5
    if tensor == "model.norm.weight" and anatomy.config["tie_word_embeddings"]:
        scale /= embedding_scale(anatomy, channels)
    return scale


def embedding_scale(anatomy: Anatomy, channels: int) -> float:
    if not FAMILIES[anatomy.family].scales_embedding:
        return 1.0
    return (anatomy.config["hidden_size"] / channels) ** 0.5


@dataclass(frozen=True)
class Sublayer:
    """One sub-layer of a layer that is in memory: it reads the residual stream and adds to it."""

    norm: nn.Module
    module: nn.Module
    last: nn.Linear
    attends: bool

    def after(self, x: Tensor, extras: Mapping[str, Any]) -> Tensor:
        """The residual stream behind the sub-layer; `extras` are what its layer is called with beside the stream."""
        inputs = self.norm(x)
        return x + (self.module(inputs, **extras)[0] if self.attends else self.module(inputs))


class Decoder:
    """The architecture of all families in FAMILIES. See `harness.api.Architecture`."""

    name, task = NAME, "text"

    def check(self, config: Mapping[str, Any], where: str) -> None:
        if family := family_of(config):
            uneven = str(config["model_type"]).startswith("pruned_")
            check({**family.defaults, **config}, where, family.heads_divide_hidden and not uneven)

    def anatomy(self, config: Mapping[str, Any]) -> Anatomy:
        family = family_of(config)
        if family is None:
            raise Unsupported(f"{config.get('model_type')!r} is no decoder family", f"known: {', '.join(FAMILIES)}")
        return decoder(family, config)

    def config_of(self, anatomy: Anatomy, shape: Shape) -> dict[str, Any]:
        return config_of(anatomy, shape)

    def rename(self, anatomy: Anatomy, shape: Shape) -> dict[str, str]:
        numbers = survivors(anatomy, shape)
        return {name: rename(name, numbers) for name in anatomy.tensor_shapes(shape)}

    def rescale(self, anatomy: Anatomy, state: dict[str, Tensor], shape: Shape) -> None:
        """Scale the norms and the embedding of a narrower residual stream."""
        channels = anatomy.complete(shape).get("hidden", anatomy.config["hidden_size"])
        if channels == anatomy.config["hidden_size"]:
            return
        offset = FAMILIES[anatomy.family].norm_offset
        for name in state:
            if name.endswith("norm.weight") and "self_attn" not in name:
                state[name] = (state[name] + offset) * norm_scale(anatomy, name, channels) - offset
        if (scale := embedding_scale(anatomy, channels)) != 1:
            state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] * scale

    def build(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        return modeling.fill(config, tensors)

    def hollow(self, config: Mapping[str, Any]) -> Any:
        return modeling.empty(config)

    def write(self, model: Any, folder: Path) -> None:
        modeling.write(model, folder)

    def config(self, model: Any) -> dict[str, Any]:
        return modeling.config_dict(model)

    def tensors(self, model: Any) -> dict[str, Tensor]:
        state = model.state_dict()
        if model.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        return state

    def windows(self, anatomy: Anatomy) -> dict[str, int | None]:
        return {site.name: sliding_window(anatomy.config, site.layer or 0) for site in anatomy.blocks()}

    def layers(self, model: Any) -> dict[str, nn.Module]:
        return {f"model.layers.{number}": layer for number, layer in enumerate(model.model.layers)}

    def layer_numbers(self, anatomy: Anatomy, shape: Shape) -> dict[int, int]:
        return survivors(anatomy, shape)

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        return model.lm_head(model.model.norm(hidden))

    def sublayers(self, layer: nn.Module) -> Iterator[tuple[str, Sublayer]]:
        for kind, (norm, inner, last) in PARTS.items():
            module = getattr(layer, inner)
            if module is not None:
                yield kind, Sublayer(getattr(layer, norm), module, getattr(module, last), kind == "attention")
