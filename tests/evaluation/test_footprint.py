"""What a model takes, as scores: from the model itself, and from what was measured of it."""

from __future__ import annotations

import dataclasses

import pytest

import harness
from harness import plugins
from harness.api import Context, Samples, Workload
from harness.cell import planning
from harness.cell.request import Request
from harness.devices.simulated import Null
from harness.evaluation.footprint import Footprint
from harness.models.architectures import modeling
from harness.models.architectures.lookup import anatomy_of

from ..families import tiny

PREFILL, DECODE = Workload("prefill", 2, 16), Workload("decode", 3, 16)
MEASURED = {"memory": {"average": 600, "peak": 800, "total": 3200}, "energy_j": 6.4}
QUICK = {"model": "tiny", "device": "null", "limit": 2, "evaluators": "footprint"}


def figures(measured, workloads=(PREFILL, DECODE)):
    model, _ = tiny("llama")
    ctx = Context(
        anatomy=anatomy_of(modeling.config_dict(model)),
        tokenizer=None,
        work_dir=None,
        seed=lambda *_: 0,
        calibration=None,
        workloads=workloads,
        measured=measured,
    )
    found = Footprint().evaluate(model, ctx)
    assert not any(score.higher_is_better for score in found.values())
    return {name: score.documents["model"] for name, score in found.items()}


def test_flops_per_token_are_those_of_what_goes_in():
    found = figures(None)
    assert found[f"flops_per_token[{PREFILL}]"] == found[f"flops[{PREFILL}]"] / 32
    assert found[f"flops_per_token[{DECODE}]"] == found[f"flops[{DECODE}]"] / 3
    assert Workload("image", 8, 224).items == 8


def test_what_was_not_read_has_no_figure():
    assert not [name for name in figures(None) if "memory" in name or "energy" in name]
    assert figures({"memory": None, "energy_j": None}) == figures(None)


def test_memory_and_energy_are_those_that_were_read():
    found = figures(MEASURED)
    told = {name: value for name, value in found.items() if "memory" in name or "energy" in name}
    assert told == {
        "memory_average": 600,
        "memory_average_share": 600 / 3200,
        "memory_peak": 800,
        "memory_peak_share": 0.25,
        f"energy_per_token[{PREFILL}]": pytest.approx(0.2),
    }
    no_total = figures({"memory": {"average": 600, "peak": 800, "total": None}, "energy_j": None})
    assert "memory_peak" in no_total
    assert "memory_peak_share" not in no_total


@pytest.fixture
def telling(monkeypatch):
    """A made-up machine that tells memory and energy, and how much memory it has."""
    told = {"peak": 800, "joules": 2.0}
    honest = Null.measure

    def measure(self, handle, plan):
        samples: Samples = honest(self, handle, plan)
        memory = {"average": 500, "peak": told["peak"]}
        return dataclasses.replace(samples, memory=memory, energy_j=told["joules"] * plan.iterations, energy_note="it")

    monkeypatch.setattr(Null, "measure", measure)
    monkeypatch.setattr(Null, "fingerprint", {**Null.fingerprint, "memory_bytes": 1600})
    return told


def test_a_cell_hands_over_what_it_measured(runs, one_process, telling):
    record = harness.run("random", ratio=0.3, workloads="prefill:2x8", **QUICK)
    scores = record.scores
    assert scores["footprint.memory_peak"].value == 800
    assert scores["footprint.memory_peak_share"].value == scores["footprint.memory_peak_share"].dense == 0.5
    assert scores["footprint.energy_per_token[prefill:2x8]"].value == pytest.approx(2.0 / 16)
    assert record.energy.what == "joules per pass, it"


def test_another_reading_is_another_result(runs, one_process, telling):
    """What was stored for one measurement is not told of the next."""
    first = harness.run("random", ratio=0.3, **QUICK)
    telling["peak"], telling["joules"] = 900, 3.0
    for path in (runs / "samples").iterdir():
        path.unlink()
    second = harness.run("random", ratio=0.3, **QUICK)
    assert second.scores["footprint.memory_peak"].value == second.memory.pruned.peak == 900
    assert second.scores["footprint.memory_peak"].dense == 900
    assert second.keys.eval != first.keys.eval
    assert second.id == first.id


def test_only_who_asks_is_shown_a_measurement(runs, one_process, telling, monkeypatch):
    """Others are stored without it, so they must not depend on it."""
    seen = []
    honest = Footprint.evaluate

    def evaluate(self, model, ctx):
        seen.append(ctx.measured)
        return honest(self, model, ctx)

    monkeypatch.setattr(Footprint, "evaluate", evaluate)
    known = plugins.registry()
    modest = dataclasses.replace(known.get("evaluator", "footprint"), needs=())
    monkeypatch.setitem(known.specs["evaluator"], "footprint", modest)
    harness.run("random", ratio=0.3, **QUICK)
    assert seen == [None, None]
    plan = planning.make_plan(Request("random", ratio=0.3, **{**QUICK, "evaluators": ["footprint"]}))
    assert "measured" not in plan.eval_parts("", plan.evaluations[0], MEASURED)
