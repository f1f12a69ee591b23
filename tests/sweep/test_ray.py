"""Sweeps over nodes: what comes out is the same, and a node that is lost for good is a reason, not a wait for ever."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import EnvironmentFault
from harness.models.counting import stored_bytes
from harness.pruning.baselines import Random
from harness.records.store import Store
from harness.sweep import ray_engine, ray_nodes, sweep
from harness.sweep.ray_nodes import PATIENCE_S, Task

from .test_sweep import command, requests, same

GB = 2**30
HEAD = {"CPU": 1, "memory": GB, "device:staircase": 1}
FAR = {"CPU": 1, "memory": GB, "device:null": 1}
LOST = "no node offers device:null (ray start --resources='{\"device:null\": 1}' on the machine with the device)"
SUITE = """
about: two devices, one on each node
pruners: [random]
models: [tiny]
budgets: [0.2, 0.4]
devices: ["null", staircase]
workloads: ["prefill:1x64"]
evaluators: [footprint]
"""


class Played:
    """Ray in this process, by a clock of its own: a task is done once what it is given is there and a node offers what
    it asks for, each in no time once `busy_until` is over. `there` says which nodes there are."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)  # never seen

    def __init__(self, there, monkeypatch) -> None:
        self.there, self.now, self.busy_until, self.asked, self.known = there, 0.0, 0.0, [], {}
        monkeypatch.setitem(sys.modules, "ray", self)
        monkeypatch.setattr(ray_nodes, "monotonic", lambda: self.now)

    def init(self, **_):
        return None

    def shutdown(self):
        return None

    def nodes(self):
        gone = {"Alive": False, "Resources": {}}
        return [gone, *({"Alive": True, "Resources": offered} for offered in self.there(self))]

    def remote(self, **_):
        return lambda work: SimpleNamespace(
            options=lambda **asked: SimpleNamespace(remote=lambda *given: self._handed(work, asked, given))
        )

    def _handed(self, work, asked, given):
        needs = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], "memory": asked.get("memory", 0)}
        self.asked.append((work, {**needs, **asked["resources"]}, given))
        return f"answer {len(self.asked)}"

    def wait(self, answers, timeout):
        assert timeout, "it would wait for ever"
        for answer in answers:
            work, needs, given = self.asked[int(answer.split()[1]) - 1]
            awaited = [one for one in given if isinstance(one, str) and one.startswith("answer ")]
            fits = any(all(node.get(name, 0) >= n for name, n in needs.items()) for node in self.there(self))
            if fits and self.now >= self.busy_until and all(one in self.known for one in awaited):
                self.known[answer] = work(*(self.known[one] if one in awaited else one for one in given))
                return [answer], [one for one in answers if one != answer]
        self.now += timeout
        return [], answers

    def get(self, answer):
        return self.known[answer]

    def timed(self):
        """How many steps the far node has done."""
        far = {f"answer {n}" for n, (work, needs, _) in enumerate(self.asked, 1) if "device:null" in needs}
        return len(far & self.known.keys())


def lost(after, back=None):
    """The far node goes once it has done so much, and is back so many seconds later."""
    since = []

    def there(played):
        if played.timed() >= after and not since:
            since.append(played.now)
        away = since and (back is None or played.now - since[0] < back)
        return [HEAD] if away else [HEAD, FAR]

    return there


def everywhere(_):
    return [HEAD, FAR]


def swept(path):
    return CliRunner().invoke(cli, ["sweep", str(path), "--engine", "ray", "--address", "played"])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(SUITE)
    return path


def test_what_a_lost_node_alone_can_do_waits_and_the_same_command_continues_it(path, runs, one_process, monkeypatch):
    cuts, prune = [], Random.prune
    monkeypatch.setattr(Random, "prune", lambda self, *given: cuts.append(self) or prune(self, *given))
    played = Played(lost(after=2), monkeypatch)  # a probe, a cell
    done = swept(path)
    assert done.exit_code == 1, done.output
    assert PATIENCE_S < played.now < PATIENCE_S + 3 * ray_nodes.POLL_S
    assert f"waits  tiny, random, 0.4, null, prefill:1x64: {LOST}" in done.output
    assert "4 cells: 3 ok, 1 waits" in done.output
    assert [record.status for record in Store(runs).records()] == ["ok"] * 3
    told = CliRunner().invoke(cli, ["status"]).output
    assert f"    waits: {LOST}" in told
    assert len(cuts) == 2
    played = Played(everywhere, monkeypatch)
    assert swept(path).exit_code == 0
    assert [record.status for record in Store(runs).records()] == ["ok"] * 4
    assert len(cuts) == 2  # the cut was made before
    assert sum(work is ray_engine._run_step for work, *_ in played.asked) == 3  # the steps of one cell


def test_a_node_that_is_soon_back_is_used(path, runs, one_process, monkeypatch):
    played = Played(lost(after=2, back=PATIENCE_S / 2), monkeypatch)
    done = swept(path)
    assert done.exit_code == 0, done.output
    assert PATIENCE_S / 2 <= played.now < PATIENCE_S
    assert [record.status for record in Store(runs).records()] == ["ok"] * 4


def test_patience_begins_when_nothing_else_is_left(monkeypatch):
    """What waits for a node has all the time that others still take."""
    played = Played(lambda played: [HEAD] if played.now < 300 else [HEAD, FAR], monkeypatch)
    played.busy_until = 290
    tasks = [task(played, {"CPU": 1}), task(played, {"CPU": 1, "device:null": 1})]
    assert list(ray_nodes.finished(played, tasks)) == [(one.result, None) for one in tasks]


def task(played, needs, after=()):
    answer = (
        played.remote()(lambda *_: "done").options(**{"num_gpus": 0, **ray_nodes.task_options(needs)}).remote(*after)
    )
    return Task(answer, needs, after)


def test_what_waits_for_another_lacks_what_that_one_does(monkeypatch):
    played = Played(lambda _: [HEAD], monkeypatch)
    first = task(played, {"CPU": 1, "device:null": 1})
    second = task(played, {"CPU": 1}, (first.result,))
    large = task(played, {"CPU": 1, "memory": 2 * GB})
    both = task(played, {"CPU": 2, "device:staircase": 1})
    free = task(played, {"CPU": 1})
    told = dict(ray_nodes.finished(played, [first, second, large, both, free]))
    assert EnvironmentFault(*told[first.result]).line == LOST
    assert told[second.result] == told[first.result]
    assert told[large.result] == ("no node offers 2.1 GB of memory", "ray start on a machine that has them")
    assert told[both.result][0] == "no node offers 2 CPU"
    assert told[free.result] is None
    split = ray_nodes.lacking({"CPU": 1, "GPU": 1, "device:null": 1}, [FAR, {"CPU": 1, "GPU": 1}])
    assert split[0] == "no node offers 1 CPU, 1 GPU, device:null"  # each is somewhere, never together


def test_a_device_that_no_node_offers_waits_at_once_and_one_that_goes_meanwhile_soon(tmp_path, runs, monkeypatch):
    played = Played(lambda _: [HEAD], monkeypatch)
    engine = ray_engine.RayEngine("played")
    assert engine.probe("null", None).reason == LOST
    assert played.now == 0
    assert engine.probe("nosuch", None) is None
    assert engine.probe("staircase", None).usable
    looks = []
    played.there = lambda _: [HEAD] if looks else looks.append(1) or [HEAD, FAR]
    told = engine.probe("null", None)
    assert (told.usable, told.reason) == (False, LOST)
    assert played.now > PATIENCE_S
    text = "{pruners: [random], models: [tiny], devices: ['null'], budgets: ['uniform:0.3'], evaluators: [footprint]}"
    (item,) = found = sweep.plan_cells(requests(text, tmp_path))
    counts = sweep.Sweep("s", found, Store(runs), engine).run(lambda item, step: None)
    assert counts == {"waits": 1}
    assert item.reason == f"latency of uniform pruning by 0.3: {LOST}"


def test_models_that_a_node_has_no_memory_for_do_not_come_at_once(tmp_path, monkeypatch):
    """Each piece of work asks for both models, or all of the largest node that could do it."""
    Played(everywhere, monkeypatch)
    engine = ray_engine.RayEngine("played")
    (item,) = sweep.plan_cells(
        requests("{pruners: [random], models: [tiny], devices: ['null'], budgets: [0.3]}", tmp_path)
    )
    both = 2 * stored_bytes(item.plan.anatomy.params(), "fp32")
    assert engine._needs(item, "make", [HEAD]) == {"CPU": 1, "GPU": 0, "memory": both}
    assert engine._needs(item, "time", [HEAD, FAR]) == {"CPU": 1, "GPU": 0, "device:null": 1, "memory": both}
    assert engine._needs(item, "time", [HEAD, {**FAR, "memory": 1000}])["memory"] == 1000
    assert engine._needs(item, "score", [{"CPU": 1}])["memory"] == 0  # a node that does not count it


def test_ray_is_told_to_leave_the_environment_of_uv_alone_before_it_is_imported(tmp_path, monkeypatch):
    """Ray reads it once, while it is imported."""
    (tmp_path / "ray.py").write_text(
        "import os\n"
        "seen = os.environ.get('RAY_ENABLE_UV_RUN_RUNTIME_ENV')\n"
        "def init(**_): raise ConnectionError(seen)\n"
    )
    monkeypatch.setitem(sys.modules, "ray", None)  # so that what was imported before is back afterwards
    del sys.modules["ray"]
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "")  # so that what the engine sets is gone afterwards
    del os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"]
    with pytest.raises(EnvironmentFault, match="no Ray cluster at nowhere: 0"):
        ray_engine.RayEngine("nowhere")


def test_a_step_on_a_node_has_its_time_too(tmp_path, runs, one_process, monkeypatch):
    """The first alarm strikes within a callback of the garbage collector, where Python drops its exception."""
    item = sweep.plan_cells(
        requests("{pruners: [random], models: [tiny], devices: ['null'], budgets: [0.3]}", tmp_path)
    )[0]
    step, dropped = ray_engine.steps.step, []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))

    def collect(phase: str, _: dict) -> None:
        if phase == "start" and not dropped:
            time.sleep(1)

    def endless(*_):
        gc.callbacks.append(collect)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(collect)
        time.sleep(60)

    monkeypatch.setattr(ray_engine.steps, "step", endless)
    told = ray_engine._run_step(item.fields, "make", str(runs), "", 0.5, None, None)
    (record,) = Store(runs).records()
    assert (record.status, record.reason) == ("timeout", "make: took longer than 0.5 s")
    assert dropped == [ray_engine.StepTimeout]
    monkeypatch.setattr(ray_engine.steps, "step", step)
    assert ray_engine._run_step(item.fields, "time", str(runs), "", None, told, None) is told  # the cell has ended
    assert ray_engine._run_step(item.fields, "make", str(runs), "", 600, None, None)["status"] == ""


def ended(begun: subprocess.Popen) -> None:
    """Whatever the test found."""
    if begun.poll() is None:
        begun.kill()
        begun.wait()


@pytest.mark.slow
def test_two_nodes_of_ray_give_the_same_and_time_one_at_a_time(tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the extra ray is not installed")
    path = tmp_path / "two.yaml"
    path.write_text(
        "about: both nodes\npruners: [magnitude, random, shortgpt]\nmodels: [tiny]\nbudgets: [0.2, 0.4]\n"
        "devices: ['null']\nworkloads: ['prefill:1x64']\nevaluators: [passages]\nlimit: 2\n"
        "include: [{pruners: [dense, magnitude], budgets: [0.2, 0.4], devices: [cpu]}]\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = subprocess.run(command(path, tmp_path), env={**env, "HARNESS_RUNS": str(tmp_path / "here")}, check=False)
    assert here.returncode in (0, 1)
    resources = {"device:cpu": 1, "device:null": 1}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": resources})
    second = cluster.add_node(num_cpus=1)
    there = {**env, "HARNESS_RUNS": str(tmp_path / "there"), "RAY_ADDRESS": cluster.address}
    begun = subprocess.Popen(command(path, tmp_path, "--engine", "ray"), env=there)
    try:
        deadline = time.monotonic() + 300
        while len(Store(tmp_path / "there").records()) < 2 and time.monotonic() < deadline:
            time.sleep(1)
        cluster.remove_node(second, allow_graceful=False)  # with whatever it was doing
        assert begun.wait(timeout=1800) in (0, 1)
    finally:
        ended(begun)
        cluster.shutdown()
    ours, theirs = ({r.id: r for r in Store(tmp_path / name).records()} for name in ("here", "there"))
    assert set(ours) == set(theirs)
    assert len(ours) == 9
    same(ours, theirs)
    for device in ("cpu", "null"):
        timed = [record for record in theirs.values() if record.spec.device == device]
        spans = sorted((t.began, t.ended) for record in timed for t in record.latency.values())
        assert len(spans) == len(timed)
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


@pytest.mark.slow
def test_a_sweep_whose_device_is_lost_ends_and_goes_on_with_another_node(tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the extra ray is not installed")
    path = tmp_path / "lost.yaml"
    path.write_text(
        "about: on the second node\npruners: [random]\nmodels: [tiny]\nbudgets: [0.1, 0.2, 0.3, 0.4, 0.5]\n"
        "devices: ['null']\nworkloads: ['prefill:1x64']\nevaluators: [passages]\nlimit: 2\n"
    )
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1, resources={"device:null": 1})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_RUNS": str(tmp_path), "RAY_ADDRESS": cluster.address}
    words = command(path, tmp_path, "--engine", "ray")
    begun = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("stages/measure/*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)  # one model is timed, the others are not
        said, _ = begun.communicate(timeout=900)
        assert begun.returncode == 1, said
        assert LOST in said
        done = [record.status for record in Store(tmp_path).records()]
        assert set(done) <= {"ok"}
        assert len(done) < 5
        manifest = json.loads(next(tmp_path.glob("sweeps/*.json")).read_text())
        assert {cell["status"] for cell in manifest["cells"]} <= {"ok", "waits"}
        cluster.add_node(num_cpus=1, resources={"device:null": 1})
        assert subprocess.run(words, env=env, timeout=900, check=False).returncode == 0
    finally:
        ended(begun)
        cluster.shutdown()
    assert [record.status for record in Store(tmp_path).records()] == ["ok"] * 5
