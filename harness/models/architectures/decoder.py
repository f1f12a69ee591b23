"""The Llama family: decoders of gated MLPs and grouped-query attention. Their differences are the table FAMILIES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.api import Shape
from harness.models.anatomy.core import Anatomy, Member, Site
from harness.models.architectures.config_fields import LAYER_KEYS, SUBLAYERS


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
    known = {"tie_word_embeddings": False, **family.defaults, **config}
    if known.get("num_key_value_heads") is None:
        known["num_key_value_heads"] = known["num_attention_heads"]
    if known.get("head_dim") is None:
        known["head_dim"] = known["hidden_size"] // known["num_attention_heads"]
    return known


def layer_facts(known: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """One layer's widths: an uneven model names what differs in `per_layer_config`."""
    overrides = {int(i): v for i, v in (known.get("per_layer_config") or {}).items()}.get(layer, {})
    return {key: overrides.get(key, known[key]) for key in LAYER_KEYS} | {"skip": tuple(overrides.get("skip", ()))}


def sliding_window(known: Mapping[str, Any], layer: int) -> int | None:
    """How far back a layer looks, None for all the way."""
    kinds = known.get("layer_types")
    if (kinds and kinds[layer] != "sliding_attention") or known.get("use_sliding_window") is False:
        return None
    return known.get("sliding_window")


def decoder(family: Family, config: Mapping[str, Any]) -> Anatomy:
    known = facts(family, config)
    hidden, head_dim, vocab = known["hidden_size"], known["head_dim"], known["vocab_size"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    sites: dict[str, Site] = {}
    stream = [Member("model.embed_tokens.weight", 1)]

    def has(bias: str | bool) -> bool:
        return bool(known.get(bias, False)) if isinstance(bias, str) else bias

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
            owned.append(weight)
            if has(family.mlp_bias if kind == "mlp" else family.qkv_bias):
                tensors[bias] = (units * heads[name],)
                members.append(Member(bias, 0, heads[name]))
                owned.append(bias)
        weight, bias = f"{prefix}{out}.weight", f"{prefix}{out}.bias"
        tensors[weight] = (hidden, units * heads[out])
        members.append(Member(weight, 1, heads[out]))
        stream.append(Member(weight, 0))
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

    for layer in range(known["num_hidden_layers"]):
        widths = layer_facts(known, layer)
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
    if not known["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (vocab, hidden)
        stream.append(Member("lm_head.weight", 1))
        head.add("lm_head.weight")
    if family.cuts_hidden:
        sites["hidden"] = Site("hidden", "hidden", hidden, tuple(stream))
    return Anatomy(family.name, known, tensors, sites, frozenset(head))


def survivors(anatomy: Anatomy, shape: Shape) -> dict[int, int]:
    """Old layer number -> new one. A layer that keeps neither sub-layer is gone."""
    shape = anatomy.complete(shape)
    alive = sorted({site.layer for site in anatomy.blocks() if shape[site.name] and site.layer is not None})
    return {old: new for new, old in enumerate(alive)}


def config_of(anatomy: Anatomy, shape: Shape) -> dict[str, Any]:
    """The config.json of a shape: plain where all layers agree, `per_layer_config` where they differ."""
    shape = anatomy.complete(shape)
    known = dict(anatomy.config)
    base = str(known["model_type"]).removeprefix("pruned_")
    for key in ("auto_map", "architectures", "per_layer_config"):
        known.pop(key, None)
    numbers = survivors(anatomy, shape)
    layers = [_layer_config(anatomy, shape, old) for old in numbers]
    if "hidden" in anatomy.sites:
        known |= _hidden_config(anatomy, shape["hidden"])
    known["num_hidden_layers"] = len(layers)
    if not layers:
        return known | {"model_type": base, "layer_types": None}
    if known.get("layer_types"):
        known["layer_types"] = [known["layer_types"][old] for old in numbers]
        if known.get("max_window_layers") is not None:
            known["max_window_layers"] = min(known["max_window_layers"], len(layers))
    if all(layer == layers[0] for layer in layers) and "skip" not in layers[0]:
        plain = known | layers[0]
        if not (FAMILIES[base].heads_divide_hidden and plain["hidden_size"] % plain["num_attention_heads"]):
            return plain | {"model_type": base}
    per_layer = {str(i): {k: v for k, v in layer.items() if v != known.get(k)} for i, layer in enumerate(layers)}
    return known | {
        "model_type": f"pruned_{base}",
        "per_layer_config": {i: layer for i, layer in per_layer.items() if layer},
    }


def _layer_config(anatomy: Anatomy, shape: Shape, layer: int) -> dict[str, Any]:
    widths = layer_facts(anatomy.config, layer)
    ratio = widths["num_attention_heads"] // widths["num_key_value_heads"]
    groups, channels = shape.get(f"layers.{layer}.attention", 0), shape.get(f"layers.{layer}.mlp", 0)
    found: dict[str, Any] = {}
    if groups:
        found |= {"num_attention_heads": groups * ratio, "num_key_value_heads": groups}
    if channels:
        found |= {"intermediate_size": channels}
    missing = [name for name, units in zip(SUBLAYERS, (groups, channels), strict=True) if not units]
    return found | ({"skip": missing} if missing else {})


def _hidden_config(anatomy: Anatomy, kept: int) -> dict[str, Any]:
    """A norm over fewer channels takes its mean over fewer: epsilon shrinks with the width."""
    width = anatomy.config["hidden_size"]
    if kept == width:
        return {}
    eps = anatomy.config.get("rms_norm_eps", 1e-6)
    return {"hidden_size": kept, "rms_norm_eps": eps * width / kept}


def rename(tensor: str, numbers: Mapping[int, int]) -> str:
    """A tensor's name after the layers were renumbered."""
    parts = tensor.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(numbers[int(parts[2])])
    return ".".join(parts)


def norm_scale(anatomy: Anatomy, tensor: str, kept: int) -> float:
    """By what a norm's factor grows when the residual stream narrows to `kept` channels.

    The dense norm divides by the root of the mean over all channels, the narrow one over the kept.
    Gemma's embedding factor sqrt(hidden) is restored in the embedding, see `embedding_scale`; where the head is tied
    to it, the final norm takes that back.
    """
    width = anatomy.config["hidden_size"]
    scale = (width / kept) ** 0.5
    if tensor == "model.norm.weight" and anatomy.config["tie_word_embeddings"]:
        scale /= embedding_scale(anatomy, kept)
    return scale


def embedding_scale(anatomy: Anatomy, kept: int) -> float:
    if not FAMILIES[anatomy.family].scales_embedding:
        return 1.0
    return (anatomy.config["hidden_size"] / kept) ** 0.5
