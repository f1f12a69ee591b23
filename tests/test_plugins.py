"""Discovery: broken plug-ins are lines, names are guarded, describing costs nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness import plugins
from harness.api import PrunerSpec
from harness.cli import COMMANDS
from harness.errors import UsageError

from .forks import command

HEAVY = ("torch", "pydantic", "rich", "numpy", "transformers", "datasets")
GOOD = """
from harness import Cut, PrunerSpec, hookimpl, uniform
class First:
    def prune(self, model, budget, ctx, state):
        return Cut(keep={site: range(n) for site, n in uniform(ctx.anatomy, budget.value).items()})
@hookimpl
def harness_register_pruners():
    return [PrunerSpec(name="first", target="harness_first:First", summary="keeps the first units of every site")]
"""
BROKEN = {
    "raises": "raise RuntimeError('no such driver')",
    "exits": "import sys; sys.exit(4)",
    "imports": "import a_module_that_is_not_there",
    "mistyped": "from harness import hookimpl\n@hookimpl\ndef harness_register_pruner():\n    return []",
    "arguments": "from harness import hookimpl\n@hookimpl\ndef harness_register_pruners(wrong):\n    return []",
    "wrongtype": "from harness import hookimpl\n@hookimpl\ndef harness_register_pruners():\n    return ['x']",
    "taken": GOOD.replace('name="first"', 'name="random"'),
    "late": "from harness import hookimpl\n@hookimpl\ndef harness_register_pruners():\n    raise OSError('gone')",
}


def install(site, name: str, source: str):
    """A distribution as pip would leave it: a module and its metadata."""
    (site / f"harness_{name}.py").write_text(source)
    info = site / f"prune_harness_{name}-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prune-harness-{name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[harness]\n{name} = harness_{name}\n")


def harness(*words, site=None, **env):
    path = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))
    return command(*words, PYTHONPATH=path, **env)


@pytest.mark.parametrize(
    "words",
    [["list"], ["--help"], ["list", "pruners"], ["info", "magnitude"], ["list", "--json"]]
    + [[name, "--help"] for name in COMMANDS],
)
def test_describing_imports_nothing_heavy(words):
    code = (
        "import sys; from harness.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: code = done.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "[] 0"


def test_broken_plugins_are_lines_and_the_others_work(site):
    install(site, "first", GOOD)
    for name, source in BROKEN.items():
        install(site, name, source)
    done = harness("list", "--json", site=site)
    assert done.returncode == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["first"] == {
        "name": "first",
        "kind": "pruner",
        "ok": True,
        "version": "0.3",
        "origin": "prune-harness-first",
        "summary": "keeps the first units of every site",
        "reason": "",
    }
    assert {name: rows[name]["ok"] for name in BROKEN} == dict.fromkeys(BROKEN, False)
    assert "no such driver" in rows["raises"]["reason"]
    assert "a_module_that_is_not_there" in rows["imports"]["reason"]
    assert "harness_register_pruner" in rows["mistyped"]["reason"]
    assert "wrong" in rows["arguments"]["reason"]
    assert "already registered by prune-harness" in rows["taken"]["reason"]
    assert rows["random"]["ok"]
    assert rows["magnitude"]["ok"]
    assert all("\n" not in row["reason"] for row in rows.values())


def test_a_class_that_cannot_be_imported_names_its_distribution(site):
    install(site, "first", GOOD.replace("harness_first:First", "harness_first:Second"))
    done = harness("run", "--pruner", "first", "--model", "tiny", "--dry-run", site=site)
    assert done.returncode == 1
    assert "pruner 'first' cannot be imported" in done.stderr
    assert "prune-harness-first 0.3" in done.stderr


def test_a_broken_plugin_asked_for_says_so(site):
    install(site, "raises", BROKEN["raises"])
    done = harness("run", "--pruner", "raises", site=site)
    assert done.returncode == 2
    assert "installed but broken: RuntimeError: no such driver" in done.stderr


def test_only_the_named_plugins_load(site):
    install(site, "first", GOOD)
    names = [row["name"] for row in json.loads(harness("list", "--json", site=site, HARNESS_PLUGINS="first").stdout)]
    assert "first" in names
    assert "dense" in names
    assert "magnitude" not in names


def test_a_plugin_may_add_a_command(site):
    install(
        site,
        "more",
        "import click\nfrom harness import hookimpl\n@hookimpl\ndef harness_register_commands(cli):\n"
        "    @cli.command('greet')\n    def greet():\n        'says hello'\n        click.echo('hello')\n",
    )
    assert harness("greet", site=site).stdout == "hello\n"
    assert "says hello" in harness("--help", site=site).stdout


def test_a_listener_hears_a_run_and_may_fail(site, runs):
    install(
        site,
        "ear",
        "import sys\nfrom harness import hookimpl\n@hookimpl\ndef harness_event(event):\n"
        "    print('heard', event.name, event.stage, file=sys.stderr)\n    raise ValueError('deaf')\n",
    )
    done = harness(
        "run", "--pruner", "dense", "--model", "tiny", "--device", "null", "--limit", "1", "--json", site=site
    )
    assert done.returncode == 0, done.stderr
    assert "heard cell-started" in done.stderr
    assert "heard stage-finished prune" in done.stderr
    assert json.loads(done.stdout)["status"] == "ok"


def test_unknown_names_suggest(monkeypatch):
    known = plugins.registry()
    with pytest.raises(UsageError, match="no pruner 'magnitud'") as caught:
        known.get("pruner", "magnitud")
    assert caught.value.remedy == "did you mean 'magnitude'?"
    with pytest.raises(UsageError) as caught:
        known.get("device", "toaster")
    assert "known: cpu" in caught.value.remedy


def test_in_the_checkout_but_not_installed(monkeypatch):
    known = plugins.registry()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert (
        known.why_missing("magnitude") == "it is in this checkout but not installed: pip install -e plugins/magnitude"
    )


def test_what_a_restriction_hides_is_said():
    done = harness("run", "--pruner", "magnitude", HARNESS_PLUGINS="builtin")
    assert done.returncode == 2
    assert "HARNESS_PLUGINS hides all plug-ins except builtin" in done.stderr
    rows = {row["name"]: row for row in json.loads(harness("list", "--json", HARNESS_PLUGINS="nowhere").stdout)}
    assert "not installed" in rows["nowhere"]["reason"]


def test_an_edited_plugin_is_another_version(site):
    install(site, "first", GOOD)
    code = "from harness.plugins import code_version; print(code_version('pruner', 'first'))"

    def version() -> str:
        env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout.strip()

    before = version()
    (site / "harness_first.py").write_text(GOOD + "# changed\n")
    assert before.startswith("0.3/1+")
    assert version() != before
    assert plugins.source_hash("click") == ""  # installed from a wheel: its version names it


def test_a_file_beside_the_target_is_part_of_the_version(site, monkeypatch):
    folder = site / "harness_wide"
    folder.mkdir()
    for name, text in {"__init__": "", "method": "from harness_wide.other import X", "other": "X = 1"}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(site))
    origin = plugins.Origin("wide", "prune-harness-wide", "0.1")
    made = plugins.Registry(plugins.registry().manager)
    made.specs["pruner"]["wide"] = PrunerSpec(name="wide", target="harness_wide.method:X", summary="")
    made.origins["pruner", "wide"] = origin
    monkeypatch.setattr(plugins, "registry", lambda: made)
    before = plugins.code_version("pruner", "wide")
    (folder / "other.py").write_text("X = 2")
    assert plugins.code_version("pruner", "wide") != before
