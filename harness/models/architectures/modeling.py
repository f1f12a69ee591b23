"""The classes that hold a pruned decoder: stock ones for even shapes, the shipped modelling file for uneven ones.

The file is written for Llama; the other families' are the same text under their names.
"""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import Unsupported
from harness.models.architectures.decoder import FAMILIES

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
        import harness.models.architectures.modeling_pruned_llama as ours

        return ours
    made = ModuleType(name)
    made.__file__ = str(TEMPLATE.with_name(f"modeling_pruned_{family}.py"))
    text = source(family)
    linecache.cache[made.__file__] = (len(text), None, text.splitlines(True), made.__file__)
    sys.modules[name] = made
    exec(compile(text, made.__file__, "exec"), made.__dict__)
    return made


def classes(model_type: str) -> tuple[Any, Any]:
    """Config and model class of a `model_type`, `pruned_*` ones included."""
    family = model_type.removeprefix("pruned_")
    if family not in FAMILIES:
        raise Unsupported(f"model type {model_type!r} is not known", f"supported: {', '.join(sorted(FAMILIES))}")
    prefix = FAMILIES[family].classes
    if model_type == family:
        import transformers

        return getattr(transformers, f"{prefix}Config"), getattr(transformers, f"{prefix}ForCausalLM")
    own = module(family)
    return getattr(own, f"Pruned{prefix}Config"), getattr(own, f"Pruned{prefix}ForCausalLM")


def config(words: Mapping[str, Any]) -> Any:
    """A config object from the words of a config.json."""
    config_class, _ = classes(str(words["model_type"]))
    for name in words:
        if name.startswith("__") or callable(getattr(config_class, name, None)):
            raise ValueError(f"{name!r} is no field: transformers has a method of this name")
    # configs fill in their nested words in place
    return config_class(**{key: copy.deepcopy(value) for key, value in words.items() if key not in NOT_PASSED_ON})


def words_of(model: Any) -> dict[str, Any]:
    """The words of a model's config."""
    return model.config.to_dict() | {"model_type": model.config.model_type}


def empty(words: Mapping[str, Any]) -> Any:
    """A model of this config whose parameters have shapes and no storage; buffers are real."""
    from accelerate import init_empty_weights

    _, model_class = classes(str(words["model_type"]))
    with init_empty_weights(include_buffers=False):
        model = model_class(config(words))
    return model.eval()


def fill(words: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """A model of this config around these tensors; every tensor must fit and none may be missing."""
    import torch

    model = empty(words)
    missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if (lost := set(missing) - tied) or unexpected:
        raise ValueError(f"tensors do not fit the config: missing {sorted(lost)}, unexpected {sorted(unexpected)}")
    if any(p.device == torch.device("meta") for p in model.parameters()):
        raise ValueError("some parameters received no weights")
    dtype = next(iter(state.values())).dtype
    model.config.dtype = dtype
    return model
