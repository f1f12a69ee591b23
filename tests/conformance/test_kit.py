"""Everything in the tree passes the kit, and the kit catches what it is there to catch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
from harness import plugins
from harness.api import Cut, DeviceSpec, EvaluatorSpec, Param, PrunerSpec, Samples, Score
from harness.cell.lifecycle import Reporter
from harness.conformance import Conformance, kit
from harness.conformance.kit import bench_of, checks, run_check
from harness.conformance.report import KIT, Report, Result
from harness.devices.simulated import Null
from harness.errors import Unsupported, UsageError
from harness.pruning.allocate import uniform

from ..test_plugins import harness as command
from ..test_plugins import install

# --- the tree ---


class TestRandom(Conformance):
    name = "random"


class TestDense(Conformance):
    name = "dense"


class TestCpu(Conformance):
    name = "cpu"


class TestNull(Conformance):
    name = "null"


class TestStaircase(Conformance):
    name = "staircase"


class TestPassages(Conformance):
    name = "passages"


class TestFootprint(Conformance):
    name = "footprint"


# The class of passages or of hellaswag, on texts and rows that need not be here.
TWINS = ("wikitext2", "c4", "ptb", "arc_easy", "arc_challenge", "piqa", "openbookqa", "winogrande", "boolq")


def test_every_plugin_of_the_tree_is_checked():
    """Those above, and in each plug-in's own tests."""
    here = Path(__file__).read_text()
    for kind in kit.KINDS:
        for name, spec in plugins.registry().specs[kind].items():
            if kind == "evaluator" and name in TWINS:
                continue
            origin = plugins.registry().origins[kind, name]
            texts = [here] if origin.plugin == "builtin" else [p.read_text() for p in kit_tests(spec)]
            assert any(f'name = "{name}"' in text for text in texts), f"{kind} {name} is not checked"


def kit_tests(spec):
    root = Path(__file__).parent.parent.parent
    module = spec.target.partition(":")[0].partition(".")[0]
    return [p for p in root.glob("*/*/tests/*.py") if list(p.parent.parent.glob(f"{module}*"))]


# --- ten broken pruners ---


class Good:
    def shape(self, anatomy, ratio):
        return uniform(anatomy, ratio)

    def prune(self, model, budget, ctx, state):
        return Cut(keep={site: range(units) for site, units in self.shape(ctx.anatomy, budget.value).items()})


class Mutates(Good):
    def prune(self, model, budget, ctx, state):
        model.get_parameter("model.layers.0.mlp.down_proj.weight").data.mul_(2)
        return super().prune(model, budget, ctx, state)


class Miscounts(Good):
    """Promises one thing and leaves another."""

    def prune(self, model, budget, ctx, state):
        cut = super().prune(model, budget, ctx, state)
        if budget.value:
            cut.keep["layers.0.mlp"] = list(cut.keep["layers.0.mlp"])[:-1]
        return cut


class Ignores(Good):
    def prune(self, model, budget, ctx, state):
        return Cut(keep={"layers.0.mlp": range(39)})


class Chance:
    def prune(self, model, budget, ctx, state):
        shape = uniform(ctx.anatomy, budget.value)
        units = ctx.anatomy.sites
        return Cut(keep={s: np.random.choice(units[s].units, n, replace=False).tolist() for s, n in shape.items()})


class Masks:
    def prune(self, model, budget, ctx, state):
        import torch

        name = "model.layers.0.mlp.down_proj.weight"
        return Cut(masks={name: torch.zeros(ctx.anatomy.tensors[name], dtype=torch.bool)})


class Prints(Good):
    def prune(self, model, budget, ctx, state):
        print("pruning layer 0 ...")
        return super().prune(model, budget, ctx, state)


class WritesHome(Good):
    def prune(self, model, budget, ctx, state):
        (Path.home() / "importance.txt").write_text("0.5")
        return super().prune(model, budget, ctx, state)


class OutOfRange(Good):
    def prune(self, model, budget, ctx, state):
        cut = super().prune(model, budget, ctx, state)
        cut.keep["layers.0.mlp"] = [*range(5), 4096]
        return cut


class AnotherModel:
    def prune(self, model, budget, ctx, state):
        return Cut(keep={f"layers.{layer}.mlp": range(10) for layer in range(32)})


class Sneaky(Good):
    """Reads calibration text that its spec does not mention."""

    def prune(self, model, budget, ctx, state):
        ctx.calibration(2, 8)
        return super().prune(model, budget, ctx, state)


class Connects(Good):
    def prune(self, model, budget, ctx, state):
        import socket

        with socket.socket() as made:
            made.settimeout(0.05)
            made.connect_ex(("127.0.0.1", 9))
        return super().prune(model, budget, ctx, state)


class Shrinking(Good):
    """Takes less the more it is asked for."""

    def shape(self, anatomy, ratio):
        return uniform(anatomy, {0.0: 0.0, 0.1: 0.5, 0.25: 0.4, 0.5: 0.3}.get(ratio, ratio))


class OnSelf(Good):
    """Keeps on itself what belongs into the state."""

    def prepare(self, model, ctx):
        self.noted = 1
        return {"noted": 1}

    def prune(self, model, budget, ctx, state):
        assert self.noted
        return super().prune(model, budget, ctx, state)


class SavesByTorch(Good):
    def prune(self, model, budget, ctx, state):
        import torch
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2)}, "scores.safetensors")
        return super().prune(model, budget, ctx, state)


class WritesInShape(Good):
    def shape(self, anatomy, ratio):
        (Path.home() / "shapes.txt").write_text("x")
        return super().shape(anatomy, ratio)


class PrintsByNumber(Good):
    def __init__(self):
        os.write(1, b"hello\n")


class ChancyRewrites(Good):
    def prune(self, model, budget, ctx, state):
        import torch

        cut = super().prune(model, budget, ctx, state)
        name = "model.layers.0.mlp.down_proj.weight"
        if budget.value:
            cut.rewrites = {name: torch.randn(ctx.anatomy.tensors[name])}
        return cut


class MutatesAtHalf(Good):
    def prune(self, model, budget, ctx, state):
        if budget.value == 0.5:
            model.get_parameter("model.layers.0.mlp.down_proj.weight").data.mul_(2)
        return super().prune(model, budget, ctx, state)


class OnlyLlama(Good):
    def prune(self, model, budget, ctx, state):
        if ctx.anatomy.family != "llama":
            return Cut(keep={"layers.0.mlp": range(39)})
        return super().prune(model, budget, ctx, state)


class ScalesAtZero(Good):
    def prune(self, model, budget, ctx, state):
        name = "model.layers.0.mlp.down_proj.weight"
        cut = super().prune(model, budget, ctx, state)
        cut.rewrites = {name: model.get_parameter(name).detach() * 3}
        return cut


class LeavesThreads(Good):
    def prune(self, model, budget, ctx, state):
        import torch

        torch.set_default_dtype(torch.float64)
        return super().prune(model, budget, ctx, state)


def register(monkeypatch, kind, spec, target):
    known = plugins.registry()
    monkeypatch.setitem(known.specs[kind], spec.name, spec)
    monkeypatch.setitem(known.origins, (kind, spec.name), plugins.Origin("builtin", "tests", "0"))
    inner = plugins.import_target
    monkeypatch.setattr(plugins, "import_target", lambda name: target if name == spec.target else inner(name))


def faults(monkeypatch, tmp_path, kind, spec, target):
    """What the kit says: everything but the two checks that need a process of their own."""
    register(monkeypatch, kind, spec, target)
    bench = bench_of(kind, spec.name, {}, tmp_path)
    try:
        found = [run_check(bench, title, run) for title, run, _ in checks(bench) if title not in ("light", "reload")]
    finally:
        bench.close()
    return {result.check: result.detail for result in found if result.outcome == "failed"}


BROKEN = [
    (Mutates, "weights", "such a change is lost"),
    (OnSelf, "cut", "AttributeError: 'OnSelf' object has no attribute 'noted' (test_kit.py:"),
    (SavesByTorch, "tidy", "it wrote to ./scores.safetensors"),
    (WritesInShape, "tidy", "it wrote to ~/shapes.txt"),
    (PrintsByNumber, "quiet", "it printed to stdout: 'hello'"),
    (MutatesAtHalf, "weights", "(llama, grouped, 0.5)"),
    (OnlyLlama, "families", "mistral: asked to remove 0.25"),
    (LeavesThreads, "tidy", "it left torch's default dtype changed"),
    (Miscounts, "promise", "shape() promises"),
    (Ignores, "budget", "asked to remove 0.1"),
    (Chance, "deterministic", "two runs with one seed kept different units"),
    (Masks, "kind", "its kinds promise smaller shapes"),
    (Prints, "quiet", "it printed to stdout: 'pruning layer 0 ...'"),
    (WritesHome, "tidy", "it wrote to ~/importance.txt"),
    (OutOfRange, "cut", "unit 4096 of layers.0.mlp"),
    (AnotherModel, "cut", "which this model does not have"),
    (Sneaky, "cut", "asks for calibration text"),
    (Connects, "offline", "it connected to"),
    (Shrinking, "monotone", "it removed"),
]


@pytest.mark.parametrize(("broken", "check", "message"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_pruners_are_caught_by_name(monkeypatch, tmp_path, broken, check, message):
    spec = PrunerSpec(name="broken", target="t:Broken", summary="broken on purpose")
    found = faults(monkeypatch, tmp_path, "pruner", spec, broken)
    assert message in found.get(check, ""), found


def test_updates_of_weights_are_watched_too(monkeypatch, tmp_path):
    declared = {"name": "broken", "target": "t:Broken", "summary": "broken on purpose", "updates_weights": True}
    found = faults(monkeypatch, tmp_path, "pruner", PrunerSpec(**declared), ChancyRewrites)
    assert "rewrote model.layers.0.mlp.down_proj.weight differently" in found["deterministic"]
    (tmp_path / "other").mkdir()
    found = faults(monkeypatch, tmp_path / "other", "pruner", PrunerSpec(**declared), ScalesAtZero)
    assert "asked to remove nothing, it cut or changed" in found["identity"]


def test_one_for_another_family_alone_is_sound(monkeypatch, tmp_path):
    class GemmaOnly(Good):
        def prune(self, model, budget, ctx, state):
            if ctx.anatomy.family != "gemma":
                raise Unsupported("gemma only")
            return super().prune(model, budget, ctx, state)

    spec = PrunerSpec(name="broken", target="t:Broken", summary="sound", architectures=("gemma",))
    assert faults(monkeypatch, tmp_path, "pruner", spec, GemmaOnly) == {}


def test_a_fault_that_repeats_is_told_once(monkeypatch, capsys):
    class Crashes(Good):
        def prune(self, model, budget, ctx, state):
            raise ValueError("first line\nsecond line")

    register(monkeypatch, "pruner", PrunerSpec(name="broken", target="t:B", summary="s"), Crashes)
    [report] = kit.check("broken", "pruner")
    told = {result.check: result.detail for result in report.results if result.outcome == "failed"}
    assert told["cut"].startswith("ValueError: first line (test_kit.py:")
    assert told["quiet"] == told["budget"] == "see cut"


def test_a_method_that_sees_another_order_of_sets_is_caught(site):
    body = (
        "from harness import Cut, PrunerSpec, hookimpl, uniform\n"
        "class X:\n"
        "    def prune(self, model, budget, ctx, state):\n"
        "        keep = {}\n"
        "        for site, units in uniform(ctx.anatomy, budget.value).items():\n"
        "            order = sorted(range(ctx.anatomy.sites[site].units), key=lambda u: hash(f'{site}{u}'))\n"
        "            keep[site] = order[:units]\n"
        "        return Cut(keep=keep)\n"
        "@hookimpl\ndef harness_register_pruners():\n"
        "    return [PrunerSpec(name='hashes', target='harness_hashes:X', summary='s')]"
    )
    install(site, "hashes", body)
    done = command("check", "hashes", "--json", site=site)
    failed = {r["check"]: r["detail"] for r in json.loads(done.stdout)[0]["results"] if r["outcome"] == "failed"}
    assert list(failed) == ["repeatable"]
    assert "another process with the same seed kept different units" in failed["repeatable"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("name=None, target='a:B', summary='s'", "not a line of text"),
        ("name='x', target='nowhere', summary='s'", "not of the form"),
        ("name='x', target='a:B', summary='s', parameters={'a': 3}", "'a' is not a Param"),
        ("name='x', target='a:B', summary='s', needs='calibration'", "not a tuple of strings"),
        ("name='x', target='a:B', summary='a\\x1b[31m'", "not a line of text"),
    ],
)
def test_a_spec_of_wrong_types_is_a_line_with_its_reason(site, spec, reason):
    body = "from harness import PrunerSpec, hookimpl\n@hookimpl\ndef harness_register_pruners():\n"
    install(site, "odd", f"{body}    return [PrunerSpec({spec})]")
    done = command("list", "--json", site=site)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert reason in rows["odd"]["reason"]


def test_a_sound_pruner_has_no_faults(monkeypatch, tmp_path):
    spec = PrunerSpec(name="broken", target="t:Broken", summary="sound")
    assert faults(monkeypatch, tmp_path, "pruner", spec, Good) == {}


def test_one_that_crashes_at_import_is_named(site):
    install(site, "crash", "1 / 0")
    done = command("check", "crash", site=site)
    assert done.returncode == 2
    assert "installed but broken: ZeroDivisionError" in done.stderr


def test_one_for_another_api_is_a_line_with_its_reason(site):
    install(site, "future", "HARNESS_API = 99")
    rows = {row["name"]: row for row in json.loads(command("list", "--json", site=site).stdout)}
    assert not rows["future"]["ok"]
    assert "written for plug-in API 99" in rows["future"]["reason"]


def test_heavy_imports_are_named(site):
    install(
        site,
        "heavy",
        (
            "import numpy\nfrom harness import PrunerSpec, hookimpl\n@hookimpl\ndef harness_register_pruners():\n"
            "    return [PrunerSpec(name='heavy', target='harness_heavy:X', summary='s')]"
        ),
    )
    script = "from harness.conformance.spec_checks import check_light_import; check_light_import('pruner', 'heavy')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert "imports numpy" in done.stderr


# --- specs, exceptions, scores ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"summary": ""}, "summary"),
        ({"kinds": ("thin",)}, "kinds names 'thin'"),
        ({"architectures": ("llama", "bert")}, "architectures names 'bert'"),
        ({"budgets": ("size",)}, "budgets names 'size'"),
        ({"needs": ("GPU",)}, "needs names 'GPU'"),
        ({"parameters": {"a": Param(1, "")}}, "parameter a has no help"),
        ({"parameters": {"a": Param("x", "h", choices=("y",))}}, "not among its choices"),
        ({"parameters": {"a": Param(1, "help")}}, "does not take the parameters"),
    ],
)
def test_incomplete_specs_are_told_what_is_missing(monkeypatch, tmp_path, spec, message):
    made = PrunerSpec(**{"name": "broken", "target": "t:Broken", "summary": "one line", **spec})
    register(monkeypatch, "pruner", made, Good)
    bench = bench_of("pruner", "broken", {}, tmp_path)
    assert message in run_check(bench, "spec", bench.check_spec).detail


def test_expected_failures_need_a_reason_and_are_strict(monkeypatch, tmp_path):
    excused = PrunerSpec(name="broken", target="t:B", summary="s", exceptions={"quiet": "its library prints"})
    register(monkeypatch, "pruner", excused, Prints)
    bench = bench_of("pruner", "broken", {}, tmp_path)
    bench.trial(0.25)
    result = run_check(bench, "quiet", bench.check_quiet)
    assert (result.outcome, result.detail.partition(" [")[0]) == ("expected", "its library prints")
    register(monkeypatch, "pruner", excused, Good)
    bench = bench_of("pruner", "broken", {}, tmp_path)
    bench.trial(0.25)
    result = run_check(bench, "quiet", bench.check_quiet)
    assert result.outcome == "failed"
    assert "declared to fail" in result.detail


def test_an_excuse_gives_a_reason(monkeypatch, tmp_path):
    register(
        monkeypatch, "pruner", PrunerSpec(name="broken", target="t:B", summary="s", exceptions={"quiet": ""}), Prints
    )
    bench = bench_of("pruner", "broken", {}, tmp_path)
    assert "excused without a reason" in run_check(bench, "quiet", bench.check_quiet).detail


def test_an_exception_for_no_check_is_refused(monkeypatch):
    spec = PrunerSpec(name="broken", target="t:B", summary="s", exceptions={"beauty": "none"})
    register(monkeypatch, "pruner", spec, Good)
    with pytest.raises(UsageError, match="beauty"):
        kit.check("broken", "pruner")


def test_the_score_goes_into_records_once_checked(runs, one_process, monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_CHECK")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))  # the score is made up: no other test may find it
    asked = []
    real = kit.check

    def check(name, kind="", **more):
        asked.append(name)
        report = Report(kind, name, results=[Result("a", "passed"), Result("b", "failed")])
        kit.store_score(report)
        return [report]

    monkeypatch.setattr(kit, "check", check)
    words = {"model": "tiny", "device": "null", "evaluators": "footprint", "ratio": 0.3}
    record = harness.run("random", **words)
    assert (record.conformance.kit, record.conformance.passed, record.conformance.of) == (KIT, 1, 2)
    notices = Notices()
    harness.run("random", seed=1, reporter=notices, **words)
    assert notices.told == ["random: 1 of 2 checks hold; harness check random tells which do not"]
    assert asked == ["random"]
    assert real is not check


class Notices(Reporter):
    def __init__(self):
        self.told = []

    def notice(self, text):
        self.told.append(text)


# --- broken devices and evaluators ---


class Raises(Null):
    def probe(self):
        raise OSError("no such bus")


class Short(Null):
    def measure(self, handle, plan):
        return Samples(wall_ns=[handle])


class Constant(Null):
    def measure(self, handle, plan):
        return Samples(wall_ns=[1000] * plan.iterations)


class Fickle(Null):
    def probe(self):
        import time

        info = super().probe()
        info.fingerprint = {"now": time.monotonic_ns()}
        return info


class ClosesOnce(Null):
    def prepare(self, model, workload):
        return [super().prepare(model, workload)]

    def measure(self, handle, plan):
        return super().measure(handle[0], plan)

    def close(self, handle):
        handle.pop()


class Meddles(Null):
    def prepare(self, model, workload):
        model.get_parameter("model.norm.weight").data.zero_()
        return super().prepare(model, workload)


class LeavesHooks(Null):
    def prepare(self, model, workload):
        model.register_forward_hook(lambda *_: None)
        return super().prepare(model, workload)


class Millis(Null):
    def measure(self, handle, plan):
        return Samples(wall_ns=[10**12] * plan.iterations)


class LastHandle(Null):
    """Measures whatever it prepared last."""

    def prepare(self, model, workload):
        self.last = super().prepare(model, workload)
        return self.last

    def measure(self, handle, plan):
        return super().measure(self.last, plan)


class NoDecode(Null):
    def prepare(self, model, workload):
        assert workload.kind == "prefill"
        return super().prepare(model, workload)


class NoFingerprint(Null):
    fingerprint = {}  # noqa: RUF012


class OddExtras(Null):
    def measure(self, handle, plan):
        return Samples(wall_ns=[handle] * plan.iterations, energy_j=float("nan"))


class PrintsOnTheWay(Null):
    def measure(self, handle, plan):
        print("measuring ...")
        return super().measure(handle, plan)


@pytest.mark.parametrize(
    ("device", "check", "message"),
    [
        (LeavesHooks, "model-stays", "it left hooks of the model changed"),
        (Millis, "units", "add up to"),
        (LastHandle, "growth", "a large model took"),
        (NoDecode, "decode", "decode: AssertionError"),
        (NoFingerprint, "probe", "its fingerprint is empty"),
        (OddExtras, "samples", "energy_j is nan"),
        (PrintsOnTheWay, "quiet", "it printed to stdout"),
        (Raises, "probe", "probe raised OSError: no such bus"),
        (Short, "samples", "3 passes were asked for, 1 were timed"),
        (Constant, "growth", "a large model took"),
        (Fickle, "probe", "different fingerprints"),
        (ClosesOnce, "close", "closing a second time raised IndexError"),
        (Meddles, "model-stays", "it changed model.norm.weight"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_broken_devices_are_caught_by_name(monkeypatch, tmp_path, device, check, message):
    provenance = "device" if device is Millis else "simulated"
    spec = DeviceSpec(name="broken", target="t:B", summary="broken on purpose", provenance=provenance)
    found = faults(monkeypatch, tmp_path, "device", spec, device)
    assert message in found.get(check, ""), found


class Empty:
    def evaluate(self, model, ctx):
        return {"": Score({}, higher_is_better=True)}


class Restless:
    """Asks every model something else."""

    asked = 0

    def evaluate(self, model, ctx):
        Restless.asked += 1
        return {"": Score({f"{Restless.asked}-{i}": 1.0 for i in range(ctx.limit)}, higher_is_better=True)}


class NotFinite:
    def evaluate(self, model, ctx):
        return {"": Score({"a": float("nan")}, higher_is_better=True)}


class Greedy:
    def evaluate(self, model, ctx):
        return {"": Score({str(i): 1.0 for i in range(9)}, higher_is_better=True)}


class TensorDetails:
    def evaluate(self, model, ctx):
        import torch

        documents = {str(i): 1.0 for i in range(ctx.limit or 9)}
        return {"": Score(documents, higher_is_better=True, details={"a": torch.ones(1)})}


class NeedsALimit:
    def evaluate(self, model, ctx):
        return {"": Score({str(i): 1.0 for i in range(ctx.limit)}, higher_is_better=True)}


class Trains(Empty):
    def evaluate(self, model, ctx):
        model.train()
        return super().evaluate(model, ctx)


@pytest.mark.parametrize(
    ("evaluator", "check", "message"),
    [
        (TensorDetails, "words", "are not JSON"),
        (NeedsALimit, "unlimited", "TypeError"),
        (Trains, "documents", "it left the model's mode (train or eval) changed"),
        (Empty, "documents", "has no documents"),
        (Restless, "same-documents", "another model gets other documents"),
        (NotFinite, "documents", "give a finite number"),
        (Greedy, "limit", "3 documents were asked for"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_broken_evaluators_are_caught_by_name(monkeypatch, tmp_path, evaluator, check, message):
    spec = EvaluatorSpec(name="broken", target="t:B", summary="broken on purpose")
    found = faults(monkeypatch, tmp_path, "evaluator", spec, evaluator)
    assert message in found.get(check, ""), found
