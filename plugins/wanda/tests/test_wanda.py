"""Wanda and Wanda-sp against masks computed in float64 by plain loops over a Llama written from its formulas."""

from __future__ import annotations

import math
from typing import ClassVar

import harness_wanda
import pytest
import torch
from harness_wanda import PATTERNS, Wanda, WandaSp

from harness import Budget, Unsupported, plugins, uniform
from harness.conformance import Conformance
from harness.conformance.tiny_models import LLAMA31_8B, PLAIN, context, tiny, tokens
from harness.errors import HarnessError
from harness.models.architectures.lookup import anatomy_of
from harness.models.loading.cards import card
from harness.pruning.allocate import to_remove
from harness.system import seeds

MODELS = [PLAIN, "llama, one KV head per head, tied", "qwen2", "qwen3"]


def prune(method, model, anatomy, ratio, ids=None):
    """The method's cut of a model and the text that it was given; the model must be unchanged afterwards."""
    served = []

    def calibration(count, length):
        served.append(tokens(count, length, seeds.seed(0, "calibration")) if ids is None else ids)
        return served[-1]

    ctx = context(anatomy, calibration=calibration)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = method.prune(model, Budget("ratio", ratio), ctx, None)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    return cut, served[-1] if served else None


# --- the reference -------------------------------------------------------------------------------


def layer_of(w, at, x, config, inputs):
    """One decoder layer from its formulas; `inputs` gets the input of each linear, under its weight's name."""
    sequences, length, _ = x.shape
    size, prefix = config.head_dim, f"model.layers.{at}."

    def linear(name, x):
        inputs[f"{prefix}{name}.weight"] = x
        return x @ w[f"{prefix}{name}.weight"].T + w.get(f"{prefix}{name}.bias", 0)

    def norm(name, x):
        mean = x.pow(2).mean(dim=-1, keepdim=True)
        return x / (mean + config.rms_norm_eps).sqrt() * w[f"{prefix}{name}.weight"]

    def heads(name, x):
        return linear(f"self_attn.{name}_proj", x).view(sequences, length, -1, size).transpose(1, 2)

    def rotated(name, x):
        if f"{prefix}self_attn.{name}_norm.weight" in w:
            x = norm(f"self_attn.{name}_norm", x)
        theta = config.rope_parameters["rope_theta"]
        speed = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    h = norm("input_layernorm", x)
    q, k, v = rotated("q", heads("q", h)), rotated("k", heads("k", h)), heads("v", h)
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    attention = (q @ k.mT / math.sqrt(size)).masked_fill(later, -torch.inf).softmax(dim=-1)
    x = x + linear("self_attn.o_proj", (attention @ v).transpose(1, 2).reshape(sequences, length, -1))
    h = norm("post_attention_layernorm", x)
    gate, up = linear("mlp.gate_proj", h), linear("mlp.up_proj", h)
    return x + linear("mlp.down_proj", gate * gate.sigmoid() * up)


def reference(model, ids, zero, sequential=True):
    """The statistics of every layer; `zero(weights, statistics)` changes a layer before the next one runs."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    x, statistics = w["model.embed_tokens.weight"][ids], {}
    for at in range(model.config.num_hidden_layers):
        inputs = {}
        dense = layer_of(w, at, x, model.config, inputs)
        squares = {name: entering.pow(2).sum(dim=(0, 1)) / len(ids) for name, entering in inputs.items()}
        zero(w, squares)
        statistics |= squares
        x = layer_of(w, at, x, model.config, {}) if sequential else dense
    return statistics


def zero_places(weight, squares, count, zeros, group):
    """The (row, column) pairs of `count` zeros.

    First those of the pattern, then the same number in each row, then one more in the rows where it scores least.
    """
    scores = [[abs(w) * math.sqrt(a) for w, a in zip(row, squares, strict=True)] for row in weight]
    places = set()
    for r, row in enumerate(scores):
        for start in range(0, len(row), group):
            places |= {(r, c) for c in sorted(range(start, start + group), key=row.__getitem__)[:zeros]}
    per_row, rest = divmod(count - len(places), len(scores))
    remaining = [
        sorted((c for c in range(len(row)) if (r, c) not in places), key=row.__getitem__)
        for r, row in enumerate(scores)
    ]
    places |= {(r, c) for r, columns in enumerate(remaining) for c in columns[:per_row]}
    if rest:
        following = sorted((scores[r][columns[per_row]], r, columns[per_row]) for r, columns in enumerate(remaining))
        places |= {(r, c) for _, r, c in following[:rest]}
    return places


def masks_of(model, ids, counts, pattern, ratio, sequential=True):
    """The masks with `counts` zeros in each matrix, and the statistics that chose them.

    The next layer's input comes from weights pruned as the source does: by the pattern, or int(columns x ratio) zeros
    in each row.
    """
    masks = {}

    def zero(w, squares):
        for name, a in squares.items():
            rows, columns = w[name].shape
            zeros, group = PATTERNS[pattern] if ":" in pattern else (int(columns * ratio), columns)
            weight, by_source = w[name].tolist(), w[name].clone()
            for place in zero_places(weight, a.tolist(), rows * columns // group * zeros, zeros, group):
                by_source[place] = 0
            masks[name] = torch.ones(w[name].shape, dtype=torch.bool)
            for place in zero_places(weight, a.tolist(), counts[name], zeros, group):
                masks[name][place] = False
            w[name] = by_source

    statistics = reference(model, ids, zero, sequential)
    return masks, statistics


# --- Wanda ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("pattern", "ratio"), [("unstructured", 0.3), ("2:4", 0.5)])
def test_masks_are_the_formulas(name, pattern, ratio):
    model, anatomy = tiny(name)
    cut, ids = prune(Wanda(pattern, 3, 24), model, anatomy, ratio)
    counts = {tensor: int((~mask).sum()) for tensor, mask in cut.masks.items()}
    expected, _ = masks_of(model, ids, counts, pattern, ratio)
    assert len(expected) == 4 * 7
    assert cut.masks.keys() == expected.keys()
    assert [tensor for tensor, mask in expected.items() if not mask.equal(cut.masks[tensor])] == []


def test_later_layers_learn_from_pruned_ones():
    model, anatomy = tiny(PLAIN)
    cut, ids = prune(Wanda("unstructured", 3, 24), model, anatomy, 0.5)
    counts = {tensor: int((~mask).sum()) for tensor, mask in cut.masks.items()}
    sequential, statistics = masks_of(model, ids, counts, "unstructured", 0.5)
    alone, dense = masks_of(model, ids, counts, "unstructured", 0.5, sequential=False)
    for tensor, mask in cut.masks.items():
        assert mask.equal(sequential[tensor])
        first = tensor.startswith("model.layers.0.")
        assert statistics[tensor].equal(dense[tensor]) == first
        assert mask.equal(alone[tensor]) == first
    tensor = "model.layers.3.mlp.down_proj.weight"
    assert float((statistics[tensor] / dense[tensor] - 1).abs().median()) > 0.2
    assert float((cut.masks[tensor] != alone[tensor]).double().mean()) > 0.02


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.9])
def test_rows_and_matrices_lose_the_same_share(ratio):
    model, anatomy = tiny("qwen2")
    cut, _ = prune(Wanda("unstructured", 2, 16), model, anatomy, ratio)
    goal = math.ceil(ratio * anatomy.params(prunable=True))
    total = sum(mask.numel() for mask in cut.masks.values())
    assert sum(int((~mask).sum()) for mask in cut.masks.values()) == goal
    for mask in cut.masks.values():
        rows = (~mask).sum(dim=1)
        assert int(rows.max() - rows.min()) <= 1
        assert abs(int(rows.sum()) - goal * mask.numel() / total) < 1


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_patterns_hold_in_every_block_and_norms_are_made_up_for(pattern):
    model, anatomy = tiny(PLAIN)
    zeros, group = PATTERNS[pattern]
    cut, _ = prune(Wanda(pattern, 2, 16), model, anatomy, zeros / group)
    counts = [(~mask).view(-1, group).sum(dim=1) for mask in cut.masks.values()]
    assert min(int(count.min()) for count in counts) == zeros
    norms = 4 * 2 * 48
    assert sum(int((count - zeros).sum()) for count in counts) == math.ceil(norms * zeros / group)


def test_a_ratio_of_zero_reads_no_text():
    model, anatomy = tiny(PLAIN)
    for method in (Wanda(), Wanda("2:4"), WandaSp()):
        cut, ids = prune(method, model, anatomy, 0.0)
        assert ids is None
        assert not cut.masks
        assert not cut.keep


def test_impossible_settings_are_refused_before_any_text_is_read():
    model, anatomy = tiny(PLAIN)
    with pytest.raises(Unsupported, match=r"2:4 zeroes 0.5 of the weights, not 0.3"):
        Wanda("2:4").prune(model, Budget("ratio", 0.3), context(anatomy), None)
    with pytest.raises(Unsupported, match=r"norms and biases stay, at most 0.9936 can"):
        Wanda().prune(model, Budget("ratio", 0.9999), context(anatomy), None)
    odd = anatomy_of({**anatomy.config, "intermediate_size": 42})
    with pytest.raises(Unsupported, match=r"layers.0.mlp.down_proj.weight have 42 weights, not a multiple of 4"):
        Wanda("2:4").prune(model, Budget("ratio", 0.5), context(odd), None)


def test_a_failed_run_restores_the_weights():
    model, anatomy = tiny(PLAIN)
    layer, before = model.model.layers[0], {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stop(*_):
        if not layer.mlp.down_proj.weight.all():
            raise RuntimeError("out of memory")

    hook = layer.register_forward_hook(stop)
    for method in (Wanda("unstructured", 2, 16), WandaSp(2, 16)):
        with pytest.raises(RuntimeError, match="out of memory"):
            prune(method, model, anatomy, 0.5)
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    hook.remove()


def test_values_that_are_not_finite_name_the_layer():
    model, anatomy = tiny(PLAIN)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.inf
    with pytest.raises(HarnessError, match="layer 1 gives values that are not finite"):
        prune(Wanda("unstructured", 2, 16), model, anatomy, 0.5)


def test_how_far_whole_rows_fall_short_of_the_budget():
    """The source zeroes int(columns * ratio) weights in each row, and counts no norms."""
    for name, short, of_all in (("smollm2-135m", 3.3e-4, 0.789), ("llama2-7b", 4.1e-5, 0.961)):
        anatomy = anatomy_of(card(name).config)
        matrices = [dims for n, dims in anatomy.tensors.items() if n not in anatomy.head and len(dims) == 2]
        zeros = sum(rows * int(columns * 0.5) for rows, columns in matrices)
        goal = to_remove(anatomy, 0.5)
        assert (goal - zeros) / goal == pytest.approx(short, rel=0.02)
        assert zeros / anatomy.params() == pytest.approx(0.5 * of_all, abs=5e-4)
    llama3 = anatomy_of(LLAMA31_8B)
    assert llama3.params() == 8_030_261_248
    assert llama3.params(prunable=True) / llama3.params() == pytest.approx(0.869, abs=5e-4)


# --- Wanda-sp ------------------------------------------------------------------------------------


def units_of(model, anatomy, ids, shape, sequential=True):
    """The units that stay, by column scores. Removed units are zeroed at their source: the values, or the gates."""
    keep = {}

    def zero(w, squares):
        for tensor in [name for name in squares if name.endswith(("o_proj.weight", "down_proj.weight"))]:
            layer = tensor.split(".")[2]
            kind, source = ("attention", "self_attn.v_proj") if "o_proj" in tensor else ("mlp", "mlp.gate_proj")
            rows, a = w[tensor].tolist(), squares[tensor].tolist()
            columns = [sum(abs(row[c]) * math.sqrt(a[c]) for row in rows) / len(rows) for c in range(len(a))]
            site = f"layers.{layer}.{kind}"
            size = len(columns) // anatomy.sites[site].units
            scores = [sum(columns[u * size : (u + 1) * size]) for u in range(anatomy.sites[site].units)]
            keep[site] = sorted(sorted(range(len(scores)), key=lambda u: -scores[u])[: shape[site]])
            for part in (f"model.layers.{layer}.{source}.weight", f"model.layers.{layer}.{source}.bias"):
                if part in w:
                    w[part] = w[part].clone()
                    size = len(w[part]) // len(scores)
                    for u in set(range(len(scores))) - set(keep[site]):
                        w[part][u * size : (u + 1) * size] = 0

    reference(model, ids, zero, sequential)
    return keep


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_units_are_the_formulas(name, ratio):
    model, anatomy = tiny(name)
    cut, ids = prune(WandaSp(3, 24), model, anatomy, ratio)
    shape = uniform(anatomy, ratio)
    assert cut.keep == units_of(model, anatomy, ids, shape)
    assert WandaSp().shape(anatomy, ratio) == shape == {site: len(units) for site, units in cut.keep.items()}
    if name == PLAIN and ratio == 0.6:
        assert cut.keep != units_of(model, anatomy, ids, shape, sequential=False)


def test_a_removed_site_adds_nothing_to_the_input_of_later_layers():
    """The site's output bias is removed too, so layer 1 gets what remains without the sub-layer."""
    _, plain = tiny(PLAIN)
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {**plain.config, "attention_bias": True, "mlp_bias": True}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    anatomy, inputs = anatomy_of(config), []

    hook = model.model.layers[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    ratio = next(r / 100 for r in range(1, 100) if not uniform(anatomy, r / 100)["layers.0.attention"])
    cut, ids = prune(WandaSp(1, 16), model, anatomy, ratio)
    hook.remove()
    assert cut.keep["layers.0.attention"] == []
    mlp = model.model.layers[0].mlp
    down = torch.zeros_like(mlp.down_proj.weight)
    stays = list(cut.keep["layers.0.mlp"])
    down[:, stays] = mlp.down_proj.weight.detach()[:, stays]
    with torch.no_grad():
        x = model.model.embed_tokens(ids)
        h = model.model.layers[0].post_attention_layernorm(x)
        inner = torch.nn.functional.silu(mlp.gate_proj(h)) * mlp.up_proj(h)
        expected = x + (inner @ down.T + mlp.down_proj.bias if stays else 0)
    torch.testing.assert_close(inputs[-1], expected)


# --- a real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2 and sixteen windows of text. With four windows of 64 tokens, differences grow from layer to layer."""
    from harness.evaluation.calibration import calibration
    from harness.models.loading.weights import locate, on_this_machine
    from harness.models.saved import folders
    from harness.models.saved.contents import read_config

    available, why = on_this_machine(card("smollm2-135m"))
    if not available:
        pytest.skip(f"SmolLM2 is {why}")
    folder, _ = locate(card("smollm2-135m"))
    try:
        ids = calibration("passages", folders.tokenizer(folder), 16, 256, seed=0)
    except HarnessError as error:
        pytest.skip(error.cause)
    return folders.read(folder, "fp32"), anatomy_of(read_config(folder)), ids


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_real_model_agrees_with_the_source(smollm2, pattern, monkeypatch):
    """The masks against Wanda's own rule, int(columns * ratio) zeros in each row, computed in float64.

    Once independently, and once with the earlier layers pruned by the method's masks, because a single differing
    weight changes all later statistics.
    """
    model, anatomy, ids = smollm2
    patterns = {}

    def recorded(*arguments):
        pattern, mask = row_masks(*arguments)
        patterns[id(mask)] = pattern
        return pattern, mask

    row_masks = harness_wanda.row_masks
    monkeypatch.setattr(harness_wanda, "row_masks", recorded)
    cut, _ = prune(Wanda(pattern, *ids.shape), model, anatomy, 0.5, ids)
    layers = model.config.num_hidden_layers

    def compare(follow):
        """Per layer the share of equal mask elements: for the source's rule alone, and with the additional zeros."""
        agree, whole, size = torch.zeros(3, layers, dtype=torch.float64)

        def zero(w, squares):
            for name, a in squares.items():
                scores = w[name].abs() * a.sqrt()
                blocks = scores.view(-1, 4) if pattern == "2:4" else scores
                lowest = blocks.argsort(dim=1, stable=True)[:, : int(blocks.shape[1] * 0.5)]
                mask = torch.ones(blocks.shape, dtype=torch.bool).scatter_(1, lowest, False).view(scores.shape)
                layer, pattern_mask = int(name.split(".")[2]), patterns[id(cut.masks[name])]
                agree[layer] += int((mask == pattern_mask).sum())
                whole[layer] += int((mask == cut.masks[name]).sum())
                size[layer] += mask.numel()
                w[name] = w[name] * (pattern_mask if follow else mask)

        reference(model, ids, zero)
        return agree / size, whole / size

    following, _ = compare(follow=True)
    independent, whole = compare(follow=False)
    print(
        f"{pattern}: following {following.min():.6f} or more; independent {independent.mean():.6f}, "
        f"with the norms' share {whole.mean():.6f}"
    )
    print(" ".join(f"{share:.4f}" for share in independent))
    assert following.min() > 0.99999
    assert independent[0] > 0.99999
    assert independent.mean() > 0.9999
    assert whole.mean() > 0.9995


def test_paper_is_what_was_published():
    """The README: 128 sequences; at 2048 for LLaMA-1."""
    spec = plugins.registry().specs["pruner"]["wanda"]
    published = {"samples": 128, "length": 2048}
    assert {name: spec.parameters[name].default("paper") for name in published} == published


class TestUnstructured(Conformance):
    name = "wanda"


class TestPattern(Conformance):
    name = "wanda"
    settings: ClassVar = {"pattern": "2:4"}


class TestStructured(Conformance):
    name = "wanda-sp"
