"""The parsers that are fuzzed: what each begins with, and its share of the inputs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from . import bases, parsers
from .bases import PRUNED, SOUND, Files, to_json
from .parsers import Parse, Parser

CELL = "0" * 24
# Of all inputs, how many each parser gets: cheap ones more.
SHARES = {
    "record": 60,
    "records": 20,
    "entry": 45,
    "stage": 60,
    "status: records": 10,
    "status: stage": 10,
    "status: stage sealed again": 8,
    "status: index": 12,
    "status: leases": 8,
    "status: sweeps": 10,
    "side file": 60,
    "side file, values": 3,
    "sealed again: page": 10,
    "sealed again: HTML": 6,
    "sealed again: tree": 4,
    "sealed again: validate": 3,
    "sealed again: status": 8,
    "sealed again: compare": 6,
    "sealed again: publish": 2,
    "suite": 20,
    "device file": 30,
    "settings": 45,
    "names": 30,
    "workload": 50,
    "budget": 50,
    "grid": 30,
    "rows of text": 40,
    "rows of a task": 5,
    "reported figures": 25,
    "cost table": 25,
    "cost table of a store": 15,
    "config.json: llama": 12,
    "config.json: qwen3": 6,
    "config.json: mistral": 6,
    "config.json: gemma": 6,
    "config.json: qwen2": 6,
    "config.json: uneven": 6,
    "config.json: scaled": 6,
    "config.json: plan": 6,
    "config.json: load": 6,
    "generation_config.json": 2,
    "cut.json": 30,
    "weights index": 50,
    "model.safetensors": 60,
    "tokenizer": 6,
    "state.json": 40,
    "GGUF": 2,
    "GGUF header": 40,
    "notes of the cache": 25,
    "reply of an agent": 45,
    "output of a shell": 30,
    "trtexec": 30,
    "perf_test": 30,
    "benchmark_model": 30,
    "qnn-net-run": 30,
}
ARGUMENTS = {
    "workload": ["prefill:1x128", "decode:1x512", "image:8x224"],
    "budget": ["ratio 0.3", "latency 0.8x", "latency 25ms", "ratio .5"],
    "grid": ["350", "DEU", "0.5", "1e3"],
    "names": [
        "footprint\nnone",
        "passages:window=64,footprint\nlora:steps=3:rank=4",
        "wikitext2:window=2048\nleast-squares",
        "smoke\nleast-squares:rows=8",
        "generation:prompts=2\nnone",
    ],
}


@cache
def catalogue() -> dict[str, Parser]:
    return {parser.name: parser for parser in (*_store(), *_sealed(), *_users(), *_models(), *_machines())}


def _parser(name: str, parse: Parse, files: Files, beside: Files | None = None, **more: Any) -> Parser:
    values = {file: content for file, content in files.items() if file.endswith(".json")}
    values |= {file: _yaml_as_json(content) for file, content in files.items() if file.endswith(".yaml")}
    return Parser(name, SHARES[name], parse, files, {**(beside or {})}, values=values | more.pop("values", {}), **more)


def _yaml_as_json(content: bytes) -> bytes:
    import yaml

    return to_json(yaml.safe_load(content))


def _arguments(name: str, parse: Parse, beside: Files | None = None) -> Parser:
    """One that takes text of a command line, which lies in a file here."""
    return _parser(
        name, parse, {f"{at}.txt": text.encode() for at, text in enumerate(ARGUMENTS[name])}, beside, is_file=False
    )


def _store() -> list[Parser]:
    samples, cells = bases.samples("samples"), bases.records("records")
    golden = {path.stem: path.read_bytes() for path in sorted((bases.ROOT / "tests" / "golden").glob("*.json"))}
    old = {f"records/{json.loads(content)['id']}.json": content for content in golden.values()}
    sound = bases.sound("records")
    spec = bases.load_record(PRUNED)["spec"]
    staged = {f"stages/cell/{key * 24}.json": bases.stage(key * 24, spec) for key in "ab"}
    side = {f"samples/{name}": content for name, content in _side_files().items()}
    return [
        _parser("record", parsers.record, cells | old),
        _parser("records", parsers.records, cells | old, sound),
        _parser("entry", parsers.entry, cells, samples),
        _parser("stage", parsers.stage, staged),
        _parser("status: records", parsers.status, cells, sound),
        _parser("status: stage", parsers.status_why, staged, sound),
        _parser("status: stage sealed again", parsers.status, staged, sound, pack=_stage, values=_specs(staged, spec)),
        _parser("status: index", parsers.status, {"index.json": _index()}, sound),
        _parser("status: leases", parsers.status, bases.leases(), sound | staged),
        _parser("status: sweeps", parsers.status, bases.sweep(), sound),
        _parser("side file", parsers.side_file, side),
        _parser("side file, values", parsers.side_values, side, sound | samples, pack=_side, values=_side_values()),
    ]


def _specs(files: Files, spec: Any) -> dict[str, bytes]:
    return {file: to_json(spec) for file in files}


def _side_files() -> Files:
    return dict(bases.side_file(value) for value in bases.side_values().values())


def _side_values() -> dict[str, bytes]:
    return {f"samples/{bases.side_file(value)[0]}": to_json(value) for value in bases.side_values().values()}


def _side(file: str, value: Any) -> Files:
    """Another side file in the place of one, and the record that names it, sealed again."""
    try:
        name, content = bases.side_file(value)
    except (TypeError, ValueError):  # no JSON, so it has no hash
        name, content = Path(file).name, to_json(value)
    text = json.dumps(bases.load_record(PRUNED)).replace(Path(file).name, name)
    return {f"samples/{name}": content, f"records/{CELL}.json": bases.seal_record(json.loads(text), CELL)}


def _stage(file: str, value: Any) -> Files:
    return {file: bases.stage(Path(file).stem, value)}


def _index() -> bytes:
    """The rows of a store that holds the sound record; its file's time is that of every file of a fuzz run."""
    size = len(bases.sound("")[f"/{SOUND}.json"])
    row = {"id": SOUND, "status": "ok", "what": "magnitude smollm2-135m ratio 0.2 on cpu", "detail": "2026-11-30"}
    other = {"id": CELL, "status": "failed", "what": "random", "detail": "it broke"}
    rows = {SOUND: {"stamp": [bases.TIME_NS, size], "row": row}, CELL: {"stamp": [1, 2], "row": other}}
    return to_json({"version": 1, "rows": rows})


def _sealed() -> list[Parser]:
    runs = bases.sound("records") | bases.samples("samples")
    boards = bases.sound("results/set") | bases.samples("results/set/samples")

    def parser(name: str, parse: Parse, folder: str = "records", beside: Files = runs) -> Parser:
        return _parser(
            f"sealed again: {name}", parse, bases.records(folder), beside, pack=_record, is_file=name != "compare"
        )

    return [
        parser("page", parsers.printed_page),
        parser("HTML", parsers.html),
        parser("tree", parsers.tree, "results/set", boards),
        parser("validate", parsers.validate),
        parser("status", parsers.status),
        parser("compare", parsers.compare, "other"),
        parser("publish", parsers.publish),
    ]


def _record(file: str, value: Any) -> Files:
    return {file: bases.seal_record(value, Path(file).stem) if isinstance(value, dict) else to_json(value)}


def _users() -> list[Parser]:
    text = {
        "c4.jsonl": b"".join(json.dumps({"text": f"row {at}", "url": "u"}).encode() + b"\n" for at in range(8)),
        "ptb.test.txt": b"no it was n't black monday\nbut while the <unk> fell\n",
    }
    task = {"piqa/validation.jsonl": b'{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n' * 3}
    chosen = {
        "magnitude": {"granularity": "unstructured"},
        "wanda": {"pattern": "2:4"},
        "dilap": {},
        "random": {},
        "llm-pruner": {},
    }
    return [
        _parser("suite", parsers.suite, bases.suites()),
        _parser("device file", parsers.device_file, bases.device_files()),
        _parser("settings", parsers.settings, {"settings.json": to_json(_defaults(chosen))}, pack=_json, is_file=False),
        _arguments("names", parsers.names, {"c4.jsonl": text["c4.jsonl"]}),
        _arguments("workload", parsers.workload),
        _arguments("budget", parsers.budget),
        _arguments("grid", parsers.grid),
        _parser("rows of text", parsers.text_rows, text, text),
        _parser("rows of a task", parsers.task_rows, task),
        _parser("reported figures", parsers.reported, {"reported.json": bases.reported()}),
    ]


def _json(file: str, value: Any) -> Files:
    return {file: to_json(value)}


def _defaults(chosen: dict[str, Any]) -> dict[str, Any]:
    """Every parameter of these methods at its usual value."""
    from harness import plugins

    registry = plugins.registry()
    return {
        name: {key: param.default("quick") for key, param in registry.get("pruner", name).parameters.items()} | given
        for name, given in chosen.items()
    }


def _models() -> list[Parser]:
    model = bases.model()
    configs = {"config.json": model["config.json"]}
    cut = {name: model[name] for name in ("cut.json", "cut.safetensors", "notes/search.txt")}
    shard = {"a.safetensors": model["model.safetensors"], "b.safetensors": model["cut.safetensors"]}
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    tokens = {name: model[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    noted = {"hashes.json": to_json({"/a 1 2": "0" * 64}), "amx.json": to_json({"cpu, torch 2": True})}
    key = json.loads(bases.table())
    shelved = f"tables/{_table_key(key)}.json"
    return [
        _parser("cost table", parsers.table, {"table.json": bases.table()}),
        _parser("cost table of a store", parsers.shelved_table, {shelved: bases.table()}),
        _parser("config.json: llama", parsers.config, {"config.json": to_json(bases.CONFIG)}),
        *(
            _parser(f"config.json: {Path(name).stem}", parsers.config, {"config.json": to_json(config)})
            for name, config in bases.OTHER_CONFIGS.items()
        ),
        _parser("config.json: plan", parsers.plan, configs),
        _parser("config.json: load", parsers.load, configs, {"model.safetensors": model["model.safetensors"]}),
        _parser("generation_config.json", parsers.load, _only(model, "generation_config.json"), model),
        _parser("cut.json", parsers.cut, cut, cut),
        _parser("weights index", parsers.weight_files, {"model.safetensors.index.json": to_json(index)}, shard),
        _parser("model.safetensors", parsers.weight_files, _only(model, "model.safetensors")),
        _parser("tokenizer", parsers.tokenizer, tokens, tokens),
        _parser("state.json", parsers.state, bases.state(), bases.state()),
        _parser("GGUF", parsers.gguf, {"model.gguf": bases.gguf(whole=True)}),
        _parser("GGUF header", parsers.gguf_header, {"model.gguf": bases.gguf(whole=False)}),
        _parser("notes of the cache", parsers.notes, noted, noted | configs),
    ]


def _only(files: Files, name: str) -> Files:
    return {name: files[name]}


def _table_key(table: dict[str, Any]) -> str:
    from harness.latency.cost_table.table import table_key

    return table_key(table["anatomy"], table["device"], table["runtime"], table["dtype"], table["workload"])


def _machines() -> list[Parser]:
    probe = {
        "nonce": "NONCE",
        "agent": 2,
        "machine": "aarch64",
        "system": "Linux",
        "python": "3.10.12",
        "model": "Orin",
    }
    probe |= {"cores": 4, "governors": ["schedutil"], "emulated": False, "missing": {}}
    probe |= {"packages": {"onnxruntime": "1.20", "numpy": "1.26"}}
    state = {
        "time_ns": 10**9,
        "own_ns": 5,
        "cores": 4,
        "clocks_khz": [1],
        "temperatures_c": {"cpu": 40.0},
        "throttle": [],
    }
    times = {"wall_ns": [100, 110, 120], "cpu_ns": [90, 95, 99], "before": state, "after": state}
    replies = {
        "probe.json": to_json(probe | {"state": state}),
        "time.json": to_json(times | {"nonce": "NONCE", "agent": 2, "memory": {"average": 1, "peak": 2}}),
        "open.json": to_json({"nonce": "NONCE", "agent": 2, "parts": 1, "fallback": ["Cast x on CPU"], "base": [1, 2]}),
        "error.json": to_json({"nonce": "NONCE", "agent": 2, "error": "ValueError", "message": "no such model"}),
        "probe.txt": b"Welcome\nHARNESS_ANSWER " + json.dumps(probe | {"state": state}).encode() + b"\n",
    }
    properties = b"""    Current temperatures from HAL:
    Temperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}
Thermal Status: 0
Filesystem 1024-blocks Used Available Capacity Mounted on
/dev/sda1 1000000 200000 800000 20% /
0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef  /data/program

__HARNESS_ENDED_WITH_0
"""
    printed = {"out.txt": properties, "hash.txt": properties.splitlines(True)[5]}
    csv = b"model,seconds,peak,cpu,run\nm.onnx,0.0958,271122432,11,0\nm.onnx,0.0961,271122432,11,1\n"
    rows = [{"startMs": 0.1, "computeMs": 0.94, "latencyMs": 0.97}, {"computeMs": 1, "latencyMs": 1.5}]
    return [
        _parser("reply of an agent", parsers.agent, replies, is_file=False),
        _parser("output of a shell", parsers.shell, printed, is_file=False),
        _parser("trtexec", parsers.trtexec, bases.outputs("trtexec*") | {"times.json": to_json(rows)}, is_file=False),
        _parser("perf_test", parsers.perf_test, bases.outputs("perf_test*") | {"times.csv": csv}, is_file=False),
        _parser("benchmark_model", parsers.benchmark_model, bases.outputs("benchmark_model*"), is_file=False),
        _parser("qnn-net-run", parsers.net_run, bases.outputs("net_run*") | bases.outputs("viewer*"), is_file=False),
    ]
