"""Real records of a made-up device, as a runs folder: three methods, two budgets, two seeds of one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import harness
from harness import plugins
from harness.api import Score
from harness.cell.scoring import compare_scores, score_payload
from harness.devices.simulated import Null
from harness.records.schema import Conformance, Git
from harness.records.store import Store

from .forks import in_one_process

WATTS = 2.0
QUESTIONS = 50
HARDER = {"quiz": 0, "riddles": 5}  # so many questions fewer are answered


class Bench(Null):
    """As quick as its FLOPs say, with a little noise of its own: something for intervals to hold."""

    calls = 0

    def measure(self, handle, plan):
        samples = super().measure(handle, plan)
        Bench.calls += 1
        samples.wall_ns = [round(ns * (1 + 0.002 * ((Bench.calls * 7) % 5))) for ns in samples.wall_ns]
        samples.energy_j = WATTS * sum(samples.wall_ns) / 1e9
        return samples


def filled(folder: Path) -> Path:
    """A runs folder whose records may be published."""
    with pytest.MonkeyPatch.context() as patch:
        in_one_process(patch)
        known = plugins.registry()
        spec = dataclasses.replace(known.get("device", "null"), name="bench", target="t:Bench", provenance="device")
        patch.setitem(known.specs["device"], "bench", spec)
        patch.setitem(known.origins, ("device", "bench"), plugins.Origin("tests", "tests", "0"))
        inner = plugins.import_target
        patch.setattr(plugins, "import_target", lambda name: Bench if name == spec.target else inner(name))
        version = plugins.code_version
        patch.setattr(plugins, "code_version", lambda kind, name: "test" if name == "bench" else version(kind, name))
        asked = {"model": "tiny", "device": "bench", "evaluators": "passages", "out": folder}
        harness.run("dense", **asked)
        for ratio in (0.3, 0.6):
            harness.run("magnitude", ratio=ratio, **asked)
            for seed in (0, 1):
                harness.run("random", ratio=ratio, seed=seed, **asked)
        harness.run("wanda", latency="0.8x", **asked)  # unsupported: a row with its reason
    store = Store(folder)
    for record in store.records():
        environment = record.environment.model_copy(update={"git": Git(commit="0" * 40, dirty=False)})
        told = {"environment": environment}
        if record.status == "ok":
            told["conformance"] = Conformance(kit="test", passed=1, of=1)
        store.save_record(record.model_copy(update=told).sealed())
    return folder


Known = dict[tuple[str, float], int]


def answered(runs: Path, folder: Path, known: Known) -> Path:
    """A copy with two accuracies more: by method and ratio the questions that it knows, the easiest ones first."""
    store = Store(Path(shutil.copytree(runs, folder, ignore=shutil.ignore_patterns("artefacts", "cuts"))))

    def score(name: str, knows: int) -> dict:
        right = {f"{name}/{at}": float(at < knows - HARDER[name]) for at in range(QUESTIONS)}
        return score_payload(Score(right, higher_is_better=True), store)

    for record in store.records():
        if record.status == "ok":
            knows, dense = known[record.spec.pruner, record.spec.budget.value], known["dense", 0.0]
            asked = {name: compare_scores(score(name, knows), score(name, dense), store) for name in HARDER}
            store.save_record(record.model_copy(update={"scores": record.scores | asked}).sealed())
    return folder


def recovered(runs: Path, pruner: str, ratio: float, recovery: str) -> None:
    """As if this had followed one method's cuts at one ratio."""
    store = Store(runs)
    for record in store.records():
        if (record.spec.pruner, record.spec.budget.value) == (pruner, ratio):
            spec = record.spec.model_copy(update={"recovery": recovery})
            store.save_record(record.model_copy(update={"spec": spec}).sealed())
