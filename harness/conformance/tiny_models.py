"""Tiny random models of every family, for tests. They are built from configs in milliseconds, without a download."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.api import Context, PrunerSpec
from harness.models.anatomy.core import Anatomy, Site
from harness.models.architectures.lookup import anatomy_of, model_types
from harness.plugins import registry
from harness.system import seeds

BASE = {
    "vocab_size": 258,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
# Every family, with the variants that matter: tied embeddings, grouped attention, biases.
MODELS: dict[str, dict[str, Any]] = {
    "llama, one KV head per head, tied": {"model_type": "llama", "num_key_value_heads": 8, "tie_word_embeddings": True},
    "llama, grouped": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma": {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh"},
}
PLAIN = "llama, grouped"
# Config of a gated model, for tests that need its shapes only.
LLAMA31_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def family(name: str) -> str:
    return str(MODELS[name]["model_type"])


def for_method(spec: PrunerSpec) -> list[str]:
    """Names of the tiny models that a method works on."""
    return [name for name in MODELS if spec.works_on(anatomy_of({**BASE, **MODELS[name]}))]


def supported() -> set[str]:
    """What `PrunerSpec.architectures` may name."""
    return {"*", *registry().specs["architecture"], *model_types()}


def tiny(name: str, dtype: str = "fp32", **sizes: int) -> tuple[Any, Anatomy]:
    """A tiny model and its anatomy. Its weights are large enough that every unit has an effect on the output."""
    import torch

    from harness.models.architectures import modeling
    from harness.models.saved.folders import TORCH_DTYPES

    config = {**BASE, **MODELS[name], **sizes}
    _, model_class = modeling.classes(family(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(modeling.config(config)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(TORCH_DTYPES[dtype]), anatomy_of(modeling.config_dict(model))


def tokens(count: int, length: int, seed: int = 0) -> Any:
    """Random token ids, in place of a calibration text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, BASE["vocab_size"], (count, length), generator=generator)


def context(anatomy: Anatomy, **overrides: Any) -> Context:
    """A context as a run would give it to a method for such a model. `overrides` adds or replaces fields."""
    fields = {
        "tokenizer": None,
        "work_dir": Path("unused"),
        "seed": lambda *axis: seeds.seed(0, *axis),
        "calibration": tokens,
        **overrides,
    }
    return Context(anatomy=anatomy, **fields)


# --- simulated devices: the time of a site with this many units, in nanoseconds ---


def depth_only(site: Site, units: int) -> float:
    return 50.0 if units else 0.0


def steps_of_eight(site: Site, units: int) -> float:
    return math.ceil(units / 8) * 5.0 if site.kind == "mlp" else units * 10.0


def steps_of_128(site: Site, units: int) -> float:
    return math.ceil(units / 128) * 80.0 if site.kind == "mlp" else units * 10.0


def line(site: Site, units: int) -> float:
    return units * (1.0 if site.kind == "mlp" else 10.0)


def cost_model(anatomy: Anatomy, site_time: Callable[[Site, int], float], fixed: float = 100.0) -> Any:
    """The cost model of a simulated device; `fixed` is the time of everything that does not depend on a site."""
    from harness.latency.cost_table.cost_model import CostModel
    from harness.latency.cost_table.table import CostTable, Curve, anatomy_hash, classes

    curves = {
        name: Curve(units=list(range(site.units + 1)), ns=[site_time(site, units) for units in range(site.units + 1)])
        for name, (site, *_) in classes(anatomy).items()
    }
    table = CostTable(
        model="tiny",
        anatomy=anatomy_hash(anatomy),
        params=anatomy.params(),
        device={"name": "made up", "fingerprint": {}, "clock": "wall", "provenance": "simulated"},
        runtime="eager",
        dtype="fp32",
        workload="prefill:1x512",
        preset="quick",
        fixed_ns=fixed,
        curves=curves,
    )
    return CostModel(table, anatomy)
