"""Cost tables that others wrote, and places that they cannot be written to."""

from __future__ import annotations

import json
import os

import pytest

from harness.api import Workload
from harness.errors import HarnessError
from harness.latency.cost_table import table_store
from harness.latency.cost_table.cost_model import CostModel
from harness.latency.cost_table.regression import sizes
from harness.latency.cost_table.shape_timer import Visits
from harness.latency.cost_table.table import CostTable, Curve, Fit, anatomy_hash, classes
from harness.models.architectures.lookup import anatomy_of
from harness.models.loading.cards import card
from harness.records.store import Store

from .folders import DEEP, ODD_FILES, limited, odd_files, refused

ANATOMY = anatomy_of(card("tiny").config)
DEVICE = {"name": "board", "fingerprint": {"model": "board 1"}, "clock": "wall", "provenance": "device"}
WORKLOAD = Workload("prefill", 1, 16)
SAMPLES = f"{'0' * 64}.json.gz"


def table() -> CostTable:
    known = classes(ANATOMY)
    features = sizes(ANATOMY, {})
    return CostTable(
        model="tiny",
        anatomy=anatomy_hash(ANATOMY),
        params=ANATOMY.params(),
        device=DEVICE,
        runtime="eager",
        dtype="fp32",
        workload=str(WORKLOAD),
        preset="quick",
        fixed_ns=100.0,
        curves={
            name: Curve(units=[0, 1, sites[0].units], ns=[0.0, 10.0, 20.0], noise=0.01) for name, sites in known.items()
        },
        fit=Fit(features=["fixed", *known], weights=[1.0] * (1 + len(known)), shapes=9, error=0.1),
        predictor=Fit(features=list(features), weights=[1.0] * len(features), shapes=9, error=0.1),
        samples=SAMPLES,
    )


@pytest.fixture
def words():
    return table().to_dict()


def curve(words) -> dict:
    return next(iter(words["curves"].values()))


def renamed(words, name: str) -> None:
    words["curves"][name] = words["curves"].pop(next(iter(words["curves"])))
    words["fit"] = None


SPOILS = {
    "units that are text": lambda w: curve(w).update(units="all"),
    "units that are words": lambda w: curve(w).update(units=["a", "b"], ns=[0.0, 1.0]),
    "units of 2**60": lambda w: curve(w).update(units=[0, 2**60], ns=[0.0, 1.0]),
    "negative units": lambda w: curve(w).update(units=[-1, 4], ns=[0.0, 1.0]),
    "units that fall": lambda w: curve(w)["units"].reverse(),
    "a curve of 70,000 points": lambda w: curve(w).update(units=list(range(70_000)), ns=[1.0] * 70_000),
    "a curve of 400,000 points": lambda w: curve(w).update(units=list(range(400_000)), ns=[1.0] * 400_000),
    "a curve of nothing": lambda w: curve(w).update(units=[], ns=[]),
    "fewer times than units": lambda w: curve(w)["ns"].pop(),
    "a time of 1e300": lambda w: curve(w)["ns"].__setitem__(1, 1e300),
    "a negative time": lambda w: curve(w)["ns"].__setitem__(1, -1.0),
    "times that are null": lambda w: curve(w).update(ns=None),
    "curves that are a list": lambda w: w.update(curves=[1]),
    "no curves": lambda w: w.update(curves={}),
    "11,000 curves": lambda w: w.update(curves={str(i): {"units": [0, 1], "ns": [0, 1]} for i in range(11_000)}),
    "a name of blanks": lambda w: renamed(w, "  "),
    "a name with an escape": lambda w: renamed(w, "mlp \x1b[2J"),
    "a weight of 1e300": lambda w: w["fit"]["weights"].__setitem__(0, 1e300),
    "a negative weight": lambda w: w["predictor"]["weights"].__setitem__(0, -1.0),
    "weights of nothing": lambda w: w["predictor"].update(weights=[0.0] * len(w["predictor"]["weights"])),
    "fewer weights than features": lambda w: w["predictor"]["weights"].pop(),
    "a fixed time of 1e300": lambda w: w.update(fixed_ns=1e300),
    "a negative fixed time": lambda w: w.update(fixed_ns=-1.0),
    "a device that is text": lambda w: w.update(device="board"),
    "a device without a clock": lambda w: w["device"].pop("clock"),
    "a fingerprint that is a list": lambda w: w["device"].update(fingerprint=[1]),
    "a clock that is a number": lambda w: w["device"].update(clock=5),
    "a device with an escape": lambda w: w["device"].update(name="\x1b]0;x\x07"),
    "a machine with an escape": lambda w: w["device"]["fingerprint"].update(model="\x1b[2J"),
    "a model with a line break": lambda w: w.update(model="a\n# heading"),
    "a preset that is not known": lambda w: w.update(preset="slow"),
    "parameters of text": lambda w: w.update(params="many"),
    "fewer parameters than none": lambda w: w.update(params=-1),
    "samples by a path": lambda w: w.update(samples="../../victim.json"),
    "samples anywhere": lambda w: w.update(samples="/dev/zero"),
    "another version": lambda w: w.update(version="profile-1"),
    "another schema": lambda w: w.update(schema=99),
    "a field that is not known": lambda w: w.update(evil=1),
    "a validation of text": lambda w: w.update(validation="good"),
}


@pytest.mark.parametrize("fault", SPOILS)
def test_a_table_from_outside(tmp_path, words, fault):
    SPOILS[fault](words)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(words))
    refused(lambda: table_store.load_table(path), tmp_path, str(path), "--export", codes=(2,))


TEXTS = {
    "empty": b"",
    "truncated": b'{"schema": 1',
    "a list": b"[]",
    "a number": b"5",
    "3,000 lists": b"[" * DEEP,
    "3,000 objects": b'{"curves": ' * DEEP,
    "not UTF-8": b'{"model": "\xff"}',
    "an infinite time": b'{"fixed_ns": 1e999}',
    "NaN": b'{"fixed_ns": NaN}',
    "an integer of 5,000 digits": b'{"params": ' + b"9" * 5000 + b"}",
    "half of a surrogate pair": b'{"model": "\\ud800"}',
}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_table_that_is_none(tmp_path, fault):
    path = tmp_path / "table.json"
    path.write_bytes(TEXTS[fault])
    refused(lambda: table_store.load_table(path), tmp_path, str(path), "--export", codes=(2,))


@pytest.mark.parametrize("fault", [*ODD_FILES, "nothing"])
def test_something_else_in_the_place_of_a_table(tmp_path, fault):
    path = tmp_path / "table.json"
    if fault != "nothing":
        odd_files(path)[fault]()
    refused(lambda: table_store.load_table(path), tmp_path, "table.json", codes=(2,))


# --- the store's own tables ---


def find(store: Store) -> CostTable | None:
    return table_store.TableStore(store).find(ANATOMY, DEVICE, "eager", "fp32", WORKLOAD)


STORED = {
    "of another model": lambda w: w.update(anatomy="0" * 24),
    "of another device": lambda w: w["device"].update(name="other"),
    "of another workload": lambda w: w.update(workload="prefill:1x999"),
    "of other widths": lambda w: curve(w).update(units=[0, 3], ns=[0.0, 1.0]),
    "of other sub-layers": lambda w: renamed(w, "mlp 7 x 7"),
    "with a predictor of other features": lambda w: w["predictor"].update(features=["x"], weights=[1.0]),
    "in which nothing takes time": lambda w: (
        w.update(fixed_ns=0.0, fit=None),
        [one.update(ns=[0.0] * len(one["ns"])) for one in w["curves"].values()],
    ),
    "in which no weight counts": lambda w: (
        w.update(fixed_ns=0.0),
        w["fit"].update(weights=[1.0] + [0.0] * (len(w["fit"]["weights"]) - 1)),
    ),
    "with an infinite time": lambda w: w.update(fixed_ns=1e300),
}


@pytest.mark.parametrize("fault", STORED)
def test_a_table_in_the_store_that_does_not_fit(runs, words, fault):
    store = Store()
    path = table_store.TableStore(store).put(table())
    assert find(store) == table()
    STORED[fault](words)
    path.write_text(json.dumps(words))
    with limited():
        assert find(store) is None
    assert path.with_name(f"{path.name}.damaged").exists()  # nothing is deleted
    assert str(path) in store.notices[-1]


def test_a_table_that_fits_predicts(runs):
    model = CostModel(table(), ANATOMY)
    assert model.faults() == ""
    assert 0 < model.floor < model.dense
    assert model.time({"hidden": 32}) > 0


# --- visits, from which an interrupted profile goes on ---

GOOD = {"references": [10.0, 11.0], "shapes": {"a": [[5.0, 0.5]]}, "seconds": 1.0}
VISITS = {
    "a list": [1],
    "text": "visits",
    "nothing": {},
    "references of text": GOOD | {"references": "abc"},
    "references of words": GOOD | {"references": ["a"]},
    "references of zero": GOOD | {"references": [0.0, 0.0]},
    "a negative reference": GOOD | {"references": [1.0, -1.0]},
    "no references": GOOD | {"references": []},
    "shapes that are a list": GOOD | {"shapes": [1]},
    "a visit that is a number": GOOD | {"shapes": {"a": [5.0]}},
    "a visit of three": GOOD | {"shapes": {"a": [[5.0, 0.5, 1.0]]}},
    "a visit of text": GOOD | {"shapes": {"a": [["x", 0.5]]}},
    "a visit of no time": GOOD | {"shapes": {"a": [[0.0, 0.5]]}},
    "a visit before all": GOOD | {"shapes": {"a": [[5.0, -3.0]]}},
    "a visit after all": GOOD | {"shapes": {"a": [[5.0, 99.0]]}},
    "a visit nowhere": GOOD | {"shapes": {"a": [[5.0, float("nan")]]}},
    "seconds of text": GOOD | {"seconds": "long"},
    "negative seconds": GOOD | {"seconds": -1.0},
}


@pytest.mark.parametrize("fault", VISITS)
def test_visits_of_another_shape_are_none(fault):
    assert Visits.read(GOOD).to_dict() == {**GOOD, "shapes": {"a": [(5.0, 0.5)]}}
    assert Visits.read(VISITS[fault]) == Visits()


# --- export ---


@pytest.mark.parametrize("fault", ["a folder", "a pipe", "a link to a device", "no folder", "a long name"])
def test_a_place_that_a_table_cannot_be_written_to(tmp_path, fault):
    """Said before a measurement; a device in the file's place stays one."""
    path = tmp_path / "table.json"
    if fault == "no folder":
        path = tmp_path / "nowhere" / "table.json"
    elif fault == "a long name":
        path = tmp_path / ("x" * 300)
    else:
        odd_files(path)[fault]()
    refused(lambda: table_store.check_writable(path), tmp_path, path.name[:50], codes=(2, 3))


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    path.write_text("mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HarnessError, match="No space left on device"):
        table_store.export(table(), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.json", "mine")]
