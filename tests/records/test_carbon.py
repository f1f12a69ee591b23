"""CO2 out of energy and a stated grid: arithmetic, codes, and a record that changes only where it was asked for."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness
from harness.cli.record import command_of, energy_text, record_rows
from harness.devices.simulated import Null
from harness.errors import EnvironmentFault, UsageError
from harness.leaderboard.entries import Entry
from harness.leaderboard.site import terminal_pages
from harness.records import carbon
from harness.records.schema import Energy, Record, digest
from harness.records.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "record-1.json"
QUICK = {"model": "tiny", "device": "null", "limit": 2, "evaluators": "footprint"}
WORKLOAD = "prefill:1x128"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A codecarbon with two countries."""
    rows = {
        "DEU": {"country_name": "Germany", "year": 2023, "carbon_intensity": 380.95},
        "XKX": {"country_name": "Kosovo", "carbon_intensity": None},
    }
    path = tmp_path / carbon.TABLE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    fake = SimpleNamespace(version="9.9", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(carbon, "distribution", lambda name: fake)
    return path


def test_grams_are_taken_as_they_are_stated():
    for asked in ("350", " 350.0 ", 350):
        found = carbon.parse(asked)
        assert (found.grams_per_kwh, found.source) == (350.0, "stated by the user")
    assert carbon.parse("0").grams_per_kwh == 0


@pytest.mark.parametrize("asked", ["-1", "nan", "inf", "DE", "Germany", "", "350g"])
def test_what_is_no_grid_is_refused(asked):
    with pytest.raises(UsageError) as caught:
        carbon.parse(asked)
    assert "--grid 350" in caught.value.remedy


def test_a_country_is_looked_up_and_named(table):
    found = carbon.parse("deu")
    assert found == carbon.Grid("DEU", 380.95, "codecarbon 9.9, Germany 2023")
    with pytest.raises(UsageError, match="no country DEX") as caught:
        carbon.parse("DEX")
    assert "--grid 350" in caught.value.remedy
    with pytest.raises(UsageError, match="no carbon intensity for XKX"):
        carbon.parse("XKX")
    table.write_text("{")
    with pytest.raises(EnvironmentFault, match=r"global_energy_mix\.json is truncated or not JSON"):
        carbon.parse("DEU")


def test_without_codecarbon_the_extra_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(carbon, "distribution", missing)
    with pytest.raises(UsageError, match="codecarbon") as caught:
        carbon.parse("DEU")
    assert "prune-harness[co2]" in caught.value.remedy
    assert carbon.parse("381").grams_per_kwh == 381


def test_the_table_of_the_real_package():
    pytest.importorskip("codecarbon", reason="the extra co2 is not installed")
    found = carbon.parse("FRA")
    assert 10 < found.grams_per_kwh < 200
    assert "France" in found.source


def test_arithmetic():
    energy = Energy(dense=3.6, pruned=1.8, what="joules per pass")
    found = carbon.co2(carbon.parse("500"), energy, WORKLOAD)
    assert found.dense == pytest.approx(1e-6 * 500 * 1000 / 128)  # 3.6 J are a millionth of a kWh, for 128 tokens
    assert found.pruned == pytest.approx(found.dense / 2)
    assert carbon.co2(carbon.parse("500"), energy, "decode:4x128").dense == pytest.approx(1e-6 * 500 * 1000 / 4)


def test_without_energy_the_reason_stands():
    found = carbon.co2(carbon.parse("500"), Energy(reason="closed"), WORKLOAD)
    assert (found.dense, found.pruned, found.reason) == (None, None, "closed")


# --- in records ---


def metered(monkeypatch, watts=100.0):
    honest = Null.measure

    def measure(self, handle, plan):
        samples = honest(self, handle, plan)
        samples.energy_j, samples.energy_note = watts * 1e-9 * sum(samples.wall_ns), "a made-up meter"
        return samples

    monkeypatch.setattr(Null, "measure", measure)


def test_a_record_without_a_grid_has_no_word_of_it():
    words = json.loads(GOLDEN.read_text())
    record = Record.model_validate(words)
    assert record.co2 is None
    assert "co2" not in record.to_dict()


def test_a_record_with_a_grid_goes_round(runs, one_process, monkeypatch):
    metered(monkeypatch)
    record = harness.run("random", ratio=0.3, grid="350", **QUICK)
    assert record.status == "ok", record.reason
    assert record.co2.pruned < record.co2.dense == pytest.approx(record.energy.dense / 3.6e6 * 350 * 1000 / 128)
    assert (record.co2.grid, record.co2.grams_per_kwh, record.co2.source) == ("350", 350.0, "stated by the user")
    again = Store(runs).record(record.id)
    assert again == record
    assert digest(again.to_dict()) == again.digest
    assert json.loads((runs / record.artefact.path / "record.json").read_text())["co2"]["grams_per_kwh"] == 350
    rows = {name: change for name, *_, change in record_rows(record)}
    assert {f"energy {WORKLOAD} per token, mJ", f"CO2e {WORKLOAD} per 1000 tokens, mg"} <= set(rows)
    assert "350 g/kWh (stated by the user)" in energy_text(record)
    assert command_of(record).endswith("--grid 350")


def test_another_grid_weighs_the_same_energy(runs, one_process, monkeypatch):
    metered(monkeypatch)
    plain = harness.run("random", ratio=0.3, **QUICK)
    assert plain.co2 is None
    assert "CO2" not in energy_text(plain) + str(record_rows(plain)) + command_of(plain)
    monkeypatch.setattr(Null, "measure", None)  # nothing is measured again
    first = harness.run("random", ratio=0.3, grid=100, **QUICK)
    other = harness.run("random", ratio=0.3, grid=200, **QUICK)
    assert (first.id, first.keys, first.energy) == (plain.id, plain.keys, plain.energy)
    assert other.co2.dense == pytest.approx(2 * first.co2.dense)
    assert Store(runs).record(plain.id) == other
    assert [change.what for change in other.history] == ["created", "CO2e at 100 g/kWh", "CO2e at 200 g/kWh"]
    assert harness.run("random", ratio=0.3, grid=200, **QUICK) == other


def test_a_device_without_a_meter_gives_a_reason_and_no_figure(runs, one_process):
    record = harness.run("random", ratio=0.3, grid=350, **QUICK)
    assert record.co2.dense is None
    assert record.co2.reason == record.energy.reason == "no meter was read on this device"
    assert energy_text(record) == "energy: no meter was read on this device"
    assert not [name for name, *_ in record_rows(record) if "energy" in name or "CO2" in name]
    assert not [name for name in record.scores if "energy" in name]


def test_a_leaderboard_shows_energy_where_some_row_has_it(tmp_path):
    plain = Record.model_validate(json.loads(GOLDEN.read_text()))
    assert plain.spec.workloads[0] == WORKLOAD
    other = plain.spec.model_copy(update={"pruner": "random"})
    read = plain.model_copy(update={"energy": Energy(dense=3.0, pruned=0.256), "id": "f" * 24, "spec": other})
    entries = []
    for record in (plain, read):
        path = tmp_path / f"{record.id}.json"
        path.write_text(json.dumps(record.sealed().to_dict()))
        entries.append(Entry(path, tmp_path))
    assert "mJ per token" not in terminal_pages(entries[:1])
    header, _, *rows = [line for line in terminal_pages(entries).splitlines() if line.startswith("|")]
    at = [cell.strip() for cell in header.split("|")].index("mJ per token")
    assert sorted(row.split("|")[at].strip() for row in rows) == ["", "2"]
