"""Suites become cells, cells become records, and whatever interrupts them changes nothing but the time it takes."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.api import DeviceInfo
from harness.cell.lifecycle import STEPS
from harness.cli import cli
from harness.devices.simulated import Null
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.latency.prober import Measurement
from harness.pruning.baselines import Random
from harness.records.schema import SETTLED
from harness.records.store import Store
from harness.sweep import steps, suite, sweep
from harness.sweep.local_engine import JobDied, LocalEngine

from ..conftest import ROOT

COVERAGE = ROOT / "docs" / "coverage.md"
SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))
SMALL = """
pruners: [magnitude, {name: random, set: {granularity: units}}]
models: [tiny]
budgets: [0.3, "uniform:0.4"]
devices: ["null"]
workloads: ["prefill:1x64"]
evaluators: [footprint]
include:
  - pruners: [dense]
  - pruners: [wanda]
    budgets: [0.8x]
"""


class Here:
    """Runs the same jobs in this process."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.left, self.done = stop_after, []

    def run(self, job, **arguments):
        if not steps.is_light(job, arguments):
            self.done.append(job)
        return steps.JOBS[job](**arguments)

    def run_cells(self, cells, root, command):
        for cell in cells:
            for until in steps.steps_of(cell.request):
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
                self.done.append(until)
                state = steps.step(cell.fields, until, root, command)
                if state["status"]:
                    yield cell, "", state
                    break

    def close(self):
        return None


def requests(text, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return suite.cell_requests(suite.load_suite(path))


def run_sweep(cells, runs, engine):
    return sweep.Sweep("small", cells, Store(runs), engine).run(lambda cell, step: None)


def small(tmp_path):
    text = SMALL.replace(", {name: random, set: {granularity: units}}", ", random")
    return sweep.plan_cells(requests(text, tmp_path))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_of_this_checkout_can_be_read(path):
    loaded = suite.load_suite(path)
    assert loaded.about
    cells = {cell.label for cell in suite.cell_requests(loaded)}
    assert len(cells) >= 12
    assert f"[{path.stem}](../benchmarks/suites/{path.name}) | {len(cells)} |" in COVERAGE.read_text(encoding="utf-8")


def test_a_matrix_is_crossed_without_repeating_itself(tmp_path):
    text = """
pruners: [dense, magnitude, {name: wanda-sp, set: {samples: 8}}]
models: [tiny]
budgets: [0.3, 0.8x, 25ms]
recoveries: [none, "lora:epochs=1"]
seeds: [0, 1]
exclude:
  - {pruners: [magnitude], recoveries: lora}
  - {budgets: 25ms, seeds: [1]}
include:
  - {pruners: [random], budgets: [0.1], recoveries: [none]}
"""
    found = requests(text, tmp_path)
    by_pruner = Counter(cell.request.pruner for cell in found)
    assert by_pruner == {"dense": 4, "magnitude": 5, "wanda-sp": 10, "random": 2}  # dense has no budgets to cross
    assert len({cell.label for cell in found}) == len(found)
    kinds = {(cell.request.ratio, cell.request.latency) for cell in found if cell.request.pruner == "magnitude"}
    assert kinds == {("0.3", None), (None, "0.8x"), (None, "25ms")}
    assert found[-1].request.seed == 1
    assert next(cell for cell in found if cell.request.pruner == "wanda-sp").request.settings == {"samples": 8}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pruners: [magnitude", "is not YAML"),
        ("- magnitude", "is not a suite"),
        ("pruners: [magnitude]", "names no models"),
        ("{pruners: [magnitude], models: [tiny], buget: [0.3]}", "buget: Extra inputs"),
        ("{pruners: [], models: [tiny]}", "an empty list"),
        ("{pruners: [{name: magnitude, sets: {}}], models: [tiny]}", "pruners"),
        ("{pruners: [magnitude], models: [tiny], seeds: [one]}", "seeds.0"),
        (
            "{pruners: [magnitude], models: [tiny], exclude: [{pruner: magnitude}]}",
            "each rule must name one or more of",
        ),
        ("{pruners: [magnitude], models: [tiny], exclude: [{pruners: magnitude}]}", "the suite has no cells"),
        ("{pruners: [magnitude], models: [tiny], exclude: [{pruners: magnitud}]}", "excludes nothing"),
        ("{pruners: [magnitude], models: [tiny], budgets: ['uniform:2']}", "has no ratio between 0 and 1"),
        ("{pruners: [magnitude], models: [tiny], preset: fast}", "preset"),
    ],
)
def test_what_is_no_suite_is_said_in_one_line(tmp_path, text, told):
    with pytest.raises(UsageError) as error:
        requests(text, tmp_path)
    assert told in error.value.cause
    assert "\n" not in error.value.line
    assert error.value.remedy


def test_what_all_cells_share_reaches_each(tmp_path):
    text = "models: [tiny]\npruners: [random]\nbudgets: [0.3]\nlimit: 2\nsustain: 30\npreset: paper\n"
    (cell,) = requests(text, tmp_path)
    assert (cell.request.limit, cell.request.sustain, cell.request.preset) == (2, 30.0, "paper")


def test_wrong_values_stop_it_before_any_work_and_unknown_names_wait(tmp_path):
    wrong = requests("{pruners: [{name: magnitude, set: {nosuch: 1}}], models: [tiny]}", tmp_path)
    with pytest.raises(UsageError, match=r"tiny, magnitude nosuch=1.*nosuch"):
        sweep.plan_cells(wrong)
    found = sweep.plan_cells(
        requests("{pruners: [magnitud, random], models: [tiny], devices: ['null', gpu9]}", tmp_path)
    )
    assert [item.status for item in found] == ["waits", "waits", "planned", "waits"]
    assert "did you mean 'magnitude'?" in found[0].reason
    assert "no device 'gpu9'" in found[3].reason


def test_a_sweep_ends_with_a_row_for_every_cell(tmp_path, runs, one_process):
    counts = run_sweep(small(tmp_path), runs, Here())
    assert counts == {"ok": 5, "unsupported": 1}
    records = Store(runs).records()
    assert len(records) == 6
    alike = [record for record in records if record.spec.budget.kind == "latency" and record.status == "ok"]
    assert len({record.spec.budget.value for record in alike}) == 1  # what the even narrowing takes, for both
    assert 0.4 < alike[0].spec.budget.value < 1
    assert all(record.budget.achieved <= record.spec.budget.value for record in alike)
    told = CliRunner().invoke(cli, ["status"]).output
    assert "sweep small: 6 cells: 5 ok, 1 unsupported" in told
    kept = records[0].model_copy(update={"status": "failed", "reason": "edited and sealed"}).sealed()
    Store(runs).save_record(kept)
    assert "edited and sealed" in CliRunner().invoke(cli, ["status"]).output  # a file that changed is read again
    path = Store(runs).record_path(kept.id)
    path.write_text(path.read_text().replace("edited and sealed", "edited"))
    assert "was edited since it was written" in CliRunner().invoke(cli, ["status"]).stderr
    manifest = json.loads(next((runs / "sweeps").glob("*.json")).read_text())
    assert {cell["status"] for cell in manifest["cells"]} == {"ok", "unsupported"}


def test_cut_off_anywhere_it_ends_with_the_same_records(tmp_path, runs, one_process):
    whole = tmp_path / "whole"
    run_sweep(small(tmp_path), whole, Here())
    chance, done = random.Random(0), Counter()
    for _ in range(20):
        engine = Here(stop_after=chance.randint(1, 3))
        try:
            counts = run_sweep(small(tmp_path), runs, engine)
        except KeyboardInterrupt:
            done.update(engine.done)
            continue
        break
    assert counts == {"ok": 5, "unsupported": 1}
    first, second = ({r.id: r for r in Store(folder).records()} for folder in (whole, runs))
    assert set(first) == set(second)
    for cell, record in first.items():
        other = second[cell]
        assert (record.artefact and record.artefact.sha256) == (other.artefact and other.artefact.sha256)
        assert {n: s.value for n, s in record.scores.items()} == {n: s.value for n, s in other.scores.items()}
    again = Here()
    assert run_sweep(small(tmp_path), runs, again) == counts
    assert again.done == []  # nothing is left to do, and nothing is done


def test_recoveries_share_a_cut(tmp_path, runs, one_process):
    text = "{pruners: [magnitude], models: [tiny], budgets: [0.3], devices: ['null'], evaluators: [footprint], "
    run_sweep(sweep.plan_cells(requests(text + "recoveries: [none, least-squares]}", tmp_path)), runs, Here())
    assert len(list((runs / "stages" / "cut").glob("*.json"))) == 1
    assert len(list((runs / "stages" / "artefact").glob("*.json"))) == 2


def test_devices_share_a_model(tmp_path, runs, one_process, monkeypatch):
    """What no device decides is made once, and each measures that very model."""
    cuts, prune = [], Random.prune
    monkeypatch.setattr(Random, "prune", lambda self, *given: cuts.append(self) or prune(self, *given))
    text = "{pruners: [random], models: [tiny], budgets: [0.3], devices: ['null', staircase], evaluators: [footprint]}"
    assert run_sweep(sweep.plan_cells(requests(text, tmp_path)), runs, Here()) == {"ok": 2}
    assert len(cuts) == 1
    first, second = Store(runs).records()
    assert {first.spec.device, second.spec.device} == {"null", "staircase"}
    assert (first.artefact.path, first.artefact.sha256) == (second.artefact.path, second.artefact.sha256)
    taken = [[timing.pruned.median_ns for timing in record.latency.values()] for record in (first, second)]
    assert all(taken)
    assert taken[0] != taken[1]


def test_the_plan_tells_cells_what_waits_and_the_time(tmp_path, runs, one_process):
    path = tmp_path / "small.yaml"
    path.write_text("about: a look\n" + SMALL.replace("{name: random, set: {granularity: units}}", "nosuch"))
    done = CliRunner().invoke(cli, ["sweep", str(path), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "small: a look" in done.output
    assert "2 wait: no pruner 'nosuch'" in done.output
    assert "cannot run: tiny, wanda, 0.8x" in done.output
    assert "from FLOPs" in done.output
    words = json.loads(CliRunner().invoke(cli, ["sweep", str(path), "--dry-run", "--json"]).output)
    assert Counter(cell["status"] for cell in words) == {"planned": 4, "waits": 2}
    assert not runs.exists() or not list(runs.rglob("*.json"))


def test_earlier_records_of_the_same_work_tell_the_time(tmp_path, runs, one_process):
    text = {"pruners": ["random"], "models": ["tiny"], "devices": ["null"], "evaluators": ["footprint"], "limit": 2}

    def ahead(**changed):
        found = sweep.plan_cells(requests(json.dumps({**text, "budgets": [0.4], **changed}), tmp_path))
        return sweep.estimate(found, Store(runs), lambda plan: 7.0)

    assert ahead() == (7.0, 0)
    run_sweep(sweep.plan_cells(requests(json.dumps({**text, "budgets": [0.3]}), tmp_path)), runs, Here())
    (record,) = Store(runs).records()
    ended = (datetime.fromisoformat(record.started) + timedelta(seconds=5000)).isoformat()
    record = record.model_copy(update={"finished": ended}).sealed()
    Store(runs).save_record(record)
    assert ahead() == ahead(seeds=[1]) == (5000, 1)
    others = ({"preset": "paper"}, {"recoveries": ["least-squares"]}, {"limit": 3}, {"budgets": ["0.8x"]})
    assert [ahead(**other) for other in others] == [(7.0, 0)] * len(others)
    told = CliRunner().invoke(cli, ["sweep", str(tmp_path / "suite.yaml"), "--dry-run"]).output
    assert "from FLOPs)" in told
    ahead()
    told = CliRunner().invoke(cli, ["sweep", str(tmp_path / "suite.yaml"), "--dry-run"]).output
    assert "about 83 min, less if results are cached (estimated from earlier records for 1, from FLOPs for 0)" in told
    Store(runs).save_record(record.model_copy(update={"status": "failed"}).sealed())
    assert ahead() == (7.0, 0)


def test_a_cell_is_one_cell_on_nodes_that_differ(tmp_path, runs, one_process):
    """What a device says where it hangs is what every node goes by."""
    there = replace(Null().probe(), fingerprint={"kind": "null", "node": "far away"})
    text = "{pruners: [random], models: [tiny], devices: ['null'], budgets: [0.3], evaluators: [footprint]}"
    (item,) = sweep.plan_cells(requests(text, tmp_path), lambda device, runtime: there)
    told = [steps.step(item.fields, until, str(runs)) for until in STEPS]
    assert len({answer["id"] for answer in told}) == 1
    assert told[-1]["status"] == "ok"
    (record,) = Store(runs).records()
    assert record.environment.device["node"] == "far away"
    assert steps.check_cells([item.fields], str(runs))[0]["status"] == "ok"
    gone = DeviceInfo(usable=False, reason="no node offers device:null")
    (item,) = sweep.plan_cells(requests(text, tmp_path), lambda device, runtime: gone)
    assert (item.status, "no node offers device:null" in item.reason) == ("waits", True)


class Refusing(Here):
    """Fails where a table or a budget is measured."""

    def __init__(self, error) -> None:
        super().__init__()
        self.error = error

    def run(self, job, **arguments):
        if job in ("uniform_latency", "cost_table") and not steps.is_light(job, arguments):
            raise self.error
        return super().run(job, **arguments)


@pytest.mark.parametrize(
    ("error", "status"), [(HarnessError("no way", "none"), "failed"), (EnvironmentFault("not now", ""), "waits")]
)
def test_what_cells_have_in_common_may_fail_for_all_of_them(tmp_path, runs, one_process, error, status):
    text = "{pruners: [magnitude, random, shortgpt], models: [tiny], devices: ['null'], budgets: ['uniform:0.4', 0.3]}"
    heard = []
    found = sweep.plan_cells(requests(text, tmp_path))
    counts = sweep.Sweep("s", found, Store(runs), Refusing(error)).run(lambda item, step: heard.append((item, step)))
    assert counts == {status: 3, "ok": 3}
    assert {item.reason for item in found if item.status == status} == {
        f"latency of uniform pruning by 0.4: {error.line}"
    }
    assert len([item for item, step in heard if item.status == status and not step]) == 3
    told = CliRunner().invoke(cli, ["status"]).output.splitlines()
    assert told[-1] == f"    {status}: latency of uniform pruning by 0.4: {error.line}"  # they have no row that says it


def test_an_even_narrowing_that_is_no_faster_is_a_budget_all_the_same(tmp_path, runs, one_process, monkeypatch):
    text = "{pruners: [random], models: [tiny], devices: ['null'], budgets: ['uniform:0.1'], evaluators: [footprint]}"
    with monkeypatch.context() as patch:
        patch.setattr("harness.latency.prober.Prober.measure", lambda self, shape: Measurement(1.02, 0.05))
        sweep.Sweep("s", sweep.plan_cells(requests(text, tmp_path)), Store(runs), Here()).prepare()
    counts = run_sweep(sweep.plan_cells(requests(text, tmp_path)), runs, Here())
    assert counts == {"ok": 1}
    assert Store(runs).records()[0].spec.budget.value == 1


def test_a_cell_that_cannot_be_is_a_row_and_stops_no_plan(tmp_path, runs, one_process):
    path = tmp_path / "s.yaml"
    path.write_text(
        "{pruners: [random], models: [tiny, llama2-7b], devices: ['null'], budgets: [0.3], "
        "workloads: ['image:1x224', 'prefill:1x64'], evaluators: [footprint]}"
    )
    done = CliRunner().invoke(cli, ["sweep", str(path), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "cannot run: tiny, random, 0.3, null, image:1x224" in done.output
    assert "weights of llama2-7b: not on this machine; accept https://" in done.output
    text = path.read_text().replace(", llama2-7b", "")
    assert run_sweep(sweep.plan_cells(requests(text, tmp_path)), runs, Here()) == {"ok": 1, "unsupported": 1}
    path.write_text(text)
    assert "2 already done" in CliRunner().invoke(cli, ["sweep", str(path), "--dry-run"]).output


def test_a_process_that_does_not_come_back_is_a_row(tmp_path, runs):
    engine = LocalEngine(tmp_path / "log.txt")
    item = sweep.plan_cells(
        requests("{pruners: [random], models: [tiny], devices: ['null'], budgets: [0.3]}", tmp_path)
    )[0]
    try:
        with pytest.raises(JobDied, match=r"longer than 0\.01 s") as late:
            engine.run("step", 0.01, fields=item.fields, until="make", root=str(runs))
        assert late.value.status == "timeout"
        with pytest.raises(JobDied, match="ended with exit code 1"):
            engine.run("step", fields={}, until="make", root=str(runs))
        assert "KeyError" in (tmp_path / "log.txt").read_text()
        told = engine.run("fail", fields=item.fields, root=str(runs), status="timeout", reason="make: took longer")
    finally:
        engine.close()
    (record,) = Store(runs).records()
    assert (record.status, record.reason, record.id) == ("timeout", "make: took longer", told["id"])


SMOKE_S = 15 * 60  # of CPU that the suite may take, a promise of the project


def command(path: Path, runs: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "harness", "sweep", str(path), *words]


@pytest.mark.slow
def test_smoke_killed_three_times_ends_with_the_same_records(tmp_path):
    """A machine may be too noisy for its two measured cells: those are unstable then, and are tried again."""
    path, chance = ROOT / "benchmarks" / "suites" / "smoke.yaml", random.Random(time.time())
    records = {}
    for name, kills in (("whole", 0), ("killed", 3)):
        env = {**os.environ, "HARNESS_RUNS": str(tmp_path / name)}
        for _ in range(kills):
            begun = subprocess.Popen(command(path, tmp_path), env=env, start_new_session=True)
            time.sleep(chance.uniform(20, 90))
            os.kill(begun.pid, signal.SIGKILL)
            begun.wait()
        before = spent()
        code = subprocess.run(command(path, tmp_path), env=env, check=False).returncode
        if not kills:
            assert spent() - before < SMOKE_S
        records[name] = {record.id: record for record in Store(tmp_path / name).records()}
        assert code == int(any(record.status not in SETTLED for record in records[name].values()))
    assert set(records["whole"]) == set(records["killed"])
    assert len(records["whole"]) == len(suite.cell_requests(suite.load_suite(path)))
    made_up = Counter(record.status for record in records["whole"].values() if record.spec.device == "null")
    assert made_up == {"ok": 14, "unsupported": 1}  # an unstructured method cannot meet a latency
    same(records["whole"], records["killed"])


def spent() -> float:
    """CPU seconds of the processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same(ours, theirs):
    """Records of the same cells are answers, and agree in all that does not hang on a measurement."""
    for cell, record in ours.items():
        other, measured = theirs[cell], record.spec.device == "cpu"
        statuses = {record.status, other.status}
        assert statuses <= {"ok", "unstable"} if measured else len(statuses) == 1 and statuses <= set(SETTLED)
        if not (measured and record.spec.budget.kind == "latency") and record.artefact:
            assert record.artefact.sha256 == other.artefact.sha256
            assert record.artefact.shape == other.artefact.shape
            assert record.scores["passages"].value == other.scores["passages"].value
