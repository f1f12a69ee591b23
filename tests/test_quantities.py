"""Budgets, workloads, keys, seeds, statistics."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.api import Budget, Workload
from harness.errors import UsageError
from harness.evaluation import score_stats
from harness.latency import timing_stats
from harness.records import keys
from harness.system import seeds

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("text", ["-0.1", "1.0", "2", "abc", "", "nan", "inf", "1e3"])
def test_impossible_ratios(text):
    with pytest.raises(UsageError, match="not a share"):
        Budget.ratio(text)


@pytest.mark.parametrize("text", ["0.7", "x", "0x", "1.1x", "-5ms", "25 ms", "25s", "ms", "0ms", "1e2ms"])
def test_malformed_latencies(text):
    with pytest.raises(UsageError, match="not a budget"):
        Budget.latency(text)


def test_well_formed_budgets():
    assert Budget.ratio("0.3") == Budget("ratio", 0.3)
    assert Budget.latency("0.7x") == Budget("latency", 0.7, "x")
    assert Budget.latency("25ms") == Budget("latency", 25, "ms")
    assert str(Budget.latency("1x")) == "latency 1x"


@pytest.mark.parametrize("text", ["prefill", "prefill:0x3", "prefill:1x", "train:1x2", "prefill:1x2x3", "prefill:-1x2"])
def test_malformed_workloads(text):
    with pytest.raises(UsageError, match="workload"):
        Workload.parse(text)


def test_workloads_read_back():
    assert str(Workload.parse("decode:2x512")) == "decode:2x512"


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.randoms())
def test_keys_do_not_depend_on_order(parts, rng):
    items = list(parts.items())
    rng.shuffle(items)
    assert keys.key("cut", dict(items)) == keys.key("cut", parts)
    assert keys.key("cut", json.loads(keys.canonical(parts))) == keys.key("cut", parts)


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=1, max_size=5))
def test_keys_depend_on_kind_and_every_component(parts):
    assert keys.key("cut", parts) != keys.key("eval", parts)
    name = sorted(parts)[0]
    assert keys.key("cut", parts) != keys.key("cut", {**parts, name: [parts[name], 1]})


def test_explain_names_the_component():
    ours = {"model": "a", "parameters": {"norm": 1, "score": "group"}}
    theirs = {"model": "a", "parameters": {"norm": 2}}
    assert list(keys.differing_components(ours, theirs)) == [
        ("parameters.norm", 1, 2),
        ("parameters.score", "group", None),
    ]


def test_keys_refuse_what_is_not_a_number():
    with pytest.raises(ValueError, match="JSON compliant"):
        keys.key("cut", {"x": math.nan})


def test_seeds_differ_by_axis_and_repeat():
    assert seeds.seed(0, "site", "a") == seeds.seed(0, "site", "a") == 2703803063
    assert len({seeds.seed(b, *axis) for b in (0, 1) for axis in (("a",), ("b",), ("a", "b"), ("ab",))}) == 8


def test_t_interval_covers():
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = stats.interval([rng.gauss(3, 2) for _ in range(5)])
        hits += low < 3 < high
    assert 0.93 < hits / 2000 < 0.97


def test_paired_ratio_ignores_drift_that_hits_both():
    drift = [1, 2, 4, 8, 16]
    value, (low, high) = timing_stats.ratio([(2 * d, 2 * d) for d in drift], [(d,) for d in drift])
    assert value == pytest.approx(2)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_quantiles_are_ordered(values):
    assert min(values) <= timing_stats.quantile(values, 0.5) <= timing_stats.quantile(values, 0.9) <= max(values)
    assert timing_stats.quantile(values, 0.5) == pytest.approx(statistics.median(values), abs=1e-6)


def test_single_values_have_no_interval():
    assert stats.interval([1.0]) is None
    assert timing_stats.ratio([(2.0,)], [(1.0,)]) == (2.0, None)
    assert score_stats.mean_stderr([2.0]) == (2.0, None)


def test_old_configs_keep_their_rope_and_their_card():
    from harness.models.architectures import modeling
    from harness.models.architectures.decoder import config_of
    from harness.models.architectures.lookup import anatomy_of

    scaling = {"rope_type": "linear", "factor": 4.0}
    words = {"model_type": "llama", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 20}
    words |= {"num_hidden_layers": 2, "num_attention_heads": 4, "rope_theta": 5e5, "rope_scaling": scaling}
    cut = modeling.config(config_of(anatomy_of(words), {"layers.0.mlp": 3}))
    assert cut.model_type == "pruned_llama"
    assert cut.rope_parameters["rope_theta"] == 5e5
    assert cut.rope_parameters["factor"] == 4.0
    assert scaling == {"rope_type": "linear", "factor": 4.0}
