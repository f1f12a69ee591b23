"""The life of a cell on the tiny model: from command to record, through kills and damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import harness
from harness.cell.lifecycle import Reporter
from harness.errors import HarnessError
from harness.latency import gates
from harness.records.store import Store

QUICK = {"model": "tiny", "device": "null", "limit": 2}
COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]


class Stages(Reporter):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.notices: list[str] = []

    def stage(self, name: str) -> None:
        self.seen.append(name)

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One finished cell on the cpu device, shared by the tests that only look, however noisy the machine."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    stages = Stages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "FLOOR_LIMIT", float("inf"))
        record = harness.run("magnitude", model="tiny", ratio=0.2, limit=2, out=folder, reporter=stages)
    assert record.status == "ok", record.reason
    return folder, record, stages


def untimed(record) -> dict:
    """A record without what measures time or this process."""
    words = record.to_dict()
    changing = ("latency", "gates", "memory", "cost", "started", "finished", "history", "digest", "seal", "environment")
    for name in changing:
        words.pop(name)
    words["scores"] = {name: score for name, score in words["scores"].items() if "memory" not in name}
    return words


@pytest.mark.alone
def test_a_record_holds_the_evidence(made):
    folder, record, stages = made
    assert stages.seen[:3] == ["find the weights", "load", "prepare"]
    assert record.artefact.params == harness.load(folder / record.artefact.path).num_parameters()
    assert record.budget.asked == 0.2
    assert record.budget.achieved >= 0.2
    assert record.budget.achieved == pytest.approx(record.budget.predicted)
    timing = record.latency["prefill:1x128"]
    assert timing.clock == "cpu"
    assert timing.rounds in (6, 12)  # twice as many where six said too little
    assert set(timing.other_clock) == {"wall"}
    raw = Store(folder).read_side_file(timing.samples)
    assert len(raw["dense"]) == len(raw["pruned"]) == len(raw["again"]) == timing.rounds
    assert all(len(visit["cpu_ns"]) == len(visit["wall_ns"]) >= 3 for visit in raw["pruned"])
    assert timing.pruned.n == sum(len(visit["cpu_ns"]) for visit in raw["pruned"])
    assert {gate.name for gate in record.gates} >= {"noise floor", "running"}
    assert {gate.guards for gate in record.gates if gate.name == "noise floor"} == {"cpu", "wall"}
    documents = Store(folder).read_side_file(record.scores["passages"].samples)["documents"]
    mean = sum(documents.values()) / len(documents)
    assert record.scores["passages"].value == pytest.approx(float(torch.tensor(mean).exp()), rel=1e-5)
    assert record.scores["passages"].details["data"]["name"] == "passages"
    assert record.flops["prefill:1x128"].pruned == record.scores["footprint.flops[prefill:1x128]"].value
    assert record.memory.dense.peak > record.artefact.params_dense
    assert record.environment.packages["torch"]


@pytest.mark.alone
def test_the_folder_is_a_model_with_its_evidence(made):
    folder, record, _ = made
    model = folder / record.artefact.path
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "cut.json", "record.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((model / "record.json").read_text())["id"] == record.id
    assert "pruned by magnitude" in (model / "README.md").read_text()
    assert set(json.loads((model / "cut.json").read_text())["keep"]) == set(record.artefact.shape)


@pytest.mark.alone
def test_the_same_cell_is_answered_from_the_store(made):
    folder, record, _ = made
    stages = Stages()
    again = harness.run("magnitude", model="tiny", ratio=0.2, limit=2, out=folder, reporter=stages)
    assert again == record
    assert stages.seen == ["find the weights"]


@pytest.mark.alone
def test_another_device_uses_the_same_artefact(made):
    folder, record, _ = made
    stages = Stages()
    other = harness.run("magnitude", ratio=0.2, out=folder, reporter=stages, **QUICK)
    assert other.artefact == record.artefact
    assert other.id != record.id
    assert not {"prune", "cut", "save and reload", "passages of pruned"} & set(stages.seen)
    assert other.latency["prefill:1x128"].provenance == "simulated"


@pytest.mark.alone
def test_another_budget_uses_the_same_statistics(made, one_process):
    folder, _, _ = made
    stages = Stages()
    other = harness.run("magnitude", ratio=0.5, out=folder, reporter=stages, **QUICK)
    assert "prepare" not in stages.seen
    assert "passages of dense" not in stages.seen
    assert other.budget.achieved >= 0.5


def test_zero_is_identity(runs, one_process):
    record = harness.run("magnitude", ratio=0, **QUICK)
    assert record.artefact.params == record.artefact.params_dense
    assert record.scores["passages"].value == record.scores["passages"].dense
    assert record.budget.unused == 0


@pytest.mark.parametrize(("granularity", "ratio"), [("unstructured", 0.35), ("2:4", 0.5)])
def test_element_masks_keep_shapes_and_make_zeros(runs, one_process, granularity, ratio):
    record = harness.run("magnitude", ratio=ratio, settings={"granularity": granularity}, **QUICK)
    assert record.status == "ok", record.reason
    artefact = record.artefact
    assert artefact.params == artefact.params_dense
    assert ratio <= artefact.ratio_blocks < ratio + 1e-4
    gone = artefact.params_dense - artefact.params_nonzero
    assert gone / artefact.params_dense == pytest.approx(artefact.ratio_total, abs=1e-3)
    model = harness.load(runs / artefact.path)
    if granularity == "2:4":
        blocks = model.model.layers[2].mlp.up_proj.weight.reshape(-1, 4)
        assert int((blocks == 0).sum(1).min()) == 2


def test_the_wrong_ratio_for_a_pattern_is_refused(runs):
    record = harness.run("magnitude", ratio=0.4, settings={"granularity": "2:4"}, **QUICK)
    assert record.status == "unsupported"
    assert "--ratio 0.5" in record.reason


def test_global_allocation_and_uneven_layers(runs, one_process):
    record = harness.run("magnitude", ratio=0.4, settings={"allocation": "global"}, **QUICK)
    assert record.status == "ok", record.reason
    folder = runs / record.artefact.path
    assert json.loads((folder / "config.json").read_text())["model_type"] == "pruned_llama"
    check_without_harness(folder, trust=True)


@pytest.mark.alone
def test_even_layers_open_plainly(made):
    folder, record, _ = made
    check_without_harness(folder / record.artefact.path, trust=False)


def check_without_harness(folder: Path, trust: bool) -> None:
    """transformers alone opens the folder: same logits, same tokens with and without cache."""
    expected = folder.parent / "expected.pt.safetensors"
    from safetensors.torch import save_file

    tokens = torch.arange(20).view(1, 20) * 11 % 258
    with torch.inference_mode():
        save_file({"tokens": tokens, "logits": harness.load(folder)(tokens).logits}, expected)
    code = f"""
import sys
sys.modules["harness"] = None  # as if it were not installed
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code={trust}, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
kept = load_file({str(expected)!r})
with torch.inference_mode():
    found = model(kept["tokens"]).logits
assert (found - kept["logits"]).abs().max() <= 1e-5 * kept["logits"].abs().max()
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code={trust})
prompt = tokenizer("The river", return_tensors="pt")
out = [model.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=c) for c in (True, False)]
assert torch.equal(*out)
assert tokenizer.decode(prompt.input_ids[0]) == "The river"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bf16(runs, one_process):
    record = harness.run("random", ratio=0.3, dtype="bf16", **QUICK)
    assert record.status == "ok", record.reason
    assert harness.load(runs / record.artefact.path).dtype == torch.bfloat16


@pytest.mark.alone
def test_evaluate_and_measure_are_functions(made):
    folder, record, _ = made
    path = folder / record.artefact.path
    scores = harness.evaluate(path, ["passages"], limit=2, out=folder)
    assert scores["passages"].value == record.scores["passages"].value
    latency = harness.measure(path, device="null")
    assert latency.speedup == pytest.approx(1)
    assert latency.provenance == "simulated"


@pytest.mark.parametrize("record_stays", [True, False])
def test_an_artefact_that_was_changed_is_made_again(runs, one_process, record_stays):
    first = harness.run("random", ratio=0.3, **QUICK)
    weights = runs / first.artefact.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    if not record_stays:
        (runs / "records" / f"{first.id}.json").unlink()
    stages = Stages()
    again = harness.run("random", ratio=0.3, reporter=stages, **QUICK)
    assert "was changed since it was saved" in stages.notices[0]
    assert again.artefact == first.artefact


def test_lost_samples_are_measured_again(runs, one_process):
    first = harness.run("dense", **QUICK)
    for path in (runs / "samples").iterdir():
        path.unlink()
    stages = Stages()
    again = harness.run("dense", reporter=stages, **QUICK)
    assert "raw samples" in stages.notices[0]
    assert Store(runs).read_side_file(again.scores["passages"].samples)["documents"]
    assert untimed(again) == untimed(first)


def test_a_figure_that_is_no_number_is_damage(runs, one_process):
    first = harness.run("dense", **QUICK)
    path = runs / "records" / f"{first.id}.json"
    path.write_text(path.read_text().replace('"unused": 0.0', '"unused": NaN'))
    (runs / "records" / "zz.json").mkdir()
    store = Store(runs)
    assert store.records() == []
    assert len(store.notices) == 2


def test_devices_of_one_fingerprint_are_not_one_device(runs, one_process, monkeypatch):
    import dataclasses

    from harness import plugins

    known = plugins.registry()
    twin = dataclasses.replace(known.get("device", "null"), name="twin", clock="cpu")
    monkeypatch.setitem(known.specs["device"], "twin", twin)
    monkeypatch.setitem(known.origins, ("device", "twin"), known.origins["device", "null"])
    first = harness.run("dense", **QUICK)
    other = harness.run("dense", **{**QUICK, "device": "twin"})
    assert other.id != first.id
    assert other.keys.measure != first.keys.measure


@pytest.mark.parametrize("harm", ["truncate", "edit"])
def test_a_damaged_record_is_named_and_made_again(runs, one_process, harm):
    first = harness.run("dense", **QUICK)
    path = runs / "records" / f"{first.id}.json"
    text = path.read_text()
    path.write_text(text[:200] if harm == "truncate" else text.replace('"limit": 2', '"limit": 3'))
    stages = Stages()
    again = harness.run("dense", reporter=stages, **QUICK)
    assert path.name in stages.notices[0]
    assert untimed(again) == untimed(first)
    assert json.loads(path.read_text())["digest"] == again.digest


def test_failures_are_rows_and_never_hits(runs, one_process, monkeypatch):
    from harness.pruning.baselines import Random

    honest = Random.prune
    monkeypatch.setattr(Random, "prune", lambda *_: harness.Cut(keep={"layers.0.mlp": [999]}))
    failed = harness.run("random", ratio=0.3, **QUICK)
    assert failed.status == "failed"
    assert "keeps unit 999 of layers.0.mlp" in failed.reason
    assert Store(runs).record(failed.id) == failed
    monkeypatch.setattr(Random, "prune", lambda *_: harness.Cut())
    over = harness.run("random", ratio=0.3, **QUICK)
    assert over.status == "over_budget"
    assert "random removed 0" in over.reason
    monkeypatch.setattr(Random, "prune", honest)
    assert harness.run("random", ratio=0.3, seed=1, **QUICK).status == "ok"


def test_a_method_that_changes_the_model_in_place_changes_nothing(runs, one_process, monkeypatch):
    """Only what a cut declares reaches the pruned model, and nothing the dense one."""
    from harness.pruning.baselines import Dense

    def meddle(self, model, *_):
        for parameter in model.parameters():
            parameter.data.mul_(3)
        return harness.Cut()

    before = harness.run("random", ratio=0.3, **QUICK).scores["passages"].dense
    monkeypatch.setattr(Dense, "prune", meddle)
    record = harness.run("dense", **QUICK)
    assert record.scores["passages"].value == record.scores["passages"].dense == before


def test_a_crash_of_a_method_leaves_a_traceback(runs, monkeypatch):
    from harness.pruning.baselines import Random

    def crash(*_):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(Random, "prune", crash)
    record = harness.run("random", ratio=0.3, **QUICK)
    assert record.status == "failed"
    assert "ZeroDivisionError: by design" in record.reason
    assert "in crash" in next((runs / "logs").iterdir()).read_text()


def test_a_file_a_method_misses_is_not_a_full_disk(runs, monkeypatch):
    from harness.pruning.baselines import Random

    monkeypatch.setattr(Random, "prune", lambda *_: Path("/nowhere/at/all").read_text())
    record = harness.run("random", ratio=0.3, **QUICK)
    assert record.status == "failed"
    assert "FileNotFoundError" in record.reason


def test_an_unsupported_family_lists_the_supported(runs, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    record = harness.run("magnitude", **{**QUICK, "model": str(folder)})
    assert record.status == "unsupported"
    assert "supported: gemma, llama, mistral, qwen2, qwen3" in record.reason


def test_disk_full_loses_nothing(runs, one_process, monkeypatch):
    import errno

    from harness.models.saved import folders

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write", full)
        with pytest.raises(HarnessError, match="No space left") as caught:
            harness.run("random", ratio=0.3, **QUICK)
    assert caught.value.exit_code == 3
    stages = Stages()
    assert harness.run("random", ratio=0.3, reporter=stages, **QUICK).status == "ok"
    assert "prune" not in stages.seen


def kill_at(moment: float, arguments: list[str], env: dict[str, str]) -> bool:
    """Run the command in a session of its own and kill all of it after so many seconds."""
    process = subprocess.Popen(
        COMMAND + arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=moment)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def survive(tmp_path: Path, moments: list[float], reference: Path) -> None:
    arguments = ["run", "--pruner", "magnitude", "--model", "tiny", "--ratio", "0.3", "--limit", "2", "--json"]
    arguments += ["--device", "null", "--seed", "7"]
    undisturbed = subprocess.run(
        COMMAND + arguments, env={**os.environ, "HARNESS_RUNS": str(reference)}, capture_output=True, text=True
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    want = Store(reference).records()[0]
    killed = 0
    for number, moment in enumerate(moments):
        root = tmp_path / f"runs-{number}"
        env = {**os.environ, "HARNESS_RUNS": str(root)}
        killed += kill_at(moment, arguments, env)
        done = subprocess.run(COMMAND + arguments, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        store = Store(root)
        (record,) = store.records()
        assert untimed(record) == untimed(want), f"killed after {moment:.2f} s"
        assert not store.notices, store.notices
        assert json.loads(done.stdout) == record.to_dict()
        assert not list((root / "tmp").iterdir())
    assert killed >= (len(moments) + 1) // 2, "too few runs were still alive when they were to be killed"


@pytest.mark.slow  # with fresh processes; tests/faults/test_kills.py kills runs without them
def test_a_killed_run_continues(tmp_path):
    survive(tmp_path, [6.0], tmp_path / "reference")


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    start = time.monotonic()
    survive(tmp_path, [], tmp_path / "warm")
    whole = time.monotonic() - start
    rng = random.Random(time.time_ns())
    survive(tmp_path, [rng.uniform(0, whole) for _ in range(20)], tmp_path / "reference")


@pytest.mark.slow
def test_the_default_model_is_real(runs):
    """SmolLM2 out of its package: the published size, and a perplexity that only trained weights have."""
    record = harness.run("dense", device="null", limit=4)
    assert record.status == "ok", record.reason
    assert record.artefact.params == 134_515_008
    assert record.scores["passages"].value == record.scores["passages"].dense
    assert 15 < record.scores["passages"].value < 30
    assert (runs / record.artefact.path / "config.json").exists()
