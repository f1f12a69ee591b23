"""LoRAPrune's arithmetic in float64, its masks against removals, its shapes against the published ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from harness_loraprune import LoraPrune, Run, moving_average, prunable_layers, removed_share, surrogate_gradient
from torch.func import functional_call

from harness import Budget, HarnessError, Unsupported, plugins
from harness.conformance import Conformance
from harness.conformance.tiny_models import LLAMA31_8B, PLAIN, context, tiny, tokens
from harness.models.architectures.lookup import anatomy_of
from harness.models.loading.cards import card
from harness.pruning.gates import gated

MODELS = ("llama, one KV head per head, tied", PLAIN, "qwen2", "qwen3", "gemma")
SCALING = 16 / 8
ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
COLUMNS = ("o_proj", "down_proj")
PROJECTIONS = (*ROWS, *COLUMNS)


def projections(model: Any) -> dict[str, torch.Tensor]:
    """The weights that get adapters, in float64."""
    named = {n: w.detach().double() for n, w in model.named_parameters()}
    return {n: w for n, w in named.items() if n.split(".")[-2] in PROJECTIONS and n.endswith("weight")}


def start_run(name: str, shape: dict[str, int], seed: int = 5, **settings: Any) -> tuple[Run, dict[str, Any]]:
    """A run whose adapters hold large random values, and these values in float64."""
    model, anatomy = tiny(name)
    torch.manual_seed(seed)
    run = Run(model, anatomy, shape, LoraPrune(**{"dropout": 0.0, **settings}))
    for weight in run.adapters.parameters():
        weight.data = torch.randn(weight.shape) * 0.1
    return run, {
        n: (run.adapters.a(n).detach().double(), run.adapters.b(n).detach().double()) for n in run.adapters.linears
    }


def merged_by_hand(name: str, adapters: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the tiny model `name` with these adapters added."""
    weights = projections(tiny(name)[0])
    assert set(weights) == set(adapters)
    return {n: w + SCALING * adapters[n][1] @ adapters[n][0] for n, w in weights.items()}


def module_scores(name: str, adapters: dict[str, Any], batch: torch.Tensor, square: bool = False) -> dict[str, Any]:
    """Scores by site and module, one per unit: autograd through W + s B A in float64, then plain loops."""
    model = tiny(name)[0].double()
    weights, config = projections(model), model.config
    pairs = {n: tuple(x.clone().requires_grad_() for x in pair) for n, pair in adapters.items()}
    logits = functional_call(
        model, {n: w + SCALING * pairs[n][1] @ pairs[n][0] for n, w in weights.items()}, (batch,), {"use_cache": False}
    ).logits
    likelihoods = logits[:, :-1].log_softmax(-1).gather(2, batch[:, 1:, None])
    (-likelihoods.mean()).backward()
    site_scores: dict[str, Any] = {}
    for n, (a, b) in pairs.items():
        linear = n.split(".")[-2]
        # the change of B A after a step of size one down both gradients
        change = b @ a - (b - b.grad) @ (a - a.grad)
        elements = (change * (weights[n] + SCALING * b @ a)).detach().abs()
        elements = elements**2 if square else elements
        kind = "mlp" if ".mlp." in n else "attention"
        units = config.intermediate_size if kind == "mlp" else config.num_key_value_heads
        lines = elements if linear in ROWS else elements.T
        per_unit = len(lines) // units
        scores = [sum(float(lines[u * per_unit + i].sum()) for i in range(per_unit)) for u in range(units)]
        site_scores.setdefault(f"layers.{n.split('.')[2]}.{kind}", {})[linear] = scores
    return site_scores


def test_the_surrogate_is_three_products():
    torch.manual_seed(0)
    a, da, b, db = (torch.randn(*s, dtype=torch.float64) for s in ((2, 5), (2, 5), (4, 2), (4, 2)))
    gradient = surrogate_gradient(a, b, da, db)
    for i in range(4):
        for j in range(5):
            expected = sum(db[i, k] * a[k, j] + b[i, k] * da[k, j] - db[i, k] * da[k, j] for k in range(2))
            torch.testing.assert_close(gradient[i, j], expected)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_scores_units_as_the_formula_says(name, square):
    """Gradients accumulate over the micro-batches and score units before the update; all modules count the same."""
    _, anatomy = tiny(name)
    shape = {f"layers.{layer}.{kind}": 1 for layer in (0, 2) for kind in ("attention", "mlp")}
    run, adapters = start_run(name, shape, batch=3, micro=2, square=square, lr=0.05)
    batch = tokens(3, 12)
    run.step(batch, 1, 10)
    expected = module_scores(name, adapters, batch, square)
    assert set(run.importance) == set(shape)
    for site in shape:
        total = [0.0] * anatomy.sites[site].units
        for scores in expected[site].values():
            length = math.sqrt(sum(score**2 for score in scores)) + 1e-8
            total = [t + 0.1 * score / length for t, score in zip(total, scores, strict=True)]
        assert len(expected[site]) == (4 if "attention" in site else 3)
        torch.testing.assert_close(run.importance[site].double(), torch.tensor(total).double(), rtol=2e-3, atol=2e-5)


def test_importances_are_a_moving_average_from_zero():
    first = moving_average({"x": torch.zeros(2)}, {"x": torch.tensor([1.0, 5.0])})
    second = moving_average(first, {"x": torch.tensor([3.0, -1.0])})
    torch.testing.assert_close(first["x"], torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(second["x"], torch.tensor([0.39, 0.35]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_value_that_is_not_finite_changes_nothing(bad):
    before = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3.0])}
    after = moving_average(before, {"x": torch.tensor([5.0, 5.0]), "y": torch.tensor([bad])})
    assert {name: scores.tolist() for name, scores in after.items()} == {"x": [1.0, 2.0], "y": [3.0]}


def test_the_removed_share_rests_rises_along_a_cubic_and_rests():
    assert [removed_share(step, 100) for step in (1, 5, 10)] == [0, 0, 0]
    assert [removed_share(step, 100) for step in (90, 95, 100)] == [1, 1, 1]
    for step in range(10, 91):
        r, r0, progress = 0.5, 0.0, (step - 10) / 80
        assert 0.5 * removed_share(step, 100) == pytest.approx(r + (r0 - r) * (1 - progress) ** 3)
    assert removed_share(50, 100) == pytest.approx(0.875)
    assert removed_share(1, 1) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_is_a_removal(name):
    """Logits with adapters and masked units equal those of merged weights without these units."""
    shape = {"layers.1.attention": 1, "layers.1.mlp": 1, "layers.3.mlp": 1}
    run, adapters = start_run(name, shape)
    weights = merged_by_hand(name, adapters)
    for at, site in enumerate(shape):
        run.alive[site][at::3] = False
        prefix = f"model.{site.removesuffix('attention').removesuffix('mlp')}"
        for n in (n for n in weights if n.startswith(prefix) and (".mlp." in n) == site.endswith("mlp")):
            lines = weights[n] if n.split(".")[-2] in ROWS else weights[n].T
            lines.view(len(run.alive[site]), -1, lines.shape[1])[at::3] = 0
    model = tiny(name)[0].double()
    batch = tokens(2, 12)
    with torch.no_grad():
        dense = functional_call(model, merged_by_hand(name, adapters), (batch,), {"use_cache": False}).logits
        expected = functional_call(model, weights, (batch,), {"use_cache": False}).logits
        with gated(run.model, run.anatomy, run.alive):
            masked = run.model(batch, use_cache=False).logits.double()
        after = run.model(batch, use_cache=False).logits.double()
    limit = 1e-4 * float(expected.abs().max())
    assert float((expected - dense).abs().max()) > 100 * limit
    assert float((masked - expected).abs().max()) < limit
    assert float((after - dense).abs().max()) < limit


def test_masked_units_stay_masked():
    site = "layers.1.mlp"
    run, _ = start_run(PLAIN, {site: 10})
    run.importance[site] = torch.arange(40.0).flip(0)
    run.update_masks(0.5)
    assert run.alive[site].tolist() == [True] * 25 + [False] * 15
    run.importance[site] = torch.arange(40.0)  # now the masked units would rank highest
    run.update_masks(0.7)
    assert run.alive[site].tolist() == [False] * 6 + [True] * 19 + [False] * 15
    run.importance[site] = torch.zeros(40)  # and a tie would go to the first
    run.update_masks(0.7)
    assert run.alive[site].tolist() == [False] * 6 + [True] * 19 + [False] * 15
    assert run.cut("").keep[site] == list(range(6, 16))


def test_masks_follow_the_schedule_and_the_cut_is_exact(tmp_path, monkeypatch):
    """Masks grow every third step along the schedule; the cut then has exactly the promised shape."""
    masked_by_update: list[dict[str, set[int]]] = []
    update = Run.update_masks

    def spy(run: Run, share: float) -> None:
        update(run, share)
        masked_by_update.append({site: set((~alive).nonzero().flatten().tolist()) for site, alive in run.alive.items()})

    monkeypatch.setattr(Run, "update_masks", spy)
    model, anatomy = tiny(PLAIN)
    pruner = LoraPrune(samples=40, length=8, batch=2, micro=2, every=3, protect_first=0.3)
    reports: list = []
    ctx = context(anatomy, progress=lambda done, total: reports.append((done, total)))
    cut = pruner.prune(model, Budget("ratio", 0.25), ctx, None)
    promised = pruner.shape(anatomy, 0.25)
    assert reports == [(step, 20) for step in range(1, 21)]
    assert {site.split(".")[1] for site in promised} == {"1", "2"}
    steps = range(3, 20, 3)
    assert len(masked_by_update) == len(steps)
    for step, masked in zip(steps, masked_by_update, strict=True):
        share = 1 - (1 - min(1, (step - 2) / 16)) ** 3
        for site, units in promised.items():
            assert len(masked[site]) == math.floor(share * (anatomy.sites[site].units - units) + 1e-9)
    for before, after in pairwise(masked_by_update):
        assert all(before[site] <= after[site] for site in promised)
    assert {site: len(units) for site, units in cut.keep.items()} == promised
    assert all(not masked_by_update[-1][site] & set(units) for site, units in cut.keep.items())


@pytest.mark.parametrize("every", [1000, 7])
def test_the_shape_is_exact_wherever_the_masks_stopped(every, tmp_path):
    model, anatomy = tiny(PLAIN)
    pruner = LoraPrune(samples=20, length=8, batch=2, micro=2, every=every)
    cut = pruner.prune(model, Budget("ratio", 0.3), context(anatomy), None)
    assert {site: len(units) for site, units in cut.keep.items()} == pruner.shape(anatomy, 0.3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_cut_rewrites_every_adapted_weight_merged(dtype, tmp_path, monkeypatch):
    runs: list[Run] = []
    step = Run.step
    monkeypatch.setattr(Run, "step", lambda run, *args: (runs.append(run), step(run, *args))[1])
    model, anatomy = tiny("qwen2", dtype)
    weights = projections(model)
    pruner = LoraPrune(samples=8, length=8, batch=2, micro=2, every=1, lr=0.05)
    cut = pruner.prune(model, Budget("ratio", 0.25), context(anatomy), None)
    adapters = runs[0].adapters
    assert set(cut.rewrites) == set(weights)
    for name, value in cut.rewrites.items():
        b, a = adapters.b(name).detach().double(), adapters.a(name).detach().double()
        assert value.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        assert tuple(value.shape) == anatomy.tensors[name]
        assert not torch.equal(value.double(), weights[name])
        expected = weights[name] + SCALING * b @ a
        torch.testing.assert_close(value.double(), expected, rtol={"fp32": 1e-5, "bf16": 8e-3}[dtype], atol=1e-5)


def test_training_continues_without_masked_units(tmp_path, monkeypatch):
    """The input of `down_proj` is zero at the masked units and nowhere else."""
    inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = Run.step

    def spy(run: Run, *args: Any) -> None:
        def record(_: Any, args: tuple) -> None:
            inputs.append((args[0].detach().flatten(0, -2).abs().amax(0) > 0, run.alive["layers.1.mlp"].clone()))

        hook = run.adapters.linears["model.layers.1.mlp.down_proj.weight"].base_layer.register_forward_pre_hook(record)
        step(run, *args)
        hook.remove()

    monkeypatch.setattr(Run, "step", spy)
    model, anatomy = tiny(PLAIN)
    pruner = LoraPrune(samples=20, length=8, batch=2, micro=2, every=2)
    pruner.prune(model, Budget("ratio", 0.25), context(anatomy), None)
    assert len(inputs) == 10
    assert inputs[0][1].all()
    assert int(inputs[-1][1].sum()) < 35
    assert all(torch.equal(nonzero, alive) for nonzero, alive in inputs)


def test_a_site_that_keeps_nothing_is_not_rewritten():
    run, _ = start_run(PLAIN, {"layers.0.mlp": 0, "layers.1.mlp": 3})
    names = set(run.cut("").rewrites)
    assert not [name for name in names if "layers.0.mlp" in name]
    assert len(names) == 4 * 7 - 3


def test_the_rate_falls_linearly():
    run, _ = start_run(PLAIN, {"layers.0.mlp": 3}, lr=1e-3)
    rates = []
    for step in range(1, 5):
        run.step(tokens(2, 8), step, 4)
        rates.append(run.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_training_uses_every_window_once_per_epoch(tmp_path, monkeypatch):
    from harness.pruning.training import loop

    batches: list[torch.Tensor] = []
    loss = loop.model_loss
    monkeypatch.setattr(loop, "model_loss", lambda model, ids: (batches.append(ids), loss(model, ids))[1])
    model, anatomy = tiny(PLAIN)
    pruner = LoraPrune(samples=6, length=8, batch=4, micro=3, epochs=2)
    pruner.prune(model, Budget("ratio", 0.25), context(anatomy), None)
    assert [len(part) for part in batches] == [3, 1] * 3
    rows = sorted(tuple(row.tolist()) for row in torch.cat(batches))
    assert rows == sorted(tuple(row.tolist()) for row in tokens(6, 8).repeat(2, 1))


def test_nothing_to_remove_trains_nothing(tmp_path):
    model, anatomy = tiny(PLAIN)
    cut = LoraPrune().prune(model, Budget("ratio", 0.0), context(anatomy, calibration=None), None)
    assert not cut.keep
    assert not cut.rewrites


def test_less_than_a_batch_is_refused(tmp_path):
    model, anatomy = tiny(PLAIN)
    with pytest.raises(Unsupported, match="3 windows are too few for a batch of 4"):
        LoraPrune(samples=3).prune(model, Budget("ratio", 0.2), context(anatomy), None)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    model, anatomy = tiny(PLAIN)
    pruner = LoraPrune(samples=40, length=8, lr=1e20)
    with pytest.raises(HarnessError, match="training diverged at step"):
        pruner.prune(model, Budget("ratio", 0.2), context(anatomy), None)


def layers(count: int) -> Any:
    return anatomy_of({**card("tiny").config, "num_hidden_layers": count})


@pytest.mark.parametrize(("count", "first", "last"), [(32, 3, 30), (30, 3, 28), (36, 3, 34), (16, 1, 14), (4, 0, 2)])
def test_a_tenth_of_the_layers_is_rounded_down(count, first, last):
    assert prunable_layers(layers(count)) == list(range(first, last + 1))


def test_protection_can_be_a_count_or_a_share():
    assert prunable_layers(layers(20), 2, 0.25) == list(range(2, 15))


@pytest.mark.parametrize(
    ("config", "kept_units", "remaining", "ratio"),
    [
        (card("llama2-7b").config, (16, 5504), 3_905_163_264, 0.437482291),
        (LLAMA31_8B, (4, 7168), 4_976_807_936, 0.437483568),
    ],
    ids=["llama2-7b", "llama3.1-8b"],
)
def test_half_is_half_of_the_heads_and_channels(config, kept_units, remaining, ratio):
    """The released code stops at 17 heads and 5505 channels: its last mask falls short of the requested ratio."""
    anatomy = anatomy_of(config)
    layers = prunable_layers(anatomy)
    shape = {s.name: s.units - int(0.5 * s.units) for s in anatomy.blocks() if s.layer in layers}
    for layer in range(32):
        units = tuple(shape.get(f"layers.{layer}.{kind}") for kind in ("attention", "mlp"))
        assert units == (kept_units if 3 <= layer < 31 else (None, None))
    assert anatomy.params(shape) == remaining
    assert LoraPrune().shape(anatomy, ratio) == shape  # the digits of the card


def test_paper_is_what_was_published():
    """The shipped script; its number of examples is not ours (see the card)."""
    spec = plugins.registry().specs["pruner"]["loraprune"]
    published = {
        "length": 512,
        "batch": 128,
        "micro": 2,
        "epochs": 2,
        "lr": 1e-4,
        "rank": 8,
        "alpha": 16,
        "dropout": 0.05,
        "every": 10,
        "protect_first": 0.1,
        "protect_last": 1.0,
    }
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestTraining(Conformance):
    name = "loraprune"


class TestSquared(Conformance):
    name = "loraprune"
    settings: ClassVar = {"square": True, "samples": 6, "every": 1, "protect_last": 0.0}
