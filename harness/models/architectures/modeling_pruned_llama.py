"""A decoder whose layers differ: widths, heads and missing sub-layers come from `config.per_layer_config`.

Shipped inside a pruned checkpoint, so that transformers opens it without the tool that made it.
"""

import copy

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaPreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

# A layer without attention keeps nothing in the cache. "moe" is the layer type transformers gives such an entry.
NO_ATTENTION = "moe"
MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    NO_ATTENTION: lambda **_: None,
}


def skipped(layer):
    return getattr(layer, "skip", [])


@strict
class PrunedLlamaConfig(LlamaConfig):
    model_type = "pruned_llama"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        window = getattr(self, "sliding_window", None)
        kinds = getattr(self, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * len(
            self.per_layer_config
        )
        self.layer_types = [
            NO_ATTENTION if "attention" in skipped(layer) else kind
            for layer, kind in zip(self.per_layer_config, kinds, strict=True)
        ]
        if set(self.layer_types) == {NO_ATTENTION}:
            self.layer_types = kinds  # a cache of nothing cannot tell its length; one that stays empty can

    def validate_architecture(self):
        for i, layer in enumerate(self.per_layer_config):
            if unknown := set(skipped(layer)) - {"attention", "mlp"}:
                raise ValueError(f"layer {i} cannot skip {sorted(unknown)}")
            for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
                if not isinstance(getattr(layer, name), int) or getattr(layer, name) < 1:
                    raise ValueError(f"layer {i}: {name} is {getattr(layer, name)!r}, not a positive number")
            if layer.num_attention_heads % layer.num_key_value_heads:
                raise ValueError(
                    f"layer {i}: {layer.num_attention_heads} heads over {layer.num_key_value_heads} groups"
                )


class PrunedLlamaDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config, layer_idx):
        layer = config.per_layer_config[layer_idx]
        super().__init__(layer, layer_idx)
        self.self_attn.config = config  # `layer` is a copy that a later change of attention kernels does not reach
        if "attention" in skipped(layer):
            self.self_attn = self.input_layernorm = None
        if "mlp" in skipped(layer):
            self.mlp = self.post_attention_layernorm = None

    def forward(self, hidden_states, **kwargs):
        if self.self_attn is not None:
            hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class PrunedLlamaModel(LlamaModel):
    config_class = PrunedLlamaConfig
    _no_split_modules = ["PrunedLlamaDecoderLayer"]

    def __init__(self, config):
        frame = copy.copy(config)  # everything but the layers is stock
        frame.__dict__.pop("_heterogeneity_spec", None)
        frame.num_hidden_layers = 0
        super().__init__(frame)
        self.config = config
        self.layers = nn.ModuleList(PrunedLlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + seen).unsqueeze(0)
        masks = attention_mask
        if not isinstance(masks, dict):  # generate() may have prepared them
            masks = {
                kind: MASKS[kind](
                    config=self.config,
                    inputs_embeds=hidden_states,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                )
                for kind in set(self.config.layer_types)
            }
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks.get(kind),
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    config_class = PrunedLlamaConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)  # LlamaForCausalLM's own would build even layers
        self.model = PrunedLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
