"""Inputs that once ended a parser, by what is wrong with each."""

from __future__ import annotations

import json
import re
from typing import Any

from .bases import SOUND, Files
from .parsers import Parser

GONE = object()  # a value that is taken away
DEEP = b"[" * 3000 + b"]" * 3000
DIGITS = b"1" * 5000
INFINITE = b"1e999"
DOCUMENTS = "documents"  # stands for the side file that holds scores of documents
BOMB = b"[&a [x,x,x,x,x,x,x,x,x]" + b"".join(
    b", &%c [%s]" % (name, b",".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefgh"
)
BOMB += b"]"

# A whole content, or new values by their place in a well-formed one; bytes among them stand for themselves.
Change = bytes | dict[str, Any]
DAMAGE: dict[str, Change] = {
    "nesting": DEEP,
    "nesting without an end": b"[" * 100_000,
    "a number of 5,000 digits": b'{"a": ' + DIGITS + b"}",
    "an infinite number": b'{"a": 1e999}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[1]",
    "a number": b"5",
    "nothing": b"",
    "NUL": b"\x00" * 64,
}
LATER = ("nesting without an end",)  # the same as nesting, where both are tried
# Which of these ended which parser of JSON.
DAMAGED = {
    "record": ("nesting", "nesting without an end"),
    "records": ("nesting",),
    "stage": ("nesting",),
    "status: records": ("nesting",),
    "status: stage": ("nesting",),
    "status: index": ("nesting", "a list", "a number"),
    "status: leases": ("nesting",),
    "status: sweeps": ("nesting", "an infinite number", "a list", "a number"),
    "cost table": ("nesting",),
    "cost table of a store": ("nesting",),
    "config.json: llama": ("nesting", "a number of 5,000 digits"),
    "config.json: plan": ("nesting", "a number of 5,000 digits"),
    "config.json: load": ("nesting", "a number of 5,000 digits"),
    "generation_config.json": tuple(name for name in DAMAGE if name not in LATER and name != "an infinite number"),
    "cut.json": tuple(name for name in DAMAGE if name not in LATER),
    "weights index": ("nesting", "a number of 5,000 digits", "not UTF-8", "a list", "a number"),
    "tokenizer": tuple(name for name in DAMAGE if name not in LATER),
    "state.json": tuple(name for name in DAMAGE if name not in LATER),
    "notes of the cache": ("nesting", "a list", "a number"),
    "trtexec": ("nesting",),
}
FILES = {"tokenizer": "tokenizer.json", "notes of the cache": "hashes.json", "trtexec": "times.json"}  # not the first
LATENCY = "latency/prefill:1x128"
MASKED = "dense_tensors/model.layers.0.mlp.gate_proj.weight"
# Other values in the first well-formed input of a parser, or in the named file of several. Two slashes stand for one.
SHAPES: dict[str | tuple[str, str], dict[str, Change]] = {
    "record": {"an infinite time": {f"{LATENCY}/dense/median_ns": INFINITE}},
    "entry": {"an infinite time": {f"{LATENCY}/dense/median_ns": INFINITE}},
    "stage": {"an infinite number": {"value/seed": INFINITE}},
    "status: stage sealed again": {
        "no budget": {"budget": GONE},
        "a budget that is text": {"budget": "0.3"},
        "a budget without a kind": {"budget/kind": GONE},
        "a value that is text": {"budget/value": "x"},
        "no recovery": {"recovery": GONE},
        "no seed": {"seed": GONE},
        "no device": {"device": GONE},
        "no pruner": {"pruner": GONE},
    },
    "status: index": {
        "rows that are a list": {"rows": []},
        "rows that are a number": {"rows": 5},
        "an empty row": {f"rows/{SOUND}": {}},
        "a row that is text": {f"rows/{SOUND}": "x"},
        "an empty text of a row": {f"rows/{SOUND}/row": {}},
        "no row": {f"rows/{SOUND}/row": GONE},
        "the row of another": {f"rows/{SOUND}/row/id": "f" * 24},
    },
    "status: leases": {"no stage": {"stage": GONE}},
    ("status: leases", "leases/bbbbbbbbbbbbbbbbbbbbbbbb.json"): {"a huge pid": {"pid": 2**70}},
    "status: sweeps": {
        "cells that are a number": {"cells": 5},
        "a cell that is text": {"cells/0": "x"},
        "a cell without an id": {"cells/1/id": GONE},
        "an id that is a list": {"cells/1/id": [1]},
        "a status that is a list": {"cells/1/status": [1]},
        "no status": {"cells/1/status": GONE},
        "no reason": {"cells/1/reason": GONE},
        "a reason that is an object": {"cells/1/reason": {"a": 1}},
        "a surrogate": {"cells/1/reason": b'"\\ud800"'},
    },
    ("side file, values", DOCUMENTS): {
        "a score that is an object": {"documents/passages//15": {"a": 1}},
        "a score that is text": {"documents/passages//15": "x"},
        "a huge score": {"documents/passages//3": 1e300},
        "no documents": {"documents": GONE},
    },
    "sealed again: page": {
        "no speed-up": {f"{LATENCY}/speedup": 0.0},
        "a speed-up below zero": {f"{LATENCY}/speedup": -1.0},
        "a machine without a name": {"environment/device/model": 5},
        "a machine that is a list": {"environment/device": {"model": [1]}},
    },
    "sealed again: HTML": {
        "no speed-up": {f"{LATENCY}/speedup": 0.0},
        "a speed-up below zero": {f"{LATENCY}/speedup": -1.0},
        "a tiny speed-up": {f"{LATENCY}/speedup": 5e-324},
        "a score below zero": {"scores/passages/value": -1.0},
    },
    "sealed again: tree": {"no speed-up": {f"{LATENCY}/speedup": 0.0}, "a model of dots": {"spec/model": ".."}},
    "suite": {
        "a bomb of anchors": b"pruners: [random]\nmodels: [tiny]\nexclude: [{models: " + BOMB + b"}]",
        "a million cells": b"models: [tiny]\npruners: [random]\nseeds: "
        + json.dumps(list(range(1000))).encode()
        + b"\nbudgets: "
        + json.dumps([f"{at}ms" for at in range(1, 1001)]).encode(),
        "a number of 5,000 digits": b"models: [tiny]\npruners: [random]\nlimit: " + DIGITS,
        "nesting": b"models: " + DEEP,
        "a date that is none": b"models: [tiny]\npruners: [random]\nabout: 2026-99-99",
        "a truth that is none": b"about: !!bool x",
        "a number that is none": b"limit: !!int x",
    },
    "device file": {
        "nesting": b"transport: " + DEEP,
        "a number of 5,000 digits": b"transport: ssh\nhost: a\nport: " + DIGITS,
        "a date that is none": b"transport: ssh\nhost: 2026-99-99",
        "a truth that is none": b"transport: !!bool x",
        "a time that is none": b"transport: !!timestamp x",
    },
    "settings": {
        "a list": {"magnitude/norm": [1]},
        "nothing": {"magnitude/norm": None},
        "an object": {"dilap/lr": {"a": 1}},
        "a huge number": {"dilap/lr": 10**400},
        "a method of 300 letters": {"x" * 300: {"a": 1}},
    },
    "names": {"300 letters": b"x" * 300 + b"\n" + b"x" * 300},
    "workload": {"5,000 digits": b"prefill:1x" + DIGITS},
    "rows of text": {
        "a row that is a number": b'{"text": 5}',
        "a row that is a list": b'{"text": ["a"]}',
        "a row without a text": b'{"text": null}',
        "nesting": b'{"text": ' + DEEP + b"}",
        "5,000 digits": b'{"text": ' + DIGITS + b"}",
    },
    "rows of a task": {
        "a line that is a number": b"5\n5\n",
        "a line that is text": b'"ab"\n',
        "a column of two kinds": b'{"goal": 1}\n{"goal": "x"}\n',
        "a column of lists and texts": b'{"goal": [1]}\n{"goal": "x"}\n',
        "a column of objects and texts": b'{"goal": {"a": 1}}\n{"goal": "x"}\n',
        "a huge number": b'{"label": 99999999999999999999999999}\n',
        "nesting": b'{"goal": ' + DEEP + b"}\n",
        "100 levels below a text": b'{"goal": "a"}\n{"goal": ' + b"[" * 100 + b"]" * 100 + b"}\n",
        "a surrogate": b'{"goal": "\\ud800"}\n',
    },
    "cost table": {
        "a fingerprint that is a list": {"device/fingerprint": [1]},
        "a clock that is infinite": {"device/clock": INFINITE},
    },
    "cost table of a store": {
        "a predictor of other sub-layers": {"predictor/features": ["x: sites"], "predictor/weights": [1.0]},
        "a predictor without features": {"predictor/features": [], "predictor/weights": []},
    },
    "config.json: llama": {
        "a head size that is text": {"head_dim": "x"},
        "a head size of zero": {"head_dim": 0},
        "groups that are text": {"num_key_value_heads": "2"},
        "no groups": {"num_key_value_heads": 0},
        "more groups than heads": {"num_key_value_heads": 8},
        "a billion layers": {"num_hidden_layers": 10**9},
        "a vocabulary of 5,000 digits": {"vocab_size": DIGITS},
        "an epsilon that is text": {"rms_norm_eps": "x"},
    },
    "config.json: gemma": {"no groups": {"num_key_value_heads": 0}},
    "config.json: mistral": {
        "no groups": {"num_key_value_heads": 0},
        "an epsilon that is a list": {"rms_norm_eps": []},
    },
    "config.json: qwen2": {
        "a last window of nothing": {"max_window_layers": None},
        "too few kinds of layers": {"layer_types": ["full_attention"]},
        "kinds that are an object": {"layer_types": {"a": 1}},
        "kinds that are a number": {"layer_types": 5},
        "a last window that is text": {"max_window_layers": "x"},
    },
    "config.json: uneven": {
        "layers that are a list": {"per_layer_config": [1]},
        "a layer that is no number": {"per_layer_config/x": {}},
        "a layer that is a list": {"per_layer_config/0": [1]},
        "widths that are text": {"per_layer_config/0/intermediate_size": "x"},
        "a width of zero": {"per_layer_config/0/intermediate_size": 0},
        "a skip that is a number": {"per_layer_config/1/skip": 5},
        "no groups": {"per_layer_config/0/num_key_value_heads": 0},
    },
    "config.json: plan": {"positions that are text": {"max_position_embeddings": "x"}},
    "config.json: load": {
        "another activation": {"hidden_act": "nobody"},
        "an activation that is a list": {"hidden_act": [1]},
        "another rope": {"rope_parameters/rope_type": "nobody"},
        "a rope that is a list": {"rope_parameters": [1]},
        "a base that is text": {"rope_parameters/rope_theta": "x"},
        "an epsilon that is an object": {"rms_norm_eps": {}},
        "a padding beyond the vocabulary": {"pad_token_id": 10**6},
        "a spread that is text": {"initializer_range": "x"},
        "a dropout that is text": {"attention_dropout": "x"},
    },
    "generation_config.json": {
        "a length that is text": {"max_new_tokens": "x"},
        "a cache that nobody knows": {"cache_implementation": "nobody"},
    },
    "cut.json": {
        "sites that are a list": {"keep": [1]},
        "units that are a number": {"keep/layers.0.mlp": 5},
        "masks that are a number": {"masks": 5},
        "a mask that is not there": {"masks": ["nobody"]},
        "a mask that is a list": {"masks": [["a"]]},
        "a rewrite that is not there": {"rewrites": ["nobody"]},
        "no rewrites": {"rewrites": GONE},
        "no masks": {"masks": GONE},
        "no reason": {"why": GONE},
        "no shapes": {"dense_tensors": GONE},
        "shapes that are text": {MASKED: "x"},
        "a huge shape": {MASKED: [10**6, 10**6]},
    },
    ("cut.json", "cut.safetensors"): {"truncated": b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "nothing": b""},
    ("cut.json", "notes/search.txt"): {"not UTF-8": b"\xff\xfe\x00"},
    "weights index": {
        "names that are numbers": {"weight_map/a": 5},
        "names that are lists": {"weight_map/a": ["a.safetensors"]},
        "a name of 5,000 letters": {"weight_map/a": "x" * 5000},
    },
    ("tokenizer", "tokenizer.json"): {
        "no model": {"model": GONE},
        "a model that is a number": {"model": 5},
        "another kind": {"model/type": "nobody"},
        "a vocabulary that is a list": {"model/vocab": [1]},
        "marks that are text": {"added_tokens": "x"},
        "a decoder that nobody knows": {"decoder/type": "nobody"},
    },
    ("tokenizer", "tokenizer_config.json"): {"a list": b"[1]", "nesting": DEEP, "not UTF-8": b"\xff"},
    "state.json": {
        "no values": {"values": GONE},
        "values that are a list": {"values": [1]},
        "values that are text": {"values": "x"},
        "no mark": {"none": GONE},
    },
    ("state.json", "state.safetensors"): {"truncated": b"\xff" * 20, "nothing": b""},
    ("notes of the cache", "amx.json"): {"a list": b"[1]", "a number": b"5", "nesting": DEEP},
    ("reply of an agent", "open.json"): {
        "nodes that are a number": {"fallback": 5},
        "nodes that are numbers": {"fallback": [1]},
        "no nodes": {"fallback": GONE},
        "no nonce": {"nonce": GONE},
        "a list": b"[1]",
        "no JSON": b"{",
        "nesting": DEEP,
    },
    ("reply of an agent", "error.json"): {"an error without a text": {"message": GONE}},
    ("reply of an agent", "time.json"): {
        "no times": {"wall_ns": GONE},
        "no state": {"before": GONE},
        "no memory": {"memory": GONE},
        "no other clock": {"cpu_ns": GONE},
    },
    "output of a shell": {
        "nothing": b"",
        "blanks": b" \n \n",
        "an exit code of 5,000 digits": b"\n__HARNESS_ENDED_WITH_" + DIGITS,
        "an exit code of another script": "\n__HARNESS_ENDED_WITH_\N{SUPERSCRIPT TWO}".encode(),
        "a temperature with two points": b"Temperature{mValue=41.5.1, mType=0, mName=CPU0,\n",
    },
    ("trtexec", "times.json"): {"an infinite time": {"0/computeMs": INFINITE}},
    ("trtexec", "trtexec-10.3.txt"): {
        "a version of 5,000 digits": b"&&&& RUNNING TensorRT.trtexec [TensorRT v" + DIGITS + b"]\n&&&& PASSED\n",
        "a memory of 5,000 digits": b"[I] Total Weights Memory: " + DIGITS + b" bytes\n&&&& PASSED\n",
    },
    ("perf_test", "times.csv"): {
        "a field of 200,000 letters": b"m," + b"1" * 200_000 + b"\n",
        "an infinite time": b"m.onnx,1e999,1\n",
    },
    "benchmark_model": {
        "an infinite time": b"count=5 first=1e999 curr=1 min=1 max=1 avg=1e999 std=0\n",
        "a count of 5,000 digits": b"count=" + DIGITS + b" first=1 curr=1 min=1 max=1 avg=1 std=0\n",
        "a memory of 1.7e308": b"count=5 avg=1\nOverall peak memory footprint (MB) via periodic monitoring: 1.7e308\n",
        "a growth of 1.7e308": b"count=5 avg=1\nMemory footprint delta from the start: init=1 overall=1.7e308\n",
    },
    "qnn-net-run": {"an infinite time": b"Execute Stats (Average):\nNetRun: 1e999 us\n"},
}


def cases() -> list[tuple[str, str, str, Change]]:
    """Parser, file (the first where it is empty), what is wrong, and the change."""
    every = [(parser, FILES.get(parser, ""), what, DAMAGE[what]) for parser, names in DAMAGED.items() for what in names]
    for place, group in SHAPES.items():
        parser, file = (place, FILES.get(place, "")) if isinstance(place, str) else place
        every += [(parser, file, what, change) for what, change in group.items()]
    return every


def input_files(parser: Parser, file: str, change: Change) -> Files:
    """The files of an input."""
    if file == DOCUMENTS:
        file = next(name for name, value in parser.values.items() if b'"passages/15"' in value)
    file = file or next(iter(parser.files))
    if isinstance(change, bytes):
        return {file: change}
    value = json.loads(parser.values[file])
    raw: list[bytes] = []
    for place, new in change.items():
        *parents, last = (key.replace("\0", "/") for key in place.replace("//", "\0").split("/"))
        holder = value
        for key in parents:
            holder = holder[int(key) if isinstance(holder, list) else key]
        if new is GONE:
            del holder[last]
        else:
            holder[int(last) if isinstance(holder, list) else last] = (
                f"@@{len(raw)}@@" if isinstance(new, bytes) else new
            )
            raw += [new] if isinstance(new, bytes) else []
    if parser.pack is not None:
        return parser.pack(file, value)
    return {file: re.sub(rb'"@@(\d+)@@"', lambda match: raw[int(match[1])], json.dumps(value).encode())}
