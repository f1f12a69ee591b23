"""Well-formed inputs of every parser: files by their place in a folder, examples from real ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
from functools import cache
from pathlib import Path
from typing import Any

from harness.records.keys import canonical
from harness.records.schema import digest, seal

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "leaderboards" / "results" / "baselines"
SOUND = "cdd80b6570e80014af9d4727"  # a record that lies beside each input: magnitude, 20 %
PRUNED, DENSE = "7aa1c4dbaada0393433fc98a", "f2a2568db94f5942695dde6c"  # wanda-sp, 20 %, of the same board; dense
FUTURE = 4_000_000_000  # seconds: a heartbeat that does not get old
TIME_NS = 1_700_000_000 * 10**9  # when every file of a fuzz run was changed last

Files = dict[str, bytes]


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def load_record(cell: str) -> dict[str, Any]:
    return json.loads((PUBLISHED / f"{cell}.json").read_bytes())


def seal_record(record: dict[str, Any], cell: str) -> bytes:
    """A record under the digest and the seal of its own fields, as anyone can make them."""
    try:
        record = {**record, "id": cell}
        record["digest"] = digest(record)
        record["seal"] = seal(record)
    except (TypeError, ValueError, RecursionError):  # no JSON, so nobody can seal it
        pass
    return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"


@cache
def full_record() -> dict[str, Any]:
    """A record in which every optional field says something."""
    record = load_record(PRUNED)
    latency = next(iter(record["latency"].values()))
    latency["told"] = {"pruned": {"binary_bytes": 5_000_000, "parts": 1}}
    latency["sustained"] = {
        "seconds": 60.0,
        "first_ns": 1.0e7,
        "last_ns": 1.1e7,
        "temperatures_c": {"cpu": [40.0, 60.0]},
        "throttle": ["cpu is hot"],
        "samples": latency["samples"],
    }
    score = record["scores"]["passages"]
    score["notes"] = ["a note"]
    score["texts"] = [{"prompt": "The", "dense": "The cat", "pruned": "The dog"}]
    record["artefact"]["told"] = {"steps": 3}
    record["energy"] = {"dense": 0.5, "pruned": 0.4, "reason": "", "what": "package"}
    record["memory"] = {
        "dense": {"average": 500_000_000, "peak": 600_000_000},
        "pruned": {"average": 400_000_000, "peak": 500_000_000},
        "reason": "",
        "what": "of the process",
    }
    record["co2"] = {
        "dense": 0.1,
        "pruned": 0.09,
        "reason": "",
        "what": "grams per 1000 tokens",
        "grid": "350",
        "grams_per_kwh": 350.0,
        "source": "stated by the user",
    }
    record["unscored"] = {"c4": "no text"}
    record["unusual"] = {"rows": 7}
    record["trust"] = "verified"
    record["history"].append({"when": "2026-11-30T10:00:00+00:00", "what": "verified", "command": "harness verify"})
    return record


def latency_record() -> dict[str, Any]:
    """One that was pruned to a latency."""
    record = load_record(PRUNED)
    record["spec"]["budget"] = {"kind": "latency", "unit": "x", "value": 0.8}
    record["budget"] = {
        "asked": 0.8,
        "achieved": 0.79,
        "achieved_ci95": [0.78, 0.8],
        "predicted": 0.77,
        "unused": 0.01,
        "probes": [{"ratio": 0.3, "measured": 0.79, "predicted": 0.77}],
    }
    return record


def failed_record() -> dict[str, Any]:
    """One without a model: a row with its reason."""
    record = load_record(PRUNED)
    for name in ("artefact", "budget"):
        record[name] = None
    for name in ("latency", "scores", "flops"):
        record[name] = {}
    return record | {"status": "unsupported", "reason": "no shape changes", "gates": []}


def records(folder: str, cell: str = PRUNED) -> Files:
    """The same cell in several conditions, one file each."""
    examples = (load_record(cell), full_record(), latency_record(), failed_record(), load_record(DENSE))
    names = (f"{at:x}" * 24 for at in range(len(examples)))
    return {f"{folder}/{name}.json": seal_record(record, name) for name, record in zip(names, examples, strict=True)}


def samples(folder: str) -> Files:
    """The side files of the records above."""
    from harness.leaderboard.audit.validate import named_samples

    names = {name for cell in (SOUND, PRUNED, DENSE) for name in named_samples(load_record(cell)) if name}
    return {f"{folder}/{name}": (PUBLISHED / "samples" / name).read_bytes() for name in sorted(names)}


def sound(folder: str) -> Files:
    return {f"{folder}/{SOUND}.json": (PUBLISHED / f"{SOUND}.json").read_bytes()}


def side_name(text: bytes) -> str:
    return f"{hashlib.sha256(text).hexdigest()}.json.gz"


def side_file(value: Any) -> tuple[str, bytes]:
    """A side file with its right name."""
    from harness.records.sample_files import pack

    text = canonical(value).encode()
    return side_name(text), pack(text)


def side_values() -> dict[str, Any]:
    """What the pruned record's side files hold, by their names."""
    from harness.leaderboard.audit.validate import named_samples

    values = {}
    for name in named_samples(load_record(PRUNED)):
        if name:
            values[name] = json.loads(gzip.decompress((PUBLISHED / "samples" / name).read_bytes()))
    return values


def stage(key: str, value: Any) -> bytes:
    try:
        mark = hashlib.sha256(canonical(["cell", key, value]).encode()).hexdigest()
    except (TypeError, ValueError, RecursionError):
        mark = ""
    return to_json({"key_version": 1, "components": {"artefact": value}, "value": value, "digest": mark})


def leases() -> Files:
    lease = {"pid": 1, "host": "elsewhere", "started": FUTURE, "stage": "cut", "heartbeat": FUTURE}
    local = lease | {"host": socket.gethostname()}
    return {"leases/" + "a" * 24 + ".json": to_json(lease), "leases/" + "b" * 24 + ".json": to_json(local)}


def sweep() -> Files:
    cells = [
        {"label": "tiny, magnitude, 0.3, null", "id": SOUND, "status": "ok", "reason": ""},
        {"label": "tiny, wanda, 0.8x, null", "id": "", "status": "waits", "reason": "no weights"},
        {"label": "tiny, random, 0.3, null", "id": "c" * 24, "status": "failed", "reason": "it broke"},
    ]
    return {"sweeps/suite-0a1b2c.json": to_json({"name": "suite-0a1b2c", "cells": cells})}


def suites() -> Files:
    files = {path.name: path.read_bytes() for path in sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))}
    own = {
        "about": "all keys of a suite",
        "models": ["tiny"],
        "pruners": ["dense", {"name": "magnitude", "set": {"granularity": "unstructured"}}],
        "budgets": [0.3, "0.8x", "25ms", "uniform:0.3"],
        "devices": [{"name": "null", "dtype": "fp32", "runtime": "eager"}],
        "workloads": [["prefill:1x64", "decode:1x64"], "prefill:1x128"],
        "recoveries": ["none", "lora:steps=3"],
        "seeds": [0, 1],
        "evaluators": ["footprint"],
        "preset": "quick",
        "limit": 4,
        "sustain": 0,
        "calibration": "passages",
        "timeout_minutes": 5,
        "include": [{"pruners": ["wanda"], "budgets": [0.5]}],
        "exclude": [{"pruners": "magnitude", "seeds": [1]}],
    }
    return files | {"own.yaml": to_json(own)}


def device_files() -> Files:
    ssh = b"""transport: ssh
host: board.local
user: me
port: 22
key: ~/.ssh/id_ed25519
options: {StrictHostKeyChecking: "yes", Port: "22"}
system: posix
folder: /data/local
python: python3
threads: 4
clock: device
tools: {trtexec: /usr/src/tensorrt/bin/trtexec}
workloads: ["prefill:1x512", "decode:1x512"]
power_mode: MAXN
timeout_s: 900
"""
    adb = b"transport: adb\nserial: R5CT\nserver_port: 5037\nsoc: '43'\naccelerator: google-edgetpu\n"
    return {"board.yaml": ssh, "phone.yaml": adb, "self.yaml": b"{transport: local, folder: /tmp, python: python3}\n"}


def table() -> bytes:
    """`harness profile --model tiny --device null --export`, with fewer widths."""
    return (Path(__file__).parent / "table.json").read_bytes()


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 258,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
OTHER_CONFIGS = {
    "qwen3.json": CONFIG
    | {"model_type": "qwen3", "sliding_window": 64, "use_sliding_window": True, "layer_types": None},
    "mistral.json": CONFIG | {"model_type": "mistral", "sliding_window": 64},
    "gemma.json": CONFIG | {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"},
    "qwen2.json": CONFIG
    | {
        "model_type": "qwen2",
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 64,
        "use_sliding_window": True,
    },
    "uneven.json": CONFIG
    | {"model_type": "pruned_llama", "per_layer_config": {"0": {"intermediate_size": 8}, "1": {"skip": ["attention"]}}},
    "scaled.json": CONFIG
    | {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "quantization_config": None},
}


@cache
def model() -> Files:
    """The files of a saved model of two layers, with its cut."""
    import tempfile

    import torch

    from harness.api import Cut
    from harness.models.architectures import modeling
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.cut import check_cut
    from harness.models.loading.tiny import byte_tokenizer
    from harness.models.saved import folders

    torch.manual_seed(0)
    _, model_class = modeling.classes("llama")
    pruned = model_class(modeling.config(CONFIG))
    pruned.generation_config.max_new_tokens = 8
    anatomy = anatomy_of(CONFIG)
    tensor = "model.layers.0.mlp.gate_proj.weight"
    cut = Cut(
        keep={"layers.0.mlp": range(12)},
        masks={tensor: torch.ones(anatomy.tensors[tensor], dtype=torch.bool)},
        rewrites={"model.norm.weight": torch.ones(16)},
        why="the smallest",
        details={"steps": 3},
        files={"search.txt": "a note"},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders.write(pruned, byte_tokenizer(), folder)
        origin = {"dense_tensors": {name: list(dims) for name, dims in anatomy.tensors.items()}}
        folders.write_cut(check_cut(anatomy, cut), origin, folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def state() -> Files:
    """What a method's preparation leaves on disk."""
    import tempfile

    import torch

    from harness.models.saved import states

    with tempfile.TemporaryDirectory() as name:
        states.write({"rows": 3, "name": "text", "scores": torch.ones(4, 2)}, Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


@cache
def gguf(whole: bool) -> bytes:
    """A model of one layer as a GGUF file, or only the head of such a file with one small tensor."""
    import tempfile

    import numpy as np
    from gguf import GGUFWriter

    width, heads, groups, tokens = 32, 4, 2, 64
    blocks = {"attn_norm": (width,), "ffn_norm": (width,), "attn_k": (width // 2, width), "attn_v": (width // 2, width)}
    blocks |= dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), (width, width))
    tensors = {f"blk.0.{name}.weight": dims for name, dims in blocks.items()}
    tensors |= {"token_embd.weight": (tokens, width), "output_norm.weight": (width,)}
    with tempfile.TemporaryDirectory() as name:
        writer = GGUFWriter(Path(name) / "model.gguf", "llama")
        writer.add_name("small")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(width)
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(width // heads)
        writer.add_vocab_size(tokens)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(["<s>", "</s>", *(chr(33 + at) for at in range(tokens - 3)), '!"'])
        writer.add_token_types([3, 3, *[1] * (tokens - 2)])
        writer.add_token_merges(['! "'])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        for tensor, dims in tensors.items() if whole else [("output_norm.weight", (width,))]:
            writer.add_tensor(tensor, np.ones(dims, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(name) / "model.gguf").read_bytes()


def reported() -> bytes:
    rows = json.loads((ROOT / "leaderboards" / "reported.json").read_bytes())
    own = {"model": "smollm2-135m", "pruner": "wanda-sp", "ratio": 0.2, "scores": {"passages": 30.0}, "parameters": {}}
    return to_json([*rows[:2], rows[0] | own | {"taken": {"passages": "window"}}])


def outputs(pattern: str) -> Files:
    """What a timing program printed, over its versions."""
    return {path.name: path.read_bytes() for path in sorted((ROOT / "tests" / "outputs").glob(pattern))}
