"""Families of decoders: how each differs from Llama, and the anatomy of a config.json of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.models.anatomy.core import Anatomy, Member, Op, Site
from harness.models.architectures.config_fields import LAYER_KEYS


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
    stream = [Member("model.embed_tokens.weight", 1, reads=False)]

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
        sites["hidden"] = Site("hidden", "hidden", hidden, tuple(stream), least=1, exact=False)
    return Anatomy(family.name, fields, tensors, sites, frozenset(head), tuple(ops), needs_bos=family.needs_bos)
