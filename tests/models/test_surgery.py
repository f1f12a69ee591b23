"""Cuts of every family: the sliced model is the dense one with the same units zeroed, and every count agrees."""

from __future__ import annotations

import copy
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Cut
from harness.api import Workload
from harness.errors import BadCut, EnvironmentFault
from harness.models import counting
from harness.models.architectures import modeling
from harness.models.cut import check_cut
from harness.models.saved import folders
from harness.models.surgery import apply, dense_state, masked_elements, zeroed
from harness.pruning.gates import gated

from ..families import ALL, BASE, difference, logits, tiny


@st.composite
def cuts(draw, anatomy, hidden: bool = True):
    """Any cut: whole sites gone, whole layers gone, first and last among them, the residual stream narrowed."""
    keep = {}
    for site in anatomy.sites.values():
        if site.layer is None:
            if hidden and draw(st.booleans()):
                keep[site.name] = draw(st.sets(st.integers(0, site.units - 1), min_size=3))
            continue
        kind = draw(st.sampled_from(["whole", "none", "some", "some"]))
        if kind == "none":
            keep[site.name] = set()
        elif kind == "some":
            keep[site.name] = draw(st.sets(st.integers(0, site.units - 1)))
    if not any(keep.get(s.name, {0}) for s in anatomy.blocks()):
        keep.pop(next(iter(keep)))  # one site stays: a model without layers is refused, and tested elsewhere
    return Cut(keep={name: sorted(units) for name, units in keep.items()})


def reference(model, anatomy, cut):
    """The dense model with the cut units zeroed."""
    same = copy.deepcopy(model)
    same.load_state_dict(zeroed(model, anatomy, cut), strict=False)
    same.tie_weights()
    return same


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("tied", [False, True])
def test_sliced_equals_zeroed(family, tied):
    model, anatomy = tiny(family, tied)

    @given(cuts(anatomy))
    @settings(max_examples=12)
    def holds(cut):
        cut = check_cut(anatomy, cut)
        smaller = apply(model, anatomy, cut)
        assert difference(logits(smaller), logits(reference(model, anatomy, cut))) < 1e-4  # fp32 sums in another order
        assert sum(p.numel() for p in smaller.parameters()) == anatomy.params(cut.shape)

    holds()


@pytest.mark.parametrize("family", ALL)
def test_saved_and_reloaded(family):
    """Counts of the file, of the shape and of the model agree; logits survive; both caches generate alike."""
    model, anatomy = tiny(family)

    @given(cuts(anatomy))
    @settings(max_examples=6)
    def holds(cut):
        cut = check_cut(anatomy, cut)
        smaller = apply(model, anatomy, cut)
        with tempfile.TemporaryDirectory() as folder:
            folders.write(smaller, None, Path(folder))
            stored = sum(tensor.numel() for tensor in folders.weights(Path(folder)).values())
            again = folders.read(Path(folder))
        assert stored == anatomy.params(cut.shape) == counting.count(again)[0]
        assert difference(logits(again), logits(smaller)) < 1e-5
        prompt = torch.tensor([[3, 1, 4, 1, 5]])
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        kept = again.generate(prompt, use_cache=True, **options)
        assert torch.equal(kept, again.generate(prompt, use_cache=False, **options))

    holds()


@pytest.mark.parametrize("family", ALL)
def test_left_padding_and_pieces(family):
    """A prompt in two pieces gives what it gives at once, also when the first layer has no attention."""
    from transformers import DynamicCache

    model, anatomy = tiny(family)
    smaller = apply(model, anatomy, check_cut(anatomy, Cut(keep={"layers.0.attention": [], "layers.1.mlp": [2, 3]})))
    tokens = torch.arange(12).view(1, 12) * 3 % 48
    cache = DynamicCache(config=smaller.config)
    with torch.inference_mode():
        whole = smaller(tokens).logits[:, -1]
        smaller(tokens[:, :5], past_key_values=cache, use_cache=True)
        pieces = smaller(tokens[:, 5:], past_key_values=cache, use_cache=True).logits[:, -1]
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], dim=1)
        mask = torch.cat([torch.zeros(1, 3), torch.ones(1, 12)], dim=1).long()
        left = smaller(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
    assert difference(pieces, whole) < 2e-5
    assert difference(left, whole) < 2e-5


@pytest.mark.parametrize("family", ALL)
def test_flops_of_a_shape_are_those_of_the_counter(family):
    model, anatomy = tiny(family)

    @given(cuts(anatomy), st.sampled_from(["prefill:2x16", "decode:2x16", "prefill:1x3"]))
    @settings(max_examples=8)
    def holds(cut, text):
        cut, workload = check_cut(anatomy, cut), Workload.parse(text)
        smaller = apply(model, anatomy, cut)
        hollow = modeling.empty(modeling.config_dict(smaller)).to("meta")
        more = counting.counted_flops(hollow, workload) - counting.flops(anatomy, cut.shape, workload)
        # before 5.23 the counter also sees the few products of the rotary angles
        angles = 0 if version("transformers") == "5.23.0" else 2 * anatomy.config["head_dim"] * workload.size
        assert 0 <= more <= angles

    holds()


@pytest.mark.parametrize("family", ALL)
def test_a_pruned_model_can_be_pruned_again(family):
    from harness.models.architectures.lookup import anatomy_of

    model, anatomy = tiny(family)
    once = apply(model, anatomy, check_cut(anatomy, Cut(keep={"layers.0.attention": [], "layers.2.mlp": [1, 5, 7]})))
    between = anatomy_of(modeling.config_dict(once))
    assert {n: tuple(t.shape) for n, t in dense_state(once).items()} == dict(between.tensors)
    twice = apply(once, between, check_cut(between, Cut(keep={"layers.2.mlp": [0, 2], "layers.1.attention": [0]})))
    straight = check_cut(
        anatomy, Cut(keep={"layers.0.attention": [], "layers.2.mlp": [1, 7], "layers.1.attention": [0]})
    )
    assert difference(logits(twice), logits(apply(model, anatomy, straight))) < 1e-5


def test_even_cuts_are_plain_and_uneven_ones_are_not():
    model, anatomy = tiny("llama")
    even = Cut(keep={f"layers.{i}.{kind}": range(2) for i in range(3) for kind in ("attention", "mlp")})
    gone = Cut(keep={"layers.1.attention": [], "layers.1.mlp": []})
    uneven = Cut(keep={"layers.1.mlp": [0]})
    types = [apply(model, anatomy, check_cut(anatomy, cut)).config.model_type for cut in (even, gone, uneven)]
    assert types == ["llama", "llama", "pruned_llama"]


def test_masks_and_rewrites_reach_the_tensors():
    model, anatomy = tiny("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    mask = torch.rand(anatomy.tensors[name]) > 0.5
    new = torch.randn(anatomy.tensors["model.layers.0.mlp.down_proj.bias"])
    cut = check_cut(
        anatomy,
        Cut(keep={"layers.1.mlp": range(10)}, masks={name: mask}, rewrites={"model.layers.0.mlp.down_proj.bias": new}),
    )
    smaller = apply(model, anatomy, cut)
    assert not smaller.get_parameter(name)[~mask[:10]].any()
    assert torch.equal(smaller.get_parameter("model.layers.0.mlp.down_proj.bias"), new)
    assert masked_elements(anatomy, cut) == int((~mask[:10]).sum())
    assert torch.equal(
        model.get_parameter(name) * mask, zeroed(model, anatomy, check_cut(anatomy, Cut(masks={name: mask})))[name]
    )


def test_a_cut_survives_its_file(tmp_path):
    _, anatomy = tiny("qwen2")
    name = "model.layers.1.mlp.up_proj.weight"
    mask = torch.rand(anatomy.tensors[name]) > 0.5
    cut = check_cut(
        anatomy,
        Cut(
            keep={"layers.0.mlp": [3, 1]},
            masks={name: mask},
            why="a test",
            details={"steps": 3},
            files={"way.svg": "<svg/>"},
        ),
    )
    folders.write_cut(cut, {"dense_tensors": {name: list(anatomy.tensors[name])}}, tmp_path)
    again = folders.read_cut(tmp_path)
    assert again.keep == {"layers.0.mlp": [1, 3]}
    assert torch.equal(again.masks[name], mask)
    assert again.why == "a test"
    assert again.details == {"steps": 3}
    assert again.files == {"way.svg": "<svg/>"}
    assert (tmp_path / "notes" / "way.svg").read_text(encoding="utf-8") == "<svg/>"
    words = json.loads((tmp_path / "cut.json").read_text(encoding="utf-8"))
    words.pop("told")  # as a cut of earlier days
    (tmp_path / "cut.json").write_text(json.dumps(words), encoding="utf-8")
    assert folders.read_cut(tmp_path).details == {}


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (Cut(keep={"layers.9.mlp": []}), "which this model does not have"),
        (Cut(keep={"layers.0.mlp": [20]}), "keeps unit 20 of layers.0.mlp, which has units 0 to 19"),
        (Cut(keep={"layers.0.mlp": [-1]}), "keeps unit -1"),
        (Cut(keep={"layers.0.mlp": [1, 1]}), "twice"),
        (Cut(masks={"nothing": torch.ones(1)}), "which this model does not have"),
        (Cut(masks={"model.norm.weight": torch.ones(3)}), "the tensor (32,)"),
        (Cut(keep={f"layers.{i}.{k}": [] for i in range(3) for k in ("attention", "mlp")}), "leaves no layer"),
        (Cut(keep={"hidden": []}), "leaves 0 of hidden, which needs at least 1"),
        (Cut(files={"a/b.svg": ""}), "cannot be the name of a file of the cut"),
        (Cut(files={"": ""}), "cannot be the name of a file of the cut"),
        (Cut(files={"a.svg": b""}), "is bytes, not text"),
        (Cut(details={"loss": float("nan")}), "are not JSON"),
        ({"layers.0.mlp": []}, "not a Cut"),
    ],
)
def test_a_wrong_cut_is_named(cut, said):
    _, anatomy = tiny("llama")
    with pytest.raises(BadCut, match=said.replace("(", r"\(").replace(")", r"\)")):
        check_cut(anatomy, cut)


@pytest.mark.parametrize("family", ALL)
def test_gates_at_zero_are_what_the_cut_leaves(family):
    """Biases included: those of an empty site go with it."""
    model, anatomy = tiny(family)
    keep = {"layers.0.mlp": [], "layers.1.attention": [], "layers.2.mlp": [0, 3, 7]}
    gates = {s.name: torch.zeros(s.units) for s in anatomy.blocks()}
    for site, gate in gates.items():
        gate[list(keep.get(site, range(len(gate))))] = 1
    smaller = apply(model, anatomy, check_cut(anatomy, Cut(keep=keep)))
    with gated(model, anatomy, gates):
        found = logits(model)
    assert difference(found, logits(smaller)) < 1e-4


@pytest.mark.parametrize("names", [{"11": {"intermediate_size": 4}}, {"03": {"intermediate_size": 4}}, {"00": {}}])
def test_layers_have_numbers_of_one_width_or_of_their_own(names):
    """transformers writes 00, 01, ... for the layers of an uneven model of ten layers or more."""
    from harness.models.architectures.lookup import anatomy_of

    config = {**BASE, "model_type": "llama", "num_hidden_layers": 12, "per_layer_config": names}
    (number, own), *_ = names.items()
    units = anatomy_of(config).sites[f"layers.{int(number)}.mlp"].units
    assert units == own.get("intermediate_size", BASE["intermediate_size"])
    with pytest.raises(EnvironmentFault, match="a name in per_layer_config is"):
        anatomy_of({**config, "per_layer_config": {**names, "1": {}, "01": {}}})


def test_an_uneven_model_of_many_layers_has_an_anatomy_again():
    from harness.models.architectures.lookup import anatomy_of

    _, model_class = modeling.classes("llama")
    model = model_class(modeling.config({**BASE, "model_type": "llama", "num_hidden_layers": 12}))
    anatomy = anatomy_of(modeling.config_dict(model))
    smaller = apply(model, anatomy, check_cut(anatomy, Cut(keep={"layers.10.mlp": [0, 1], "layers.3.attention": []})))
    again = anatomy_of(modeling.config_dict(smaller))
    assert {name: tuple(t.shape) for name, t in dense_state(smaller).items()} == dict(again.tensors)
