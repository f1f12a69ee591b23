"""RAPL from made-up folders: what is counted once, what starts anew, and why nothing can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.api import Samples, TimingPlan
from harness.devices import cpu_energy
from harness.devices.cpu import Cpu
from harness.devices.cpu_energy import Meter
from harness.latency import timing


class Powercap:
    """A powercap folder; counters are moved by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def domain(self, folder: str, name: str, joules: float = 0, most: float = 65.0) -> Path:
        made = self.root / folder
        made.mkdir(parents=True)
        (made / "name").write_text(f"{name}\n")
        (made / "max_energy_range_uj").write_text(f"{round(most * 1e6)}\n")
        self.move(folder, joules)
        return made

    def move(self, folder: str, joules: float) -> None:
        (self.root / folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_energy, "ROOT", tmp_path / "powercap")
    return Powercap(tmp_path / "powercap")


def spent(powercap, **moves):
    found = Meter()
    found.start()
    for folder, joules in moves.items():
        powercap.move(folder.replace("_", ":").replace("rapl", "intel-rapl"), joules)
    return found.stop(), found.note


def test_packages_add_up_and_what_they_hold_is_not_counted_twice(powercap):
    powercap.domain("intel-rapl:0", "package-0", 10)
    powercap.domain("intel-rapl:0:0", "core", 5)
    powercap.domain("intel-rapl:1", "package-1", 20)
    powercap.domain("intel-rapl:2", "psys", 40)  # the platform, its packages among the rest
    powercap.domain("intel-rapl-mmio:0", "package-0", 10)  # the same package by another way
    joules, note = spent(powercap, rapl_0=12.5, rapl_0_0=7, rapl_1=21, rapl_2=50)
    assert joules == pytest.approx(3.5)
    assert note == "2 whole CPU packages by RAPL, others on the machine included"


def test_a_counter_may_start_anew(powercap):
    powercap.domain("intel-rapl:0", "package-0", 64, most=65)
    joules, note = spent(powercap, rapl_0=2)
    assert joules == pytest.approx(3)
    assert note.startswith("whole CPU package by RAPL")


def test_looks_in_between_add_up_over_several_starts(powercap):
    powercap.domain("intel-rapl:0", "package-0", 0, most=65)
    found = Meter()
    for _ in range(2):  # a second window does not hold the first
        powercap.move("intel-rapl:0", 0)
        found.start()
        for joules in (60, 55, 50):
            powercap.move("intel-rapl:0", joules)
            found.update()
        assert found.stop() == pytest.approx(60 + 60 + 60)


def test_without_counters_the_reason_is_said(powercap):
    assert spent(powercap) == (None, cpu_energy.NO_COUNTER)
    powercap.domain("intel-rapl:0", "psys", 40)
    assert spent(powercap) == (None, cpu_energy.NO_COUNTER)


def test_a_closed_counter_names_the_remedy(powercap, monkeypatch):
    powercap.domain("intel-rapl:0", "package-0", 1)
    powercap.domain("intel-rapl:1", "package-1", 1)
    honest = Path.read_text

    def guarded(path, *arguments, **named):
        if path.name == "energy_uj" and path.parent.name == "intel-rapl:1":  # tests may run as root
            raise PermissionError(13, "Permission denied")
        return honest(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", guarded)
    joules, note = spent(powercap, rapl_0=2)
    assert joules is None  # one package of two is not the machine
    assert note == cpu_energy.NO_PERMISSION
    assert "chmod" in note


@pytest.mark.parametrize(("text", "why"), [("", "no number"), (None, "No such file")])
def test_a_counter_that_tells_nonsense_or_goes_away(powercap, text, why):
    folder = powercap.domain("intel-rapl:0", "package-0", 1)
    found = Meter()
    found.start()
    (folder / "energy_uj").unlink() if text is None else (folder / "energy_uj").write_text(text)
    assert found.stop() is None
    assert why in found.note


def test_the_cpu_tells_the_joules_of_its_timed_passes(powercap):
    powercap.domain("intel-rapl:0", "package-0", 0)
    used = [0]

    def run():
        used[0] += 2
        powercap.move("intel-rapl:0", used[0])

    found = Cpu().measure(run, TimingPlan(warmup=3, iterations=4))
    assert found.energy_j == pytest.approx(8)  # and nothing of the warm-up
    assert "RAPL" in found.energy_note


def test_a_long_pass_is_followed_by_a_look(powercap, monkeypatch):
    powercap.domain("intel-rapl:0", "package-0", 0, most=65)
    monkeypatch.setattr("harness.devices.cpu.LONG_S", 0)
    used = [0]

    def run():
        used[0] += 40
        powercap.move("intel-rapl:0", used[0] % 65)

    assert Cpu().measure(run, TimingPlan(warmup=0, iterations=5)).energy_j == pytest.approx(200)


def test_the_cpu_says_why_it_tells_none(powercap):
    found = Cpu().measure(lambda: None, TimingPlan(warmup=0, iterations=1))
    assert (found.energy_j, found.energy_note) == (None, cpu_energy.NO_COUNTER)


def rounds(dense, pruned, note="a meter"):
    visits = {
        side: [Samples([5] * 4, [5] * 4, energy_j=joules, energy_note=note) for joules in told]
        for side, told in (("dense", dense), ("pruned", pruned), ("again", dense))
    }
    return timing.Rounds(**visits)


def test_joules_per_pass_with_the_devices_own_words():
    found = timing.energy(rounds([8.0, 0.0], [2.0, 2.0]), "cpu")
    assert (found.dense, found.pruned) == (1.0, 0.5)  # a visit shorter than the counter's step still counts
    assert found.what == "joules per pass, a meter"
    assert found.reason == ""


def test_why_there_are_no_joules():
    assert timing.energy(rounds([None], [None], "closed"), "cpu").reason == "closed"
    assert timing.energy(rounds([1.0], [None], "too short"), "cpu").reason == "too short"
    assert timing.energy(rounds([0.0], [0.0]), "cpu").reason == timing.UNMOVED
    assert timing.energy(rounds([None], [None], ""), "cpu") is None
