"""The DiLAP method as a whole: its results where the best is known, and searches that are interrupted."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness_dilap.inner import Compensated, Frozen
from harness_dilap.method import Dilap
from harness_dilap.project import largest_step
from harness_dilap.search import Splits
from harness_dilap.storage import load, save

from harness import Budget, Unsupported, Workload
from harness.cell import planning
from harness.cell.request import Request
from harness.conformance import Conformance
from harness.conformance.tiny_models import (
    PLAIN,
    context,
    cost_model,
    depth_only,
    line,
    steps_of_128,
    steps_of_eight,
    tiny,
    tokens,
)
from harness.errors import HarnessError, UsageError
from harness.models.cut import check_cut
from harness.pruning import distance
from harness.pruning.distance import Distance
from harness.system import process

QUICK = Dilap(samples=12, length=16, held_out=2, steps=20, stride=1, swaps=3, compute="fp32")


def prune(method, curve, limit, name=PLAIN, folder=None, sizes=None, **more):
    """The cut at a latency limit, after a check that it uses the limit well."""
    model, anatomy = tiny(name, **(sizes or {}))
    cost = cost_model(anatomy, curve)
    ctx = context(anatomy, latency=cost, work_dir=folder, **more)
    cut = check_cut(anatomy, method.prune(model, Budget("latency", limit, "x"), ctx, method.prepare(model, ctx)))
    assert cost.time(cut.shape) <= limit * cost.dense + 1e-6
    unused = limit * cost.dense - cost.time(cut.shape)
    assert unused < largest_step(cost, [site.name for site in anatomy.blocks()]) + 1e-6
    return cut, anatomy


@pytest.mark.parametrize("limit", [0.8, 0.5])
def test_where_only_depth_pays_whole_sub_layers_go(limit, tmp_path):
    cut, _ = prune(QUICK, depth_only, limit, folder=tmp_path)
    assert set(cut.shape.values()) == {0}


def test_widths_lie_on_the_edges_of_steps(tmp_path):
    cut, _ = prune(QUICK, steps_of_eight, 0.6, folder=tmp_path)
    assert {units % 8 for site, units in cut.shape.items() if site.endswith("mlp")} == {0}


def test_wide_widths_lie_on_the_edges_of_steps_of_128(tmp_path):
    cut, _ = prune(QUICK, steps_of_128, 0.6, folder=tmp_path, sizes={"intermediate_size": 640})
    assert {units % 128 for site, units in cut.shape.items() if site.endswith("mlp")} == {0}


def test_sub_layers_that_cost_nothing_stay_whole(tmp_path):
    cut, anatomy = prune(replace(QUICK, swaps=0), free_attention, 0.7, folder=tmp_path)
    shape = anatomy.complete(cut.shape)
    assert {shape[site.name] for site in anatomy.blocks() if site.kind == "attention"} == {4}


def free_attention(site, units):
    return units * 1.0 if site.kind == "mlp" else 0.0


def test_without_depth_every_sub_layer_keeps_something(tmp_path):
    cut, _ = prune(replace(QUICK, depth=False), line, 0.6, folder=tmp_path)
    assert min(cut.shape.values()) >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"inner": "lora"},
        {"inner": "lora", "unrolled": True},
        {"inner": "lora", "merge": True},
        {"inner": "full"},
        {"inner": "least-squares", "ridge": 1.0},
        {"loss": "task"},
        {"guide": "flops", "projection": "round"},
        {"guide": "sites"},
        {"order": "activation"},
        {"order": "taylor", "refresh": 0},
        {"compute": "bf16"},
    ],
    ids=str,
)
def test_every_way_of_searching_meets_its_budget(change, tmp_path):
    if change.get("compute") == "bf16" and not process.bf16_is_safe():
        pytest.skip("bf16 would end this process on this CPU")
    method = replace(QUICK, steps=8, **change)
    workload = [Workload("prefill", 1, 64)]
    cut, _ = prune(method, line, 0.6, "qwen2", tmp_path, workloads=workload)
    assert cut.details["inner"] == method.inner
    assert bool(cut.rewrites) == method.merge
    assert "<svg" in cut.files["search.svg"]
    splits = cut.details["windows"]
    assert splits["outer"] + splits["inner"] + splits["held out"] == 12
    assert bool(splits["inner"]) == (method.inner in ("lora", "full"))
    steps = cut.details["loss by step"]
    assert steps["step"][-1] == 8
    assert len(steps["outer"]) == len(steps["step"])
    assert ("inner" in steps) == (method.inner in ("lora", "full"))


def test_splits_do_not_overlap():
    splits = Splits.of(20, 4, bilevel=True)
    assert sorted(splits.outer + splits.inner + splits.held_out) == list(range(20))
    assert len(splits.outer) == len(splits.inner) == 8


def test_the_cut_is_the_shape_of_least_held_out_loss(tmp_path):
    model, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, steps_of_eight)
    ctx = context(anatomy, latency=cost, work_dir=tmp_path)
    state = QUICK.prepare(model, ctx)
    shuffled = dict(reversed(state.items()))
    cut = check_cut(anatomy, QUICK.prune(model, Budget("latency", 0.5, "x"), ctx, shuffled))
    model, _ = tiny(PLAIN)
    dense = Distance(model, anatomy, tokens(12, 16), "kl", 1, "fp32")
    gates = {site.name: torch.zeros(site.units) for site in anatomy.blocks()}
    for site, gate in gates.items():
        gate[list(cut.keep.get(site, range(len(gate))))] = 1
    losses = cut.details["held-out loss"]
    assert dense.mean_loss([10, 11], gates) == pytest.approx(min(losses["candidates"] + losses["swaps"]), rel=1e-4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("last", [17, 20])
@pytest.mark.parametrize("change", [{}, {"inner": "lora", "merge": True}, {"inner": "least-squares"}], ids=str)
def test_a_killed_search_is_resumed_with_the_same_result(change, last, tmp_path):
    method = replace(QUICK, **change)
    whole, _ = prune(method, line, 0.5, folder=tmp_path_of(tmp_path, "whole"))

    def kill(done, total):
        if done == last:
            raise Stop

    broken = tmp_path_of(tmp_path, "broken")
    with pytest.raises(Stop):
        prune(method, line, 0.5, folder=broken, progress=kill)
    steps = []
    again, _ = prune(method, line, 0.5, folder=broken, progress=lambda done, total: steps.append(done))
    assert steps == list(range(10 * (last // 10) + 1, 21))
    assert again.keep == whole.keep
    assert again.details == whole.details
    assert all(torch.equal(again.rewrites[name], value) for name, value in whole.rewrites.items())


def test_a_stored_state_is_loaded_unchanged(tmp_path):
    shared = torch.arange(6.0)
    state = {"a": [1, 0.1, None, "x", {3: shared[::2]}], "b": {"c": torch.tensor(2), "d": shared}, "e": {}, "f": []}
    save(state, tmp_path / "file.safetensors")
    again = load(tmp_path / "file.safetensors")
    assert again["a"][:4] == [1, 0.1, None, "x"]
    assert again["a"][4][3].tolist() == [0, 2, 4]
    assert again["b"]["d"].tolist() == shared.tolist()
    assert (int(again["b"]["c"]), again["e"], again["f"]) == (2, {}, [])
    assert [file.name for file in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_damaged_file_counts_as_none(tmp_path):
    whole, _ = prune(QUICK, line, 0.5, folder=tmp_path)
    (file,) = tmp_path.glob("found-*")
    file.write_bytes(file.read_bytes()[:100])
    again, _ = prune(QUICK, line, 0.5, folder=tmp_path)
    assert again.keep == whole.keep


def test_training_is_counted_once(tmp_path):
    learned = []
    method = replace(QUICK, inner="lora", inner_steps=2)
    for limit in (0.5, 0.49):
        prune(method, line, limit, folder=tmp_path, trained=learned.append)
    assert learned == [20 * 2 * 2 * 16]


def test_training_is_counted_once_across_objects(tmp_path):
    """After a missed latency, the cell prunes again with another object."""
    learned = []
    for limit in (0.5, 0.49):
        method = replace(QUICK, inner="lora")
        prune(method, line, limit, folder=tmp_path, trained=learned.append)
    assert learned == [20 * 2 * 16]


def test_a_search_killed_between_held_out_losses_reuses_the_stored_ones(tmp_path, monkeypatch):
    method = replace(QUICK, inner="least-squares", ridge=1.0)
    whole, _ = prune(method, line, 0.5, folder=tmp_path_of(tmp_path, "whole"))
    broken = tmp_path_of(tmp_path, "broken")
    calls, held_out = [], Distance.mean_loss

    def stop_at_the_third(self, rows, gates):
        calls.append(1)
        if len(calls) == 3:
            raise Stop
        return held_out(self, rows, gates)

    monkeypatch.setattr(Distance, "mean_loss", stop_at_the_third)
    with pytest.raises(Stop):
        prune(method, line, 0.5, folder=broken)
    calls.clear()
    monkeypatch.setattr(Distance, "mean_loss", lambda *arguments: calls.append(1) or held_out(*arguments))
    again, _ = prune(method, line, 0.5, folder=broken)
    assert again.keep == whole.keep
    assert again.details == whole.details
    assert len(calls) == sum(map(len, whole.details["held-out loss"].values())) - 2
    assert [file.name for file in broken.iterdir()] == ["found-0.5000.safetensors"]


@pytest.mark.parametrize("depth", [True, False])
def test_a_limit_just_above_the_fastest_shape_is_met(depth, tmp_path):
    _, anatomy = tiny(PLAIN)
    cost = cost_model(anatomy, line)
    smallest = {site.name: int(not depth) for site in anatomy.blocks()} | {"layers.2.mlp": 1}
    least = cost.time(smallest) / cost.dense
    cut, _ = prune(replace(QUICK, depth=depth, steps=8), line, least + 3e-5, folder=tmp_path)
    assert cut.details["target"] >= least


def tmp_path_of(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_tighter_limit_near_by_needs_no_second_search(tmp_path):
    prune(QUICK, line, 0.5, folder=tmp_path)
    steps = []
    cut, _ = prune(QUICK, line, 0.493, folder=tmp_path, progress=lambda *done: steps.append(done))
    assert not steps
    assert cut.details["target"] == 0.5


@pytest.mark.parametrize("limit", [0.503, 0.53])
def test_a_looser_limit_near_by_is_used_up_without_a_second_search(limit, tmp_path):
    first, anatomy = prune(QUICK, line, 0.5, folder=tmp_path)
    steps = []
    cut, _ = prune(QUICK, line, limit, folder=tmp_path, progress=lambda *done: steps.append(done))
    assert not steps
    cost = cost_model(anatomy, line)
    step = max(np.diff(cost.site_times(site.name)).max() for site in anatomy.blocks())
    assert cost.time(cut.shape) > limit * cost.dense - step
    assert first.details["widths"] == "the held-out text's choice"
    assert cut.details["widths"] == "those, fitted to the limit"


def test_the_requested_limit_itself_uses_the_shape_of_least_held_out_loss(tmp_path):
    cut, _ = prune(QUICK, line, 0.51237, folder=tmp_path)  # between two targets of four decimal places
    assert cut.details["target"] == 0.5123
    assert cut.details["widths"] == "the held-out text's choice"


def test_useless_sub_layers_are_removed_first(tmp_path):
    model, anatomy = tiny(PLAIN)
    idle = {"layers.1.attention": "self_attn.o_proj", "layers.2.mlp": "mlp.down_proj"}
    for site, linear in idle.items():
        model.model.layers[anatomy.sites[site].layer].get_submodule(linear).weight.data *= 1e-3
    ctx = context(anatomy, latency=cost_model(anatomy, line), work_dir=tmp_path)
    method = replace(QUICK, steps=90)
    cut = check_cut(anatomy, method.prune(model, Budget("latency", 0.8, "x"), ctx, method.prepare(model, ctx)))
    shape = anatomy.complete(cut.shape)
    shares = {site.name: shape[site.name] / site.units for site in anatomy.blocks()}
    assert {site for site, share in shares.items() if share < 0.5} == idle.keys()
    assert cut.details["held-out loss"]["candidates"][0] < 1e-3


def test_each_level_uses_its_own_windows_and_least_squares_is_solved_three_times(tmp_path, monkeypatch):
    windows, refreshes = {"outer": set(), "inner": set()}, []
    call, refresh = Distance.finite_loss, Compensated.refresh

    def recorded(self, rows, gates, number):
        level = "outer" if any(gate.requires_grad for gate in gates.values()) else "inner"
        if torch.is_grad_enabled():
            windows[level].update(rows)
        return call(self, rows, gates, number)

    monkeypatch.setattr(Distance, "finite_loss", recorded)
    monkeypatch.setattr(Compensated, "refresh", lambda *arguments: refreshes.append(1) or refresh(*arguments))
    prune(replace(QUICK, inner="lora"), line, 0.5, folder=tmp_path_of(tmp_path, "lora"))
    assert windows == {"outer": set(range(5)), "inner": set(range(5, 10))}
    prune(replace(QUICK, inner="least-squares", ridge=1.0), line, 0.5, folder=tmp_path_of(tmp_path, "least-squares"))
    assert len(refreshes) == 3


def test_gradients_that_are_not_finite_end_the_search_and_keep_the_last_good_state(tmp_path, monkeypatch):
    model, anatomy = tiny(PLAIN)
    ctx = context(anatomy, latency=cost_model(anatomy, line), work_dir=tmp_path)
    state, steps = QUICK.prepare(model, ctx), []
    ctx.progress = lambda done, total: steps.append(done)
    outer = Frozen.outer

    def with_infinite_gradient(self, loss, gates, inner_loss):
        value = outer(self, loss, gates, inner_loss)
        if len(steps) == 14:
            gates["layers.2.mlp"].grad[3] = math.inf
        return value

    monkeypatch.setattr(Frozen, "outer", with_infinite_gradient)
    with pytest.raises(HarnessError, match=r"gradients of layers\.2\.mlp are not finite at step 15"):
        QUICK.prune(model, Budget("latency", 0.5, "x"), ctx, state)
    (file,) = tmp_path.glob("search-*")
    assert load(file)["search"]["step"] == 10


def test_bf16_that_would_end_the_process_is_refused(monkeypatch):
    model, _ = tiny(PLAIN)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(process, "bf16_kills_process", lambda: True)
    assert distance.autocast_context(model, "auto") is nullcontext
    with pytest.raises(Unsupported, match="AMX"):
        distance.autocast_context(model, "bf16")


def test_impossible_settings_are_refused_and_a_loose_limit_cuts_nothing(tmp_path):
    model, anatomy = tiny(PLAIN)
    ctx = context(anatomy, latency=cost_model(anatomy, line), work_dir=tmp_path)
    with pytest.raises(Unsupported, match="without any layer"):
        QUICK.prune(model, Budget("latency", 0.01, "x"), ctx, {})
    with pytest.raises(UsageError, match="held out"):
        replace(QUICK, held_out=11).prune(model, Budget("latency", 0.5, "x"), ctx, {})
    with pytest.raises(UsageError, match="held out"):
        replace(QUICK, held_out=12).prepare(model, ctx)
    with pytest.raises(UsageError, match="stride=16 uses too few of the 16 tokens"):
        replace(QUICK, stride=16).prune(model, Budget("latency", 0.5, "x"), ctx, {})
    with pytest.raises(Unsupported, match="any sub-layer keeps a unit"):
        QUICK.prune(model, Budget("latency", 0.239, "x"), ctx, {})
    with pytest.raises(Unsupported, match="every sub-layer keeps a unit"):
        replace(QUICK, depth=False).prune(model, Budget("latency", 0.25, "x"), ctx, {})
    with pytest.raises(Unsupported, match="small steps"):
        replace(QUICK, inner="full").prepare(model.bfloat16(), ctx)
    with pytest.raises(UsageError, match="an inner level that trains weights"):
        replace(QUICK, merge=True).prune(model, Budget("latency", 0.5, "x"), ctx, {})
    assert not QUICK.prune(model, Budget("latency", 1.0, "x"), ctx, {}).keep


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_last_good_state(tmp_path):
    model, anatomy = tiny(PLAIN)
    ctx = context(anatomy, latency=cost_model(anatomy, line), work_dir=tmp_path)
    state = QUICK.prepare(model, ctx)

    def break_a_weight(done, total):
        if done == 14:
            model.model.layers[2].mlp.down_proj.weight.data[0, 0] = math.nan

    ctx.progress = break_a_weight
    with pytest.raises(HarnessError, match=r"step 15.*layer 2"):
        QUICK.prune(model, Budget("latency", 0.5, "x"), ctx, state)
    (file,) = tmp_path.glob("search-*")
    assert load(file)["search"]["step"] == 10


@pytest.mark.parametrize(
    "settings",
    [{"held_out": 63}, {"stride": 100}, {"merge": True}, {"inner": "lora", "unrolled": True, "compute": "bf16"}],
)
def test_settings_that_exclude_each_other_are_refused_while_planning(settings):
    with pytest.raises(UsageError):
        planning.make_plan(Request(pruner="dilap", model="tiny", device="null", settings=settings))


class TestDilap(Conformance):
    name = "dilap"
