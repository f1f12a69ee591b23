"""Recoveries: least squares against equations written out here in float64, LoRA against what it promises."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import harness
from harness import Cut, HarnessError, Unsupported
from harness.conformance import tiny_models
from harness.errors import UsageError
from harness.models.cut import check_cut
from harness.models.surgery import apply
from harness.pruning.least_squares import LeastSquares
from harness.pruning.training import lora
from harness.pruning.training.loop import model_loss
from harness.pruning.training.lora import Lora

UNITS = {"layers.0.mlp": range(0, 40, 2), "layers.1.attention": [1], "layers.1.mlp": range(30)}
DEPTH = {"layers.1.attention": [], "layers.2.attention": [], "layers.2.mlp": []}  # a sub-layer and a whole layer
UNEVEN = {**UNITS, **DEPTH}
FIRST = {"layers.0.attention": [], "layers.0.mlp": [], "layers.1.attention": []}
NARROW = {"hidden": range(5, 45)}
SOLVE = {"samples": 16, "length": 48}
LEARN = {"samples": 32, "length": 16, "lr": 3e-3}
BOTH = [LeastSquares(**SOLVE), Lora(**LEARN)]


def easy(count, length):
    """Text of eight tokens, so that there is something to learn."""
    return tiny_models.tokens(count, length) % 8 + 2


class Case:
    """A cut of a tiny model, and what a run would lend to recover it."""

    def __init__(self, keep, name=tiny_models.PLAIN, dtype="fp32", masks=None, change=None):
        self.dense, self.anatomy = tiny_models.tiny(name, dtype)
        if change is not None:
            with torch.no_grad():
                change(self.dense)
        self.cut = check_cut(self.anatomy, Cut(keep=keep, masks=masks or {}))
        self.pruned = apply(self.dense, self.anatomy, self.cut)

    def recovered(self, recovery):
        model = copy.deepcopy(self.pruned)
        calibration = easy if isinstance(recovery, Lora) else tiny_models.tokens
        context = tiny_models.context(self.anatomy, calibration=calibration, cut=self.cut)
        recovery.recover(model, copy.deepcopy(self.dense), context)
        return model


def masked():
    """Half of two matrices, one of them in a site that loses units as well."""
    _, anatomy = tiny_models.tiny(tiny_models.PLAIN)
    names = ("model.layers.0.mlp.down_proj.weight", "model.layers.3.self_attn.q_proj.weight")
    made = torch.Generator().manual_seed(0)
    return {name: torch.rand(anatomy.tensors[name], generator=made) > 0.5 for name in names}


def different(model, other):
    """The names of tensors that are not the same, bit for bit."""
    others = other.state_dict()
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, others[name])]


def seen(model, tokens):
    """Per sub-layer the stream behind it and what enters its last linear, by plain hooks."""
    behind, entered, hooks = {}, {}, []
    for at, layer in enumerate(model.model.layers):
        kinds = [kind for kind, module in (("attention", layer.self_attn), ("mlp", layer.mlp)) if module is not None]
        hooks.append(layer.register_forward_hook(lambda m, a, out, key=(at, kinds[-1]): behind.update({key: out})))
        if len(kinds) == 2:
            norm = layer.post_attention_layernorm
            hooks.append(norm.register_forward_pre_hook(lambda m, a, key=(at, "attention"): behind.update({key: a[0]})))
        for kind in kinds:
            last = layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj
            hooks.append(last.register_forward_pre_hook(lambda m, a, key=(at, kind): entered.update({key: a[0]})))
    with torch.no_grad():
        model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return behind, entered


def flat(x):
    return x.flatten(0, -2).double().numpy()


def name_of(layer, kind):
    """The weight that writes a sub-layer's result into the stream."""
    return f"model.layers.{layer}.{'self_attn.o_proj' if kind == 'attention' else 'mlp.down_proj'}.weight"


# --- least squares -------------------------------------------------------------------------------

# per cut: each sub-layer to solve for, by its new number, and the dense one whose stream it aims at
AIMS = {
    "units": (UNITS, [((0, "mlp"), (0, "mlp")), ((1, "attention"), (1, "attention")), ((1, "mlp"), (1, "mlp"))]),
    "depth": (DEPTH, [((0, "mlp"), (1, "attention")), ((1, "mlp"), (2, "mlp"))]),
    "first": (FIRST, [((0, "mlp"), (1, "mlp"))]),
    "narrow": (NARROW, [(here, here) for here in itertools.product(range(4), ("attention", "mlp"))]),
}


@pytest.mark.parametrize("cut", AIMS)
@pytest.mark.parametrize("name", [tiny_models.PLAIN, "gemma"])
def test_least_squares_is_the_float64_solution(cut, name):
    """min |E - X D'|^2 + lambda |D|^2 as one tall system, solved by numpy; one sub-layer after the other."""
    keep, aims = AIMS[cut]
    case, ridge = Case(keep, name), 0.05
    found = case.recovered(LeastSquares(**SOLVE, ridge=ridge))
    tokens = tiny_models.tokens(SOLVE["samples"], SOLVE["length"])
    aim, _ = seen(copy.deepcopy(case.dense).double(), tokens)
    want = copy.deepcopy(case.pruned).double()
    channels = list(keep.get("hidden", range(48)))
    for here, there in aims:
        behind, entered = seen(want, tokens)
        x, lacking = flat(entered[here]), flat(aim[there][..., channels] - behind[here])
        root = np.sqrt(ridge * (x * x).sum() / x.shape[1]) * np.eye(x.shape[1])
        change = np.linalg.lstsq(np.vstack([x, root]), np.vstack([lacking, np.zeros((len(root), lacking.shape[1]))]))[0]
        with torch.no_grad():
            want.get_parameter(name_of(*here)).add_(torch.from_numpy(change.T))
    solved = {name_of(*here) for here, _ in aims}
    assert set(different(found, case.pruned)) == solved
    for key in solved:
        change = want.get_parameter(key) - case.pruned.get_parameter(key)
        off = found.get_parameter(key) - want.get_parameter(key)
        assert off.norm() < 1e-4 * change.norm(), key


@pytest.mark.parametrize("name", tiny_models.MODELS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_no_sub_layer_is_further_from_the_dense_stream(name, dtype):
    """Each solved weight against the one the cut left, with all that lies before it recovered."""
    case = Case(UNITS, name, dtype)
    found = case.recovered(LeastSquares(**SOLVE))
    tokens = tiny_models.tokens(SOLVE["samples"], SOLVE["length"])
    aim, _ = seen(case.dense, tokens)
    for here, there in AIMS["units"][1]:
        before = copy.deepcopy(found)
        before.get_parameter(name_of(*here)).data = case.pruned.get_parameter(name_of(*here)).data
        errors = [float((aim[there].double() - seen(m, tokens)[0][here].double()).norm()) for m in (found, before)]
        assert errors[0] < 0.98 * errors[1]


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_units_that_are_copies_come_back_exactly(name):
    """A lost channel equal to a kept one, a lost KV group equal to a kept one: nothing was lost."""

    def twins(dense):
        for layer in dense.model.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[7] = linear.weight[3]
            inner = layer.self_attn
            for linear in (inner.q_proj, inner.k_proj, inner.v_proj):
                rows = linear.weight.shape[0] // case_groups
                for tensor in (linear.weight, linear.bias) if linear.bias is not None else (linear.weight,):
                    tensor[rows : 2 * rows] = tensor[:rows]

    case_groups = {**tiny_models.BASE, **tiny_models.MODELS[name]}["num_key_value_heads"]
    kept = {"attention": [u for u in range(case_groups) if u != 1], "mlp": [u for u in range(40) if u != 7]}
    case = Case({f"layers.{i}.{kind}": units for i in range(4) for kind, units in kept.items()}, name, change=twins)
    tokens = tiny_models.tokens(2, 20, seed=5)
    with torch.no_grad():
        dense, cut = case.dense(tokens).logits, case.pruned(tokens).logits
        found = case.recovered(LeastSquares(**SOLVE, ridge=1e-6))(tokens).logits
    assert (cut - dense).abs().max() > 0.05 * dense.abs().max()
    assert (found - dense).abs().max() < 1e-3 * dense.abs().max()


def test_a_cut_of_nothing_changes_nothing():
    case = Case({}, masks={"model.layers.0.mlp.up_proj.weight": torch.ones(40, 48)})
    assert not different(case.recovered(LeastSquares(samples=10**9)), case.pruned)


def test_masked_elements_are_refused():
    with pytest.raises(Unsupported, match="each row needs its own") as caught:
        Case(UNITS, masks=masked()).recovered(LeastSquares(**SOLVE))
    assert caught.value.remedy == "use --recovery lora"


def test_too_little_text_is_told():
    with pytest.raises(HarnessError, match=r"too little about layers\.0\.mlp: its 20 inputs") as caught:
        Case(UNITS).recovered(LeastSquares(samples=1, length=8, ridge=0))
    assert "ridge" in caught.value.remedy
    assert "samples" in caught.value.remedy


def test_bad_weights_are_told():
    def spoil(dense):
        dense.model.layers[1].self_attn.v_proj.weight[0] = torch.nan

    with pytest.raises(HarnessError, match=r"not finite in layers\.1\.attention"):
        Case(UNITS, change=spoil).recovered(LeastSquares(**SOLVE))


# --- LoRA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_lora_lowers_the_loss_of_the_text(name):
    case = Case(UNITS, name)
    tokens = easy(LEARN["samples"], LEARN["length"])
    found = case.recovered(Lora(**LEARN))
    with torch.no_grad():
        assert model_loss(found, tokens) < model_loss(case.pruned, tokens) - 0.1
    changed = {name.split(".")[-2] for name in different(found, case.pruned)}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_masked_elements_stay_zero(dtype):
    case = Case(UNEVEN, dtype=dtype, masks=masked())
    found = case.recovered(Lora(**LEARN))
    down, query = masked().values()
    for name, mask in (
        ("model.layers.0.mlp.down_proj.weight", down[:, ::2]),
        ("model.layers.2.self_attn.q_proj.weight", query),  # the third that is left
    ):
        weight = found.get_parameter(name)
        assert not weight[~mask].any()
        assert not torch.equal(weight, case.pruned.get_parameter(name))


def watched_validation(monkeypatch):
    losses, real = [], lora.validation_loss

    def note(model, windows):
        losses.append(real(model, windows))
        held.append(windows)
        return losses[-1]

    held: list = []
    monkeypatch.setattr(lora, "validation_loss", note)
    return losses, held, real


@pytest.mark.parametrize("masks", [{}, masked()], ids=["dense", "masked"])
def test_the_best_weights_by_validation_are_what_is_merged(masks, monkeypatch):
    """Also where elements are masked: the adapters never learn to use what merging would take away."""
    losses, held, real = watched_validation(monkeypatch)
    found = Case(UNEVEN, masks=masks).recovered(Lora(**LEARN))
    assert len(losses) == 1 + lora.CHECKS
    assert min(losses) < losses[0]
    assert real(found, held[0]) == pytest.approx(min(losses), abs=1e-5)


def test_training_that_only_harms_leaves_the_weights(monkeypatch):
    worse = itertools.count()
    monkeypatch.setattr(lora, "validation_loss", lambda *_: next(worse))
    case = Case(UNITS)
    assert not different(case.recovered(Lora(**LEARN)), case.pruned)
    assert next(worse) == 1 + lora.CHECKS


def test_every_window_is_either_taught_or_held(monkeypatch):
    """An epoch sees each taught window once, in batches of the asked size, in pieces that fit."""
    taught, held = [], []
    real = lora.validation_loss
    monkeypatch.setattr(lora, "validation_loss", lambda m, windows: held.append(windows) or real(m, windows))
    from harness.pruning.training import loop

    loss = loop.model_loss
    monkeypatch.setattr(loop, "model_loss", lambda m, ids: (taught.append(ids) if m.training else None) or loss(m, ids))
    Case(UNITS).recovered(Lora(samples=34, length=8, batch=6, epochs=2))
    assert [len(part) for part in taught] == [4, 2] * 11  # 32 windows twice: 64 of 66
    rows = [tuple(row.tolist()) for part in taught for row in part]
    first = {tuple(row.tolist()) for row in easy(34, 8)} - {tuple(row.tolist()) for row in held[0]}
    assert set(rows[:32]) == set(rows[32:64]) == first
    assert len(held[0]) == 2


def test_rates_rise_then_fall_by_half_a_cosine_and_gradients_are_shortened(monkeypatch):
    from harness.pruning.training import loop

    rates, lengths = [], []
    at_rate, clip = loop.set_learning_rate, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(loop, "set_learning_rate", lambda optim, lr: rates.append(lr) or at_rate(optim, lr))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda w, most: lengths.append(most) or clip(w, most))
    Case(UNITS).recovered(Lora(samples=34, length=8, batch=2, lr=1e-2, warmup=4))
    rising = [1e-2 * step / 4 for step in (1, 2, 3, 4)]
    falling = [1e-2 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert rates == pytest.approx(rising + falling)
    assert lengths == [1.0] * 16


def test_all_steps_cannot_be_warm_up():
    with pytest.raises(UsageError, match="warm-up"):
        Lora(warmup=100)


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recovery", BOTH, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    ("cut", "dtype"),
    [(UNITS, "fp32"), (DEPTH, "fp32"), (UNEVEN, "bf16"), (FIRST, "bf16"), (NARROW, "bf16")],
    ids=["units", "depth", "uneven", "first", "narrow"],
)
def test_a_recovered_model_is_one_of_the_same_kind(recovery, cut, dtype):
    """Same tensors, dtypes and modules, evaluating, asking for the same gradients, without hooks; and better."""
    case = Case(cut, dtype=dtype)
    case.pruned.model.embed_tokens.weight.requires_grad_(False)
    found = case.recovered(recovery)
    assert [(n, type(m)) for n, m in found.named_modules()] == [(n, type(m)) for n, m in case.pruned.named_modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in found.modules())
    for (name, now), (same, before) in zip(found.named_parameters(), case.pruned.named_parameters(), strict=True):
        assert (name, now.dtype, now.requires_grad, now.grad) == (same, before.dtype, before.requires_grad, None)
    assert different(found, case.pruned)
    assert all(tensor.isfinite().all() for tensor in found.state_dict().values())


def test_a_plan_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from harness.pruning.least_squares import LeastSquares; from harness.pruning.training.lora import Lora; "
    code += "LeastSquares(); Lora()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("recovery", BOTH, ids=lambda r: type(r).__name__)
def test_twice_is_the_same(recovery):
    case = Case(UNEVEN)
    once = case.recovered(recovery)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert not different(case.recovered(recovery), once)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "recovery", ["least-squares:samples=8:length=64", "lora:samples=16:length=32:batch=4:warmup=1"]
)
def test_a_run_recovers(recovery, runs, one_process):
    record = harness.run("random", model="tiny", device="null", ratio=0.2, recovery=recovery, limit=1)
    assert record.status == "ok"
    assert record.artefact.weights_updated
    assert record.cost.recover_s > 0
