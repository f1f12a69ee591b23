"""What goes wrong with the text that methods learn from is told with its cause and cure, by every method alike."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

import harness
from harness import plugins
from harness.errors import UsageError
from harness.models.loading import cards, weights

from ..forks import command

SPECS = plugins.registry().specs
LEARNING = sorted(name for name, spec in SPECS["pruner"].items() if "calibration" in spec.needs)
RECOVERIES = sorted(name for name, spec in SPECS["recovery"].items() if "calibration" in spec.needs)
QUICK = {"ratio": 0.2, "device": "null", "limit": 1}


def quick(pruner: str) -> dict:
    """What a run is asked for: a ratio, or a latency from methods that know nothing else."""
    if "ratio" in SPECS["pruner"][pruner].budgets:
        return QUICK
    return {"latency": "0.8x", "device": "null", "limit": 1}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The cost table that methods under a latency ask for, made once."""
    folder = tmp_path_factory.mktemp("profiled")
    done = command("profile", "--device", "null", "--model", "tiny", HARNESS_RUNS=str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "tables"


@pytest.fixture
def runs(runs, tables, one_process):
    shutil.copytree(tables, runs / "tables")
    return runs


@pytest.fixture
def spoilt(tmp_path):
    """The tiny model with a layer whose outputs leave fp32's range."""
    folder = tmp_path / "spoilt"
    shutil.copytree(weights.locate(cards.card("tiny"))[0], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("pruner", LEARNING)
def test_a_layer_that_is_not_finite_is_named(pruner, spoilt, runs):
    record = harness.run(pruner, model=str(spoilt), **quick(pruner))
    assert record.status == "failed"
    assert "layer 2 gives values that are not finite" in record.reason
    assert "weights are bad" in record.reason
    assert "traceback" not in record.reason


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_so_it_is_by_recoveries(recovery, spoilt, runs):
    record = harness.run("random", model=str(spoilt), recovery=recovery, **QUICK)
    assert record.status == "failed"
    assert "not finite" in record.reason
    assert "layer" in record.reason
    assert "weights are bad" in record.reason


@pytest.mark.parametrize("pruner", LEARNING)
def test_a_text_that_is_too_small_says_what_it_has(pruner, runs, tmp_path, monkeypatch):
    (tmp_path / "c4.jsonl").write_text('{"text": "a short document"}\n{"text": "another"}\n', encoding="utf-8")
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        harness.run(pruner, model="tiny", calibration="c4", **quick(pruner))
    assert "the text c4 has 0 calibration windows of" in caught.value.cause
    assert "--set length=" in caught.value.remedy
    assert "--calibration passages" in caught.value.remedy
    assert "--set samples" not in caught.value.remedy  # none would do
    with pytest.raises(UsageError, match=r"calibration windows of .* not \d*00000"):
        harness.run(pruner, model="tiny", settings={plenty(pruner): 100_000}, **quick(pruner))


def plenty(pruner: str) -> str:
    """The parameter that counts a method's calibration windows."""
    return next(name for name in SPECS["pruner"][pruner].parameters if name in ("samples", "windows"))


def test_the_cure_names_the_setting_that_asked(runs):
    """A method's own name for its windows; a recovery's settings are given with the recovery."""
    told = []
    for pruner, more in (
        ("llm-streamline", {"settings": {"train_samples": 99_999}}),
        ("random", {"recovery": "lora:samples=99999"}),
    ):
        with pytest.raises(UsageError) as caught:
            harness.run(pruner, model="tiny", **more, **QUICK)
        told.append(caught.value.remedy)
    assert "(--set train_samples=…)" in told[0]
    assert "(--recovery lora:samples=…)" in told[1]


@pytest.mark.parametrize(
    ("pruner", "more", "tokens"),
    [
        ("random", {}, 0),
        ("random", {"recovery": "lora:samples=9:length=8:batch=2:warmup=0"}, 4 * 2 * 8),
        ("loraprune", {"settings": {"samples": 8, "length": 16, "batch": 2, "micro": 1}}, 8 * 16),
        ("llm-streamline", {"settings": {"samples": 2, "length": 16, "train_samples": 10, "epochs": 3, "batch": 3}}, 9),
        ("compresso", {"settings": {"samples": 3, "length": 8, "prune_epochs": 2, "ramp_epochs": 1}}, 4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_record_says_how_much_was_learned_from(pruner, more, tokens, runs):
    """Streamline: 9 of 10 windows train, three a step, three epochs; Compresso: one epoch of LoRA, two of masks, one of
    tuning."""
    unit = {"llm-streamline": 3 * 16, "compresso": 3 * 8}.get(pruner, 1)
    first = harness.run(pruner, model="tiny", **more, **QUICK)
    assert first.status == "ok", first.reason
    assert first.cost.train_tokens == tokens * unit
    (runs / "records" / f"{first.id}.json").unlink()
    assert harness.run(pruner, model="tiny", **more, **QUICK).cost.train_tokens == tokens * unit


@pytest.mark.parametrize("pruner", [name for name in LEARNING if "protect_first" in SPECS["pruner"][name].parameters])
def test_protected_layers_make_a_ratio_unsupported(pruner, runs):
    record = harness.run(
        pruner, model="tiny", settings={"protect_first": 2, "protect_last": 1}, **{**QUICK, "ratio": 0.5}
    )
    assert record.status == "unsupported"
    assert "while layers 0-1, 3 are protected: at most 0.25 can" in record.reason
