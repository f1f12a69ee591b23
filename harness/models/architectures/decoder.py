"""Decoders of gated MLPs and grouped-query attention, as in Llama. Their differences are the table FAMILIES."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Shape
from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy, Member, Op, Site
from harness.models.architectures.config_fields import LAYER_KEYS, SUBLAYERS, check

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "decoder"
PARTS = {  # of a sub-layer: its norm, its module, and the last linear in that
    "attention": ("input_layernorm", "self_attn", "o_proj"),
    "mlp": ("post_attention_layernorm", "mlp", "down_proj"),
}


@dataclass(frozen=True)
class Family:
    """How one family differs from Llama. Biases are a config key, or always or never there."""

    name: str
    classes: str
    qkv_bias: str | bool = False
    o_bias: str | bool = False
    mlp_bias: str | bool = False
    head_norms: bool = False  # RMS norms over each query and key head
    norm_offset: float = 0.0  # a norm multiplies by weight + offset
    scales_embedding: bool = False  # embeddings times sqrt(hidden)
    needs_bos: bool = False  # text without a first BOS is out of distribution
    cuts_hidden: bool = True
    heads_divide_hidden: bool = False  # its config refuses a head count that does not divide the width
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what a config.json may leave unsaid


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama",
            "Llama",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            heads_divide_hidden=True,
        ),
        Family("mistral", "Mistral", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
        Family("qwen2", "Qwen2", qkv_bias=True, defaults={"num_key_value_heads": 32}),
        # Qwen3's head norms share the one epsilon that a narrower residual stream would have to change.
        Family(
            "qwen3",
            "Qwen3",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            head_norms=True,
            cuts_hidden=False,
            defaults={"num_key_value_heads": 32, "head_dim": 128},
        ),
        Family(
            "gemma",
            "Gemma",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            norm_offset=1.0,
            scales_embedding=True,
            needs_bos=True,
            defaults={"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
        ),
    )
}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config's `model_type`, if it is a supported one."""
    name = config.get("model_type")
    return FAMILIES.get(name.removeprefix("pruned_")) if isinstance(name, str) else None


def facts(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the family's unsaid defaults filled in."""
    fields = {"tie_word_embeddings": False, **family.defaults, **config}
    if fields.get("num_key_value_heads") is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    if fields.get("head_dim") is None:
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    return fields


def layer_facts(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """One layer's widths: an uneven model names what differs in `per_layer_config`."""
    overrides = {int(i): v for i, v in (config.get("per_layer_config") or {}).items()}.get(layer, {})
    return {key: overrides.get(key, config[key]) for key in LAYER_KEYS} | {"skip": tuple(overrides.get("skip", ()))}


def sliding_window(config: Mapping[str, Any], layer: int) -> int | None:
    """How far back a layer looks, None for all the way."""
    kinds = config.get("layer_types")
    if (kinds and kinds[layer] != "sliding_attention") or config.get("use_sliding_window") is False:
        return None
    return config.get("sliding_window")


def decoder(family: Family, config: Mapping[str, Any]) -> Anatomy:
    """The anatomy of a decoder: a site per sub-layer, and one for the width of the residual stream."""
    fields = facts(family, config)
    hidden, head_dim, vocab = fields["hidden_size"], fields["head_dim"], fields["vocab_size"]
    ops: list[Op] = []
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    sites: dict[str, Site] = {}
    stream = [Member("model.embed_tokens.weight", 1)]

    def has(bias: str | bool) -> bool:
        return bool(fields.get(bias, False)) if isinstance(bias, str) else bias

    def add(kind: str, layer: int, units: int, norm: str, heads: Mapping[str, int]) -> None:
        """A sub-layer: `heads` maps each linear to the rows (or columns, for the last) that one unit owns."""
        prefix = f"model.layers.{layer}."
        owned, members = [prefix + norm], []
        tensors[prefix + norm] = (hidden,)
        stream.append(Member(prefix + norm, 0))
        *ins, out = heads
        for name in ins:
            weight, bias = f"{prefix}{name}.weight", f"{prefix}{name}.bias"
            tensors[weight] = (units * heads[name], hidden)
            members.append(Member(weight, 0, heads[name]))
            stream.append(Member(weight, 1))
            ops.append(Op(weight, cached=name.endswith(("k_proj", "v_proj"))))
            owned.append(weight)
            if has(family.mlp_bias if kind == "mlp" else family.qkv_bias):
                tensors[bias] = (units * heads[name],)
                members.append(Member(bias, 0, heads[name]))
                owned.append(bias)
        weight, bias = f"{prefix}{out}.weight", f"{prefix}{out}.bias"
        tensors[weight] = (hidden, units * heads[out])
        members.append(Member(weight, 1, heads[out]))
        stream.append(Member(weight, 0))
        ops.append(Op(weight))
        if kind == "attention":
            ops.append(Op(f"{prefix}self_attn.q_proj.weight", "attention", window=sliding_window(fields, layer)))
        owned.append(weight)
        if has(family.mlp_bias if kind == "mlp" else family.o_bias):
            tensors[bias] = (hidden,)
            stream.append(Member(bias, 0))
            owned.append(bias)
        if kind == "attention" and family.head_norms:
            for name in ("q_norm", "k_norm"):
                tensors[f"{prefix}self_attn.{name}.weight"] = (head_dim,)
                owned.append(f"{prefix}self_attn.{name}.weight")
        sites[f"layers.{layer}.{kind}"] = Site(
            f"layers.{layer}.{kind}", kind, units, tuple(members), tuple(owned), layer
        )

    for layer in range(fields["num_hidden_layers"]):
        widths = layer_facts(fields, layer)
        groups = widths["num_key_value_heads"]
        query = widths["num_attention_heads"] // groups * head_dim
        if "attention" not in widths["skip"]:
            rows = {
                "self_attn.q_proj": query,
                "self_attn.k_proj": head_dim,
                "self_attn.v_proj": head_dim,
                "self_attn.o_proj": query,
            }
            add("attention", layer, groups, "input_layernorm.weight", rows)
        if "mlp" not in widths["skip"]:
            rows = {"mlp.gate_proj": 1, "mlp.up_proj": 1, "mlp.down_proj": 1}
            add("mlp", layer, widths["intermediate_size"], "post_attention_layernorm.weight", rows)

    head = {"model.embed_tokens.weight", "model.norm.weight"}
    tensors["model.norm.weight"] = (hidden,)
    stream.append(Member("model.norm.weight", 0))
    if not fields["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (vocab, hidden)
        stream.append(Member("lm_head.weight", 1))
        head.add("lm_head.weight")
    # the head sees the last position only, as in serving
    ops.append(Op("model.embed_tokens.weight" if fields["tie_word_embeddings"] else "lm_head.weight", positions=1))
    if family.cuts_hidden:
        sites["hidden"] = Site("hidden", "hidden", hidden, tuple(stream), least=1)
    return Anatomy(family.name, fields, tensors, sites, frozenset(head), tuple(ops), needs_bos=family.needs_bos)


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
        from harness.models.architectures import modeling

        return modeling.fill(config, tensors)

    def hollow(self, config: Mapping[str, Any]) -> Any:
        from harness.models.architectures import modeling

        return modeling.empty(config)

    def write(self, model: Any, folder: Path) -> None:
        from harness.models.architectures import modeling

        modeling.write(model, folder)

    def config(self, model: Any) -> dict[str, Any]:
        from harness.models.architectures import modeling

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
