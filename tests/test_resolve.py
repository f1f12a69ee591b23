"""Settings: every default keeps its own bounds, and what a user asks beyond them is refused before any work."""

from __future__ import annotations

import pytest

import harness
from harness import plugins, resolve
from harness.errors import UsageError

KINDS = ("pruner", "evaluator", "recovery")
SETTINGS = [
    pytest.param(kind, spec, name, param, id=f"{spec.name}-{name}")
    for kind in KINDS
    for spec in plugins.registry().specs[kind].values()
    for name, param in spec.parameters.items()
]
BOUNDED = [case for case in SETTINGS if {case.values[3].least, case.values[3].above, case.values[3].most} != {None}]


@pytest.mark.parametrize(("kind", "spec", "name", "param"), SETTINGS)
def test_both_presets_can_be_asked_for(kind, spec, name, param):
    for preset in ("quick", "paper"):
        value = param.default(preset)
        assert resolve.resolve_settings(spec.name, spec.parameters, "quick", {name: str(value)})[name] == value


@pytest.mark.parametrize(("kind", "spec", "name", "param"), BOUNDED)
def test_what_is_out_of_range_is_refused(kind, spec, name, param):
    wrong = [] if param.least is None else [param.least - 1]
    wrong += [] if param.above is None else [param.above]
    wrong += [] if param.most is None else [param.most + 1]
    for value in wrong:
        text = str(type(param.quick)(value))
        with pytest.raises(UsageError, match="out of range") as caught:
            resolve.resolve_settings(spec.name, spec.parameters, "quick", {name: text})
        assert "give at least" in caught.value.remedy or "give more than" in caught.value.remedy


def test_a_recovery_that_would_fill_zeros_is_refused_before_the_method_runs(runs):
    record = harness.run(
        "magnitude",
        model="tiny",
        device="null",
        ratio=0.5,
        settings={"granularity": "2:4"},
        recovery="least-squares",
        limit=1,
    )
    assert record.status == "unsupported"
    assert "least-squares would fill what magnitude zeroes" in record.reason
    assert not list(runs.glob("cuts/*"))
