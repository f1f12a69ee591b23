"""The keys of twenty cells and their stages: what is stored stays valid until a key changes on purpose.

The versions of all code are held constant, since they are part of every key and change with each release. After a
change on purpose, write the file again with `python -m tests.cell.test_keys`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import plugins
from harness.api import DeviceInfo
from harness.cell import planning
from harness.cell.plan import Attempt
from harness.cell.request import Request
from harness.records import keys

FILE = Path(__file__).parent.parent / "data" / "golden_keys.json"
CASES = json.loads(FILE.read_text(encoding="utf-8"))


def stage_keys(request: dict[str, Any]) -> dict[str, Any]:
    """The key of each stage of a request on a device with a fixed fingerprint."""
    device = DeviceInfo(usable=True, fingerprint={"kind": "golden"})
    plan = planning.make_plan(Request(probed=device, **request), fetch=False)
    parts = {
        "prepare": plan.prepare_parts(),
        "cut": plan.cut_parts(Attempt()),
        "artefact": plan.artefact_parts(Attempt()),
        "measure": plan.measure_parts("", plan.spec.workloads[0]),
    }
    return {
        "request": request,
        "cell": plan.cell_id(Attempt()),
        **{name: keys.key(name, part) for name, part in parts.items()},
        "eval": {e.label: keys.key("eval", plan.eval_parts("", e)) for e in plan.evaluations},
        "obstacle": plan.obstacle is not None,
    }


@pytest.fixture
def constant_code(monkeypatch):
    monkeypatch.setattr(plugins, "code_version", lambda kind, name: f"{kind} {name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['request']['pruner']}, {case['cell'][:6]}")
def test_keys_are_those_of_earlier_versions(case, constant_code):
    assert stage_keys(case["request"]) == case


if __name__ == "__main__":
    plugins.code_version = lambda kind, name: f"{kind} {name}"
    text = json.dumps([stage_keys(case["request"]) for case in CASES], indent=1, sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")
