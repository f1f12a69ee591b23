"""The classes that hold a pruned decoder: stock ones for even shapes, the shipped modelling file for uneven ones.

The file is written for Llama; the other families' are the same text under their names.
"""

from __future__ import annotations

import copy
import json
import linecache
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import Unsupported
from harness.models.architectures.decoder_families import FAMILIES

NOT_PASSED_ON = {
    *("model_type", "architectures", "auto_map", "transformers_version"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),  # can name code of the hub
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal", "use_kernels"),
}
TEMPLATE = Path(__file__).with_name("modeling_pruned_llama.py")


def source(family: str) -> str:
    """The modelling file of a family."""
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("Llama", FAMILIES[family].classes).replace("llama", family)


@cache
def module(family: str) -> ModuleType:
    """The modelling file, imported under a name of its own."""
    name = f"harness.models.architectures.modeling_pruned_{family}"
    if family == "llama":
        import harness.models.architectures.modeling_pruned_llama as shipped

        return shipped
    result = ModuleType(name)
    result.__file__ = str(TEMPLATE.with_name(f"modeling_pruned_{family}.py"))
    text = source(family)
    linecache.cache[result.__file__] = (len(text), None, text.splitlines(True), result.__file__)
    sys.modules[name] = result
    exec(compile(text, result.__file__, "exec"), result.__dict__)
    return result


def classes(model_type: str) -> tuple[Any, Any]:
    """Config and model class of a `model_type`, `pruned_*` ones included."""
    family = model_type.removeprefix("pruned_")
    if family not in FAMILIES:
        raise Unsupported(f"model type {model_type!r} is not known", f"supported: {', '.join(sorted(FAMILIES))}")
    prefix = FAMILIES[family].classes
    if model_type == family:
        import transformers

        return getattr(transformers, f"{prefix}Config"), getattr(transformers, f"{prefix}ForCausalLM")
    shipped = module(family)
    return getattr(shipped, f"Pruned{prefix}Config"), getattr(shipped, f"Pruned{prefix}ForCausalLM")


def config(fields: Mapping[str, Any]) -> Any:
    """A config object from the fields of a config.json."""
    config_class, _ = classes(str(fields["model_type"]))
    for name in fields:
        if name.startswith("__") or callable(getattr(config_class, name, None)):
            raise ValueError(f"{name!r} is no field: transformers has a method of this name")
    # configs fill in their nested fields in place
    return config_class(**{key: copy.deepcopy(value) for key, value in fields.items() if key not in NOT_PASSED_ON})


def config_dict(model: Any) -> dict[str, Any]:
    """A model's config as the fields of a config.json."""
    return model.config.to_dict() | {"model_type": model.config.model_type}


def empty(fields: Mapping[str, Any]) -> Any:
    """A model of this config whose parameters have shapes and no storage; buffers are real."""
    from accelerate import init_empty_weights

    _, model_class = classes(str(fields["model_type"]))
    with init_empty_weights(include_buffers=False):
        model = model_class(config(fields))
    return model.eval()


def fill(fields: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """A model of this config around these tensors; every tensor must fit and none may be missing."""
    import torch

    model = empty(fields)
    missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    absent = set(missing) - tied
    if absent or unexpected:
        raise ValueError(f"tensors do not fit the config: missing {sorted(absent)}, unexpected {sorted(unexpected)}")
    if any(p.device == torch.device("meta") for p in model.parameters()):
        raise ValueError("some parameters received no weights")
    dtype = next(iter(state.values())).dtype
    model.config.dtype = dtype
    return model


def smallest() -> Any:
    """A Llama of random weights with one layer of 8 channels. Its first pass makes transformers import all it needs."""
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config_class, model_class = classes("llama")
    return model_class(config_class(**sizes, num_attention_heads=1)).eval()


def write(model: Any, folder: Path) -> None:
    """config.json, safetensors, and the modelling file where layers differ."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    family = fields["model_type"].removeprefix("pruned_")
    if fields["model_type"] != family:
        name = f"modeling_pruned_{family}"
        prefix = f"{name}.Pruned{FAMILIES[family].classes}"
        fields["auto_map"] = {"AutoConfig": f"{prefix}Config", "AutoModelForCausalLM": f"{prefix}ForCausalLM"}
        for stray in folder.glob("modeling_*.py"):
            stray.unlink()
        (folder / f"{name}.py").write_text(source(family), encoding="utf-8")
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
