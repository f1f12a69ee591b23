"""`harness run --trace`: a look into both models that leaves the record as it is."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

import harness
from harness.api import Workload
from harness.cell import tracing
from harness.cell.lifecycle import Cell, Reporter
from harness.cell.planning import make_plan
from harness.cell.request import Request
from harness.cli.run import command
from harness.errors import EnvironmentFault
from harness.models.workloads import runner
from harness.plugins import registry
from harness.records.files import disk_errors
from harness.records.store import Store

from ..families import tiny

ASKED = {"pruner": "random", "model": "tiny", "device": "null", "ratio": 0.4, "limit": 1, "evaluators": ["footprint"]}
WORDS = ["--pruner", "random", "--model", "tiny", "--device", "null", "--ratio", "0.4", "--limit", "1"]
KEPT = {0: {"attention", "mlp"}, 1: {"mlp"}, 3: {"attention", "mlp"}}  # of the dense model's layers
SPANS = {f"layers.{n}{part}" for n, parts in KEPT.items() for part in ("", *(f".{kind}" for kind in parts))}


@pytest.fixture
def uneven(runs, one_process, monkeypatch):
    """The method drops an attention and a whole layer, so that the pruned model's layers are numbered anew."""
    from harness.pruning.baselines import Random

    gone = ("layers.1.attention", "layers.2.attention", "layers.2.mlp")
    cut = harness.Cut(keep={**{site: [] for site in gone}, "layers.3.mlp": list(range(88))})
    monkeypatch.setattr(Random, "prune", lambda *_: cut)
    return runs


def run(*more: str) -> Result:
    try:
        done = CliRunner().invoke(command, [*WORDS, "--eval", "footprint", *more])
    finally:
        if (printer := registry().manager.get_plugin("event-printer")) is not None:
            registry().manager.unregister(printer)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def events(path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def annotations(path) -> list[str]:
    return [event["name"] for event in events(path) if event.get("cat") == "user_annotation"]


def test_a_trace_shows_the_layers_that_stayed_and_a_table_the_operators(uneven):
    done = run("--trace", "--workload", "prefill:1x16", "--workload", "decode:1x16")
    assert done.exit_code == 0, done.stderr
    (folder,) = (uneven / "traces").iterdir()
    assert [path.stem for path in (uneven / "records").iterdir()] == [folder.name]
    texts = ("decode-1x16", "prefill-1x16")
    files = [f"{text}-{side}.json.gz" for text in texts for side in ("dense", "pruned")]
    assert sorted(path.name for path in folder.iterdir()) == [*files[:2], "operators.json", *files[2:]]
    every = {f"layers.{n}{part}" for n in range(4) for part in ("", ".attention", ".mlp")}
    for text in texts:
        for side, wanted in (("dense", every), ("pruned", SPANS)):
            spans = annotations(folder / f"{text}-{side}.json.gz")
            assert set(spans) == {tracing.PASS, *wanted}
            assert {spans.count(name) for name in set(spans)} == {tracing.PASSES}
    found = json.loads((folder / "operators.json").read_text())
    for workload, words in found["workloads"].items():
        rows = {row["name"]: row for row in words["operators"]}
        assert (rows["aten::linear"]["dense_calls"], rows["aten::linear"]["pruned_calls"]) == (29, 18)
        for side in ("dense", "pruned"):
            seen = {event["name"] for event in events(folder / words["files"][side]) if event.get("cat") == "cpu_op"}
            assert {name for name, row in rows.items() if row[f"{side}_calls"]} == {n for n in seen if "::" in n}
        cost = [max(row["dense_us"], row["pruned_us"]) for row in words["operators"]]
        assert cost == sorted(cost, reverse=True)
        layers = {row["name"]: row for row in words["spans"]}
        assert set(layers) == {tracing.PASS, *every}
        assert layers["layers.1.attention"]["dense_us"] > 0 == layers["layers.1.attention"]["pruned_us"]
        for side in ("dense_us", "pruned_us"):
            assert 0 < sum(row[side] for row in words["operators"]) < layers[tracing.PASS][side]
        table = done.stdout.partition(f"time by operator: {workload}")[2].partition("whole pass")[0]
        printed = [word for word in table.split() if word in rows]
        assert printed == [row["name"] for row in words["operators"][:15]]
    assert "traced on this machine's CPU, eager" in done.stderr
    after = done.stdout.partition("again:")[2]
    assert "time by operator" in after, "the record's table comes first"
    assert not [line for line in after.splitlines()[1:] if len(line) > 100 and str(uneven) not in line]


def test_a_record_from_the_store_is_traced_again_and_stays_as_it_is(uneven):
    first = run("--json")
    assert not (uneven / "traces").exists()
    kept = {path: path.read_bytes() for path in [*uneven.rglob("*.json")]}
    for _ in range(2):
        again = run("--trace", "--events", "--json")
        assert again.exit_code == 0, again.stderr
        assert json.loads(again.stdout) == json.loads(first.stdout)
        assert "event:" not in again.stderr, "no stage ran"
        notes = [line.partition("trace: ")[2] for line in again.stderr.splitlines() if "trace: " in line]
        assert sorted(notes) == sorted(str(path) for path in (uneven / "traces").rglob("*") if path.is_file())
        assert len(notes) == 3
    assert {path: path.read_bytes() for path in kept} == kept
    assert not [*uneven.glob("leases/*.json"), *uneven.glob("tmp/*")]


def test_events_are_told_on_stderr(uneven):
    done = run("--events")
    told = [line.split() for line in done.stderr.splitlines() if line.startswith("event: ")]
    assert told[0][1] == "cell-started"
    assert ["event:", "stage-started", "cut", "0.00", "s"] in told
    assert told[-1][1] == "cell-finished"
    assert "event:" not in done.stdout
    assert not (uneven / "traces").exists()


def test_where_nothing_was_pruned_nothing_is_traced(uneven, monkeypatch):
    from harness.pruning.baselines import Random

    monkeypatch.setattr(Random, "prune", lambda *_: harness.Cut(keep={"layers.0.mlp": [999]}))
    done = run("--trace")
    assert done.exit_code == 1
    assert "note: no trace: this run is failed" in done.stderr
    assert "time by operator" not in done.stdout
    assert not (uneven / "traces").exists()


def test_a_look_that_is_interrupted_leaves_nothing_behind(uneven, monkeypatch):
    monkeypatch.setenv("HARNESS_CPU_THREADS", "2")
    cell = Cell(make_plan(Request(**ASKED)), Store(), Reporter())
    record, before, seen = cell.run(), torch.get_num_threads(), []

    class Impatient(Reporter):
        def progress(self, done: int, total: int) -> None:
            seen.append(torch.get_num_threads())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tracing.trace(cell, record, Impatient())
    assert seen == [2]
    assert torch.get_num_threads() == before
    assert not [*uneven.glob("traces/*"), *uneven.glob("tmp/*")]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in cell.workspace.dense().modules())
    folder, found = tracing.trace(cell, record, Reporter())  # and the next look finds all in order
    assert found["threads"] == 2
    assert set(annotations(folder / "prefill-1x128-pruned.json.gz")) == {tracing.PASS, *SPANS}


def test_spans_close_when_a_layer_fails():
    model, _ = tiny("llama")
    layers = model.model.layers
    step = runner(model, Workload("prefill", 1, 4))
    broken = layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with tracing.spans(model, range(len(layers))), pytest.raises(ZeroDivisionError):
        step()
    broken.remove()
    with tracing.spans(model, range(len(layers))):
        profile = tracing.profiled(step, "cpu", lambda *_: None)
    _, spans = tracing.costs_of(profile, "cpu")
    assert {calls for _, calls in spans.values()} == {1}, "none was left open"
    assert len(spans) == 1 + 3 * len(layers)


@pytest.mark.parametrize("suffix", ["", ".tmp"])  # what is left of it under its name, or under that of its scratch
def test_a_trace_that_the_disk_cut_short_is_no_trace(tmp_path, suffix):
    def short(path: str) -> None:
        Path(path + suffix).write_text('{"traceEvents": [{"ph"')

    profile = SimpleNamespace(export_chrome_trace=short)
    with pytest.raises(EnvironmentFault, match="No space left"), disk_errors(tmp_path):
        tracing.export(profile, tmp_path / "decode-1x8-dense.json.gz")


def test_a_pass_that_was_disturbed_does_not_count():
    """Two passes of three calls, each with a burst of something else: one in the transpose, one in a product."""

    def event(key: str, start: float, us: float, note: bool = False, kind: str = "CPU") -> SimpleNamespace:
        took = {"self_cpu_time_total": us, "cpu_time_total": us, "self_device_time_total": 1, "device_time_total": 2}
        where = {"time_range": SimpleNamespace(start=start), "device_type": SimpleNamespace(name=kind)}
        return SimpleNamespace(key=key, is_user_annotation=note, **took, **where)

    first = [("pass", 0, 110, True), ("aten::mm", 1, 4), ("aten::mm", 5, 5), ("aten::t", 10, 90)]
    second = [("pass", 200, 98, True), ("aten::mm", 201, 4), ("aten::t", 205, 3), ("aten::mm", 208, 50)]
    others = [("cudaLaunchKernel", 2, 1), ("void at::kernel<2>", 3, 9, False, "CUDA"), ("pass", 1, 9, True, "CUDA")]
    seen = [event(*words) for words in [*first, *second, *others]]
    profile = SimpleNamespace(events=lambda: seen)
    assert tracing.costs_of(profile, "cpu") == [{"aten::mm": (9, 2), "aten::t": (3, 1)}, {"pass": (98, 1)}]
    assert tracing.costs_of(profile, "cuda:0") == [{"aten::mm": (2, 2), "aten::t": (1, 1)}, {"pass": (2, 1)}]


def test_the_profiler_is_silent():
    code = (
        "from harness.system import process; process.prepare(); import torch\n"
        "with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]): torch.ones(1) + 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("in_process", "runtime", "place", "told"),
    [
        (True, "eager", "cpu", ""),
        (True, "eager", "cuda", ""),
        (True, "graph", "cuda:1", "traced on cuda:1, eager"),
        (True, "onnxruntime", "cpu", "traced on this machine's CPU, eager"),
        (False, "eager", "cpu", "traced on this machine's CPU, eager"),
    ],
)
def test_what_is_traced_in_another_way_than_it_was_timed_is_said(in_process, runtime, place, told):
    device = SimpleNamespace(in_process=in_process, name="it")
    said = tracing.stand_in(SimpleNamespace(device=device, spec=SimpleNamespace(runtime=runtime), torch_device=place))
    assert said.startswith(told)
    assert bool(said) == bool(told)
