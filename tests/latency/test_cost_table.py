"""Cost tables, their views, and matching, on a made-up machine whose every step is known."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.api import Budget, Workload
from harness.devices.simulated import CALL_NS, Null, Staircase
from harness.errors import HarnessError, OverBudget, Unsupported, UsageError
from harness.latency import budget_search
from harness.latency.cost_table import fit, regression, smoothing, table_store
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.profile import (
    Effort,
    Profile,
    ProfileTarget,
    _inner,
    grid,
    layers_beyond_cache,
    single_class_shape,
)
from harness.latency.cost_table.shape_timer import Visits
from harness.latency.cost_table.smoothing import hull
from harness.latency.cost_table.table import CostTable, anatomy_hash, classes
from harness.latency.prober import PROBING, Measurement, Prober
from harness.latency.random_models import RandomWeights
from harness.models.architectures.lookup import anatomy_of
from harness.models.counting import flops
from harness.pruning.allocate import uniform
from harness.records.store import Store

from ..families import ALL, BASE, QUIRKS

CONFIGS = {name: {**BASE, **QUIRKS[name], "model_type": name, "tie_word_embeddings": True} for name in ALL}

WORKLOAD = Workload("prefill", 1, 64)
THOROUGH = Effort(coarse=4, edges=400, seconds=600, rounds=1, fitting=8, unseen=30)
FACTS = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
ANATOMY = anatomy_of(FACTS)


class Exact(Staircase):
    """In picoseconds, so that rounding to whole numbers hides nothing; with steps of two sizes."""

    TILES: ClassVar = {"attention": 2, "mlp": 64}

    def prepare(self, model, workload):
        from harness.models.architectures.modeling import config_dict

        return round(1000 * self.time(config_dict(model), workload))


class Wide(Exact):
    TILES: ClassVar = {"attention": 1, "mlp": 128}


def target(name="exact", anatomy=ANATOMY):
    return ProfileTarget(
        name,
        anatomy,
        {"name": name, "fingerprint": {}, "clock": "wall", "provenance": "simulated"},
        "eager",
        "fp32",
        WORKLOAD,
        "quick",
    )


def profiled(device, anatomy=ANATOMY, effort=THOROUGH, visits=None, save=lambda v: None):
    return Profile(target(anatomy=anatomy), device, visits or Visits(), save, lambda *_: None, effort).run()


@pytest.fixture(scope="module", params=[Exact, Wide], ids=["steps of 64", "steps of 128"])
def staircase(request):
    device = request.param()
    table = profiled(device)
    return device, table, CostModel(table, ANATOMY)


def true_time(device, shape):
    """What the machine takes, from its own formula and not from a model."""
    full = ANATOMY.complete(shape)
    total = CALL_NS + 2 * 32 * 64 / 1000
    for site in ANATOMY.blocks():
        if full[site.name]:
            total += device.LAUNCH_NS + device.sublayer(site.kind, full[site.name], ANATOMY.unit_params(site), 64)
    return 1000 * total


# --- the exact view ---


def test_every_step_is_reproduced(staircase):
    device, _, model = staircase
    for name, sites in model.classes.items():
        site = sites[0]
        for units in range(1, site.units + 1):
            cost = 1000 * (device.LAUNCH_NS + device.sublayer(site.kind, units, ANATOMY.unit_params(site), 64))
            assert model.staircases[name][units] == pytest.approx(cost, rel=2e-4), (name, units)


def test_the_machine_of_these_tests_dips():
    costs = [Exact().sublayer("mlp", units, 96, 64) for units in range(1, 641)]
    assert any(a > b for a, b in pairwise(costs))
    assert len(set(costs)) == 10


def test_whole_models_are_predicted(staircase):
    device, table, model = staircase
    assert table.validation.shapes == 30
    assert table.validation.mape < 1e-3
    assert table.validation.spearman > 0.99
    for seed in range(50):
        shape = fit.random_shapes(ANATOMY, 1, f"test {seed}")[0]
        assert model.time(shape) == pytest.approx(true_time(device, shape), rel=1e-3)
    assert model.floor == pytest.approx(true_time(device, ANATOMY.empty()), rel=2e-3)


def test_fixed_costs_go_with_the_sublayer(staircase):
    device, _, model = staircase
    gone = model.dense - model.time({"layers.1.mlp": 0})
    one = model.dense - model.time({"layers.1.mlp": 1})
    assert gone - one >= 0.9 * 1000 * device.LAUNCH_NS


# --- the smooth view ---


def test_the_smooth_view_is_monotone_with_finite_gradients(staircase):
    _, _, model = staircase
    for name, sites in model.classes.items():
        curve = model._curves[name]
        units = torch.linspace(-0.5, sites[0].units + 0.5, 5000, dtype=torch.float64, requires_grad=True)
        values = curve(units)
        values.sum().backward()
        assert torch.isfinite(values).all()
        assert torch.isfinite(units.grad).all()
        assert (units.grad >= 0).all()
        assert (values.diff() >= -1e-9).all()
        assert (units.grad > 0).float().mean() > 0.5  # treads are not flat to a search


def test_the_smooth_view_agrees_with_finite_differences(staircase):
    _, _, model = staircase
    draw = random.Random(0)
    units = {
        s.name: torch.tensor(draw.uniform(0, s.units), dtype=torch.float64, requires_grad=True)
        for s in ANATOMY.blocks()
    }
    model.smooth(units).backward()
    for name in units:
        step = 1e-5
        moved = {n: u.detach() + (step if n == name else 0) for n, u in units.items()}
        back = {n: u.detach() - (step if n == name else 0) for n, u in units.items()}
        slope = (model.smooth(moved) - model.smooth(back)) / (2 * step)
        assert float(units[name].grad) == pytest.approx(float(slope), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_the_largest_convex_function_below(seed):
    rising = np.cumsum(np.concatenate([[0.0], np.random.default_rng(seed).exponential(1.0, 40) ** 3]))
    found = hull(rising)
    assert (found <= rising + 1e-9).all()
    assert (np.diff(found, 2) >= -1e-9).all()
    touching = np.flatnonzero(np.abs(found - rising) < 1e-9)
    assert {0, 40} <= set(touching)
    assert np.allclose(found, np.interp(np.arange(41), touching, rising[touching]))


def test_the_convex_view_lies_between_nothing_and_the_whole(staircase):
    _, _, model = staircase
    site = max(ANATOMY.blocks(), key=lambda site: site.units)
    half = {site.name: torch.tensor(site.units / 2)}
    assert float(model.smooth({}, convex=1)) == pytest.approx(model.dense, rel=0.05)
    views = [float(model.smooth(half, convex=share)) for share in (0.0, 0.5, 1.0)]
    assert views[1] == pytest.approx((views[0] + views[2]) / 2)
    assert views[2] <= views[0]


def test_what_sites_add_and_the_floor_make_the_time_of_any_shape(staircase):
    _, _, model = staircase
    draw = random.Random(1)
    shape = {site.name: draw.randint(0, site.units) for site in ANATOMY.blocks()}
    added = sum(model.site_times(name)[units] for name, units in shape.items())
    assert model.floor + added == pytest.approx(model.time(shape))


def test_a_budget_is_nanoseconds_or_out_of_reach(staircase):
    _, _, model = staircase
    assert model.limit(Budget("latency", 0.5, "x")) == pytest.approx(0.5 * model.dense)
    assert model.limit(Budget("latency", 1000, "ms")) == 1e9
    with pytest.raises(Unsupported, match="without any layer"):
        model.limit(Budget("latency", 1e-6, "ms"))


def test_points_in_wide_gaps_are_widths_that_kernels_take_well():
    for low, high in ((192, 384), (960, 1152), (0, 4096)):
        (inner,) = _inner(low, high, (0.382,))
        assert inner % 16 == 0
        assert low < inner < high
    assert _inner(8, 20, (0.382,)) == [13]


def test_the_smooth_view_stays_near_the_stairs(staircase):
    _, _, model = staircase
    assert float(model.smooth({})) == pytest.approx(model.dense, rel=0.05)
    assert float(model.smooth({s.name: torch.tensor(0.0) for s in ANATOMY.blocks()})) == pytest.approx(model.floor)
    for name, sites in model.classes.items():
        stairs = model.staircases[name]
        smoothed = model._curves[name](torch.arange(sites[0].units + 1.0)).numpy()
        assert np.abs(smoothed - stairs).max() <= 0.45 * stairs.max()


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_isotonic_is_monotone_keeps_the_mean_and_leaves_order_alone(values):
    found = smoothing.isotonic(np.array(values))
    assert (np.diff(found) >= -1e-6).all()
    assert found.mean() == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert np.allclose(smoothing.isotonic(np.sort(values)), np.sort(values))


# --- profiles ---


def test_a_killed_profile_goes_on_where_it_was():
    class Killed(Exception):
        pass

    kept, calls = {}, []

    def save(visits):
        kept.update(json.loads(json.dumps(visits.to_dict())))
        calls.append(1)
        if len(calls) == 6:
            raise Killed

    with pytest.raises(Killed):
        profiled(Exact(), save=save)
    assert kept["shapes"]

    class Counting(Exact):
        measured = 0

        def measure(self, handle, plan):
            Counting.measured += 1
            return super().measure(handle, plan)

    resumed = profiled(Counting(), visits=Visits.read(kept))
    after = Counting.measured
    Counting.measured = 0
    whole = profiled(Counting())
    assert after < Counting.measured
    assert resumed.to_dict() | {"seconds": 0} == whole.to_dict() | {"seconds": 0}


def test_a_device_without_signal_is_refused():
    class Flat(Null):
        def time(self, words, workload):
            return 10**9 + flops(anatomy_of(words), {}, workload) / 1000

    with pytest.raises(HarnessError, match="no signal"):
        profiled(Flat())


def test_probes_leave_the_cache_and_fit_the_model():
    for name, sites in classes(ANATOMY).items():
        shape = single_class_shape(ANATOMY, name, 1, "fp32")
        assert sum(units > 0 for units in shape.values()) == layers_beyond_cache(ANATOMY, name, "fp32") <= len(sites)
    assert grid(3, 8) == [1, 2, 3]
    assert grid(1536, 8)[-1] == 1536
    assert all(units % 64 == 0 for units in grid(8192, 64)[3:])


@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_pool_serves_every_shape_of_every_family(family):
    anatomy = anatomy_of(CONFIGS[family])
    pool = RandomWeights(anatomy, "fp32")
    for shape in [{}, anatomy.empty(), *fit.random_shapes(anatomy, 4, family)]:
        model = pool.model(shape)
        assert sum(p.numel() for p in model.parameters()) == anatomy.params(shape)
        with torch.inference_mode():
            logits = model(torch.ones(1, 5, dtype=torch.long), use_cache=True, logits_to_keep=1).logits
        assert torch.isfinite(logits).all()


def test_classes_split_by_size_and_window():
    uneven = anatomy_of({**FACTS, "per_layer_config": {"1": {"intermediate_size": 128}}, "model_type": "pruned_llama"})
    assert len(classes(uneven)) == 3
    windowed = anatomy_of({**CONFIGS["mistral"], "sliding_window": 16})
    assert any("window 16" in name for name in classes(windowed))
    assert anatomy_hash(uneven) != anatomy_hash(ANATOMY)


# --- interacting sites ---


def test_the_predictor_learns_products_of_sizes():
    """A machine whose time is FLOPs, where the width of the stream multiplies that of every sub-layer."""
    table = profiled(Null(), effort=Effort(coarse=4, edges=0, seconds=0, rounds=1, fitting=8, unseen=5))
    model = CostModel(table, ANATOMY)
    for shape in fit.random_shapes(ANATOMY, 10, "unseen", narrow=True):
        true = CALL_NS + flops(ANATOMY, shape, WORKLOAD) / 1000
        assert model.time(shape) == pytest.approx(true, rel=0.12)
    assert min(table.predictor.weights) >= 0


def test_a_fit_is_never_negative_and_finds_what_is_there():
    draw = np.random.default_rng(0)
    rows = [{"a": float(a), "b": float(b), "c": 1.0} for a, b in draw.uniform(1, 5, (20, 2))]
    times = [3 * row["a"] + 0.5 * row["b"] + 2 for row in rows]
    found = regression.fit(rows, times)
    assert found.weights == pytest.approx([3, 0.5, 2], rel=0.05)
    assert found.error < 0.01
    against = regression.fit(rows, [row["a"] * 3 - row["b"] * 0.1 + 5 for row in rows])
    assert min(against.weights) >= 0


# --- the shelf ---


def test_tables_are_exported_and_imported(tmp_path, runs, staircase):
    _, table, _ = staircase
    file = tmp_path / "table.json"
    table_store.export(table, file)
    read = table_store.load_table(file)
    assert read == table
    assert read.content == table.content
    kept = table_store.TableStore(Store())
    kept.put(read)
    words = target().device
    assert kept.find(ANATOMY, words, "eager", "fp32", WORKLOAD) == table
    assert kept.find(ANATOMY, words, "eager", "bf16", WORKLOAD) is None
    assert kept.find(ANATOMY, {**words, "clock": "cpu"}, "eager", "fp32", WORKLOAD) is None


@pytest.mark.parametrize("damage", ["{}", "no", '{"schema": 1'])
def test_a_file_that_is_no_table_is_said_to_be_none(tmp_path, damage):
    file = tmp_path / "t.json"
    file.write_text(damage)
    with pytest.raises(UsageError, match=r"is not a cost table|is truncated or not JSON"):
        table_store.load_table(file)


def test_a_crooked_curve_is_refused(tmp_path, staircase):
    words = staircase[1].to_dict()
    name = next(iter(words["curves"]))
    words["curves"][name]["units"].reverse()
    file = tmp_path / "t.json"
    file.write_text(json.dumps(words))
    with pytest.raises(UsageError, match="curve"):
        table_store.load_table(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w["device"].clear(), "its device has no"),
        (lambda w: w["fit"]["weights"].pop(), "a finite weight"),
        (lambda w: w["curves"].popitem(), "its fit is of other"),
        (lambda w: next(iter(w["curves"].values()))["ns"].__setitem__(1, -1.0), "not negative"),
    ],
)
def test_spoilt_tables_are_refused(tmp_path, staircase, spoil, message):
    words = staircase[1].to_dict()
    spoil(words)
    file = tmp_path / "t.json"
    file.write_text(json.dumps(words))
    with pytest.raises(UsageError, match=message):
        table_store.load_table(file)


def test_a_table_of_other_sublayers_is_set_aside(runs, staircase):
    words = staircase[1].to_dict()
    name = list(words["curves"])[-1]
    words["curves"][name] = {"units": [0, 1], "ns": [0.0, 1.0], "noise": 0.0}
    kept = table_store.TableStore(Store())
    kept.put(CostTable.model_validate(words))
    assert kept.find(ANATOMY, target().device, "eager", "fp32", WORKLOAD) is None
    assert "does not cover" in kept.store.notices[0]


def test_a_refused_profile_is_looked_at_afresh(runs):
    class Mended(Null):
        broken = True

        def time(self, words, workload):
            fixed = 10**9 if Mended.broken else 0
            return fixed + flops(anatomy_of(words), {}, workload)

    kept, device = table_store.TableStore(Store()), Mended()
    with pytest.raises(HarnessError, match="no signal"):
        kept.fill(target("mended"), device)
    Mended.broken = False
    assert kept.fill(target("mended"), device).validation.mape < 0.05


class Seen(Null):
    """Ends after so many visits, as a kill would."""

    left = 10**9

    def time(self, words, workload):
        Seen.left -= 1
        if Seen.left < 0:
            raise KeyboardInterrupt
        return flops(anatomy_of(words), {}, workload)


def test_a_table_is_judged_once_somebody_asks(runs, monkeypatch):
    kept = table_store.TableStore(Store())
    plain = kept.fill(target("judged later"), Seen(), validate=False)
    assert plain.validation is None
    assert kept.fill(target("judged later"), Seen(), validate=False) == plain
    monkeypatch.setattr(Seen, "left", 20)
    with pytest.raises(KeyboardInterrupt):
        kept.fill(target("judged later"), Seen())
    monkeypatch.setattr(Seen, "left", 10**9)
    table = kept.fill(target("judged later"), Seen(), again=True)  # goes on with what was killed
    assert table.validation.shapes == 30
    assert (table.content, table.curves, table.fit) == (plain.content, plain.curves, plain.fit)
    assert table.probes > plain.probes
    visits = kept.store.read_side_file(table.samples)
    assert visits["references"][: len(before := kept.store.read_side_file(plain.samples)["references"])] == before
    assert not list(kept.store.path("tables").glob("*.*.*.json"))
    assert kept.fill(target("judged later"), Seen()) == table
    seen = Seen.left
    assert kept.fill(target("judged later"), Seen(), again=True).curves == table.curves
    assert Seen.left < seen  # measured anew


def test_an_export_that_cannot_be_written_is_said_first(tmp_path):
    with pytest.raises(HarnessError, match="cannot write"):
        table_store.check_writable(tmp_path / "nowhere" / "t.json")
    with pytest.raises(UsageError, match="is a folder"):
        table_store.check_writable(tmp_path)


def test_what_open_models_hold_is_counted():
    from harness.latency.cost_table.shape_timer import ShapeTimer

    measured = []

    class Heavy(Null):
        copies_weights = True

        def prepare(self, model, workload):
            measured.append(1)
            return super().prepare(model, workload)

    made = ShapeTimer(Heavy(), RandomWeights(ANATOMY, "fp32"), WORKLOAD, "wall", PROBING.plan, {}, Visits())
    light = ShapeTimer(Null(), RandomWeights(ANATOMY, "fp32"), WORKLOAD, "wall", PROBING.plan, {}, Visits())
    assert made.held({}) == light.held({}) + 4 * ANATOMY.params()
    assert light.held({}) > light.held({"layers.0.attention": 0})


def test_a_search_does_not_accept_a_name_it_does_not_know(staircase):
    with pytest.raises(HarnessError, match="no site"):
        staircase[2].smooth({"layers.9.mlp": torch.tensor(3.0)})
    half = staircase[2].smooth({"hidden": torch.tensor(16.0)})
    assert float(half) == pytest.approx(0.5 * float(staircase[2].smooth({})))


# --- matching ---


def bed(device, unit="x"):
    return Prober(device, ANATOMY, "fp32", WORKLOAD, "wall", unit)


def promising():
    return budget_search.Method(lambda r: uniform(ANATOMY, r), lambda r: uniform(ANATOMY, r))


def by_flops(shape):
    return flops(ANATOMY, shape, WORKLOAD) / flops(ANATOMY, {}, WORKLOAD)


@pytest.mark.parametrize("limit", [0.95, 0.8, 0.7, 0.61, 0.5, 0.43, 0.35, 0.3])
def test_feasible_budgets_are_met_with_less_than_a_step_unused(staircase, limit):
    """Nothing that the method could leave with a smaller cut is fast enough."""
    device, _, model = staircase
    found = budget_search.BudgetSearch(ANATOMY, promising(), model.share, bed(device).measure, limit).run()
    dense = true_time(device, {})
    taken = true_time(device, uniform(ANATOMY, found.setting)) / dense
    assert taken <= limit + 1e-9
    smaller = [step / 2000 for step in range(2000) if step / 2000 < found.setting - 2 * budget_search.FINEST]
    assert all(true_time(device, uniform(ANATOMY, ratio)) / dense > limit for ratio in smaller)
    assert len(found.probes) <= 3  # the table is exact: nothing is left to correct
    assert found.probes[-1].measured == pytest.approx(taken, rel=1e-6)


@pytest.mark.parametrize("limit", [0.9, 0.6, 0.4])
def test_without_a_table_flops_are_the_first_guess(staircase, limit):
    device, _, _ = staircase
    found = budget_search.BudgetSearch(ANATOMY, promising(), by_flops, bed(device).measure, limit).run()
    dense = true_time(device, {})
    assert true_time(device, uniform(ANATOMY, found.setting)) / dense <= limit + 1e-9
    a_little_less = uniform(ANATOMY, max(0.0, found.setting - 0.002))
    assert true_time(device, a_little_less) / dense > limit
    assert [p.ran for p in found.probes] == [False] * len(found.probes)


def test_milliseconds_are_met_too(staircase):
    device, _, model = staircase
    lying = bed(device, "ms")
    limit = 0.6 * lying.measure({}).value
    found = budget_search.BudgetSearch(
        ANATOMY, promising(), model.share, lying.measure, limit, "ms", lying.scale()
    ).run()
    assert lying.measure(uniform(ANATOMY, found.setting)).value <= limit


def test_faster_than_the_empty_model_is_said(staircase):
    device, _, model = staircase
    floor = model.floor / model.dense
    with pytest.raises(OverBudget, match=f"faster than the empty model, which takes {floor:.3g}x"):
        budget_search.BudgetSearch(ANATOMY, promising(), model.share, bed(device).measure, floor * 0.9).run()


def test_time_that_does_not_shrink_hides_no_budget():
    """A machine that spends most of its time on launches: FLOPs promise much more than it keeps, and the end is far."""

    def true(shape):
        full = ANATOMY.complete(shape)
        alive = sum(full[site.name] > 0 for site in ANATOMY.blocks())
        return 0.1 + 0.13 * alive + 0.12 * by_flops(shape)

    def measure(shape):
        return Measurement(true(shape) / true({}), 0.0)

    for limit in (0.95, 0.8, 0.5):
        found = budget_search.BudgetSearch(ANATOMY, promising(), by_flops, measure, limit).run()
        assert found.probes[-1].measured <= limit or min(p.measured for p in found.probes) <= limit
        assert true(uniform(ANATOMY, found.setting)) / true({}) <= limit


def test_a_second_search_begins_where_the_first_ended(staircase):
    device, _, _ = staircase
    first = budget_search.BudgetSearch(ANATOMY, promising(), by_flops, bed(device).measure, 0.7).run()
    draw, dense = random.Random(5), true_time(device, {})

    def measure(shape):
        return Measurement(true_time(device, shape) / dense * draw.gauss(1, 0.004), 0.02)

    finished = {"setting": first.setting, "measured": 0.71, "final": True}
    again = budget_search.BudgetSearch(
        ANATOMY, promising(), by_flops, measure, 0.68, "x", 1.0, first.to_dict()["probes"] + [finished]
    ).run()
    assert len(again.probes) <= budget_search.PROBES
    assert again.setting > first.setting


@pytest.mark.parametrize("seed", [20, 28, 31, 37])
def test_a_finished_model_that_missed_is_not_asked_for_again(seed):
    """Random weights of its shape flatter it, by more or less."""
    limit, tighten, tried, draw = 0.7, 1.0, [], random.Random(seed)

    def measure(shape):
        return Measurement(0.97 * by_flops(shape) ** 0.9 * draw.gauss(1, 0.02), 0.05)

    for _ in range(3):
        found = budget_search.BudgetSearch(
            ANATOMY, promising(), by_flops, measure, limit * tighten, earlier=tried
        ).run()
        taken = by_flops(uniform(ANATOMY, found.setting)) ** 0.9
        assert all(probe["setting"] < found.setting for probe in tried if "final" in probe)
        if taken <= limit:
            break
        tried = [*tried, *found.to_dict()["probes"], {"setting": found.setting, "measured": taken, "final": True}]
        tighten *= limit / taken * 0.996


def test_out_of_a_methods_reach_is_said(staircase):
    device, _, model = staircase

    def timid(ratio):
        return uniform(ANATOMY, min(ratio, 0.2))

    with pytest.raises(OverBudget, match="out of this method's reach"):
        budget_search.BudgetSearch(
            ANATOMY, budget_search.Method(timid, timid), model.share, bed(device).measure, 0.5
        ).run()


def test_a_cut_that_leaves_no_layer_is_never_the_answer():
    """A noisy machine may find nothing fast enough but the empty model, which nobody can cut."""

    def measure(shape):
        return Measurement(0.5 if shape and not any(shape.values()) else 1.0, 0.02)

    def leaves(ratio):
        return {site.name: 0 if ratio > 0.9 else site.units - int(site.units * ratio) for site in ANATOMY.blocks()}

    assert not any(leaves(0.99).values())
    with pytest.raises(OverBudget, match="out of this method's reach"):
        budget_search.BudgetSearch(ANATOMY, budget_search.Method(leaves, leaves), by_flops, measure, 0.6).run()


def test_a_method_of_few_steps_is_not_measured_twice_at_one(staircase):
    """Whole layers go: three shapes for a thousand settings, under noise."""
    device, _, model = staircase
    draw, dense = random.Random(0), true_time(device, {})

    def layers(ratio):
        gone = min(2, int(ratio * 3 + 0.999))
        return {site.name: 0 for site in ANATOMY.blocks() if site.layer < gone}

    def measure(shape):
        return Measurement(true_time(device, shape) / dense * draw.gauss(1, 0.005), 0.02)

    found = budget_search.BudgetSearch(ANATOMY, budget_search.Method(layers, layers), model.share, measure, 0.9).run()
    assert len(found.probes) <= 3
    assert layers(found.setting) == layers(0.1)


def test_a_method_that_trains_is_run_twice_at_most(staircase):
    device, _, model = staircase
    ran = []

    def trained(ratio):
        ran.append(ratio)
        return uniform(ANATOMY, max(0.0, ratio - 0.02))  # leaves a little more than it was asked to

    method = budget_search.Method(lambda r: uniform(ANATOMY, r), trained, promises=False, runs=lambda: 2)
    found = budget_search.BudgetSearch(ANATOMY, method, model.share, bed(device).measure, 0.6).run()
    assert len(ran) <= 2
    assert [p.ran for p in found.probes].count(True) == len(ran)
    assert true_time(device, trained(found.setting)) / true_time(device, {}) <= 0.6 + 1e-9


def test_a_method_that_could_train_and_does_not_is_run_as_often_as_it_takes():
    ran = []

    def left(ratio):
        ran.append(ratio)
        return uniform(ANATOMY, 0.9 * ratio**2)  # far from what its guess promises: two runs do not find the limit

    def matched(runs):
        ran.clear()
        method = budget_search.Method(lambda r: uniform(ANATOMY, r), left, promises=False, runs=runs)
        found = budget_search.BudgetSearch(
            ANATOMY, method, by_flops, lambda s: Measurement(by_flops(s), 0.0), 0.7
        ).run()
        return 0.7 - by_flops(left(found.setting))

    few, many = matched(lambda: 2), matched(lambda: budget_search.PROBES if ran else 2)
    assert len(ran) > 3
    assert 0 <= many < 0.03 < abs(few)


def test_a_method_that_takes_latencies_is_asked_for_them(staircase):
    device, _, model = staircase
    asked = []

    def ask(limit):
        """Believes the machine to be a tenth faster than it is."""
        asked.append(limit)
        ratio = next(r / 500 for r in range(480) if 0.9 * model.share(uniform(ANATOMY, r / 500)) <= limit)
        return uniform(ANATOMY, ratio)

    found = budget_search.search_by_latency(
        ANATOMY, ask, lambda shape: 0.9 * model.share(shape), bed(device).measure, 0.6, runs=4
    )
    assert asked[0] == 0.6
    assert min(p.measured for p in found.probes if p.setting == found.setting) <= 0.6


def test_one_noisy_look_does_not_say_what_to_ask_next():
    """Looks that scatter by six per cent around the truth: what is asked next goes by all of them."""
    asked, scatter = [], iter([1.06, 0.94, 1.0, 1.0])

    def ask(limit):
        asked.append(limit)
        return uniform(ANATOMY, min(r / 500 for r in range(480) if by_flops(uniform(ANATOMY, r / 500)) <= limit))

    budget_search.search_by_latency(
        ANATOMY, ask, by_flops, lambda shape: Measurement(by_flops(shape) * next(scatter), 0.06), 0.6, runs=4
    )
    assert asked[1] < 0.6 / 1.05
    assert asked[1] < asked[2] < 0.6


def test_noise_is_aimed_below_not_chased(staircase):
    """With a measurement that scatters by a per cent, few probes are taken and none is taken for more than it is."""
    device, _, _model = staircase
    draw, over, dense = random.Random(3), 0, true_time(device, {})
    for _ in range(40):

        def measure(shape):
            return Measurement(true_time(device, shape) / dense * draw.gauss(1, 0.007), 0.02)

        found = budget_search.BudgetSearch(ANATOMY, promising(), by_flops, measure, 0.7).run()
        assert len(found.probes) <= budget_search.PROBES
        over += true_time(device, uniform(ANATOMY, found.setting)) / dense > 0.7
    assert over <= 10


def test_table_words_round_trip(staircase):
    table = staircase[1]
    assert CostTable.model_validate(json.loads(json.dumps(table.to_dict()))) == table
