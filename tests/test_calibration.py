"""What goes wrong with the text that methods learn from is told with its cause and cure, by every method alike."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

import harness
from harness import plugins
from harness.errors import UsageError
from harness.models import cards, loading

SPECS = plugins.registry().specs
LEARNING = sorted(name for name, spec in SPECS["pruner"].items() if "calibration" in spec.needs)
RECOVERIES = sorted(name for name, spec in SPECS["recovery"].items() if "calibration" in spec.needs)
QUICK = {"ratio": 0.2, "device": "null", "limit": 1}


@pytest.fixture
def spoilt(tmp_path):
    """The tiny model with a layer whose outputs leave fp32's range."""
    folder = tmp_path / "spoilt"
    shutil.copytree(loading.locate(cards.card("tiny"))[0], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("pruner", LEARNING)
def test_a_layer_that_is_not_finite_is_named(pruner, spoilt, runs):
    record = harness.run(pruner, model=str(spoilt), **QUICK)
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
        harness.run(pruner, model="tiny", calibration="c4", **QUICK)
    assert "the text c4 has 0 calibration windows of" in caught.value.cause
    assert "--set length=" in caught.value.remedy
    assert "--calibration passages" in caught.value.remedy
    assert "--set samples" not in caught.value.remedy  # none would do
    with pytest.raises(UsageError, match="not 100000"):
        harness.run(pruner, model="tiny", settings={plenty(pruner): 100_000}, **QUICK)


def plenty(pruner: str) -> str:
    """The parameter that counts a method's calibration windows."""
    return next(name for name in SPECS["pruner"][pruner].parameters if "samples" in name)
