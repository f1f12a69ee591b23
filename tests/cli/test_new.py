"""From nothing to a plug-in of one's own: made, installed, checked, run. Nothing in the folder is edited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from harness.leaderboard.readme import with_new_tables

from ..conftest import ROOT
from ..forks import command


def harness(*words, where, site=None):
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH", "")]))
    return command(*words, cwd=where, PYTHONPATH=path)


def installed(folder, site):
    """The package is really built, from its own pyproject.toml."""
    if (uv := shutil.which("uv")) is None:
        assert not os.environ.get("CI"), "CI without uv would prove nothing here"
        pytest.skip("uv is not on the path, and this environment has no pip")
    words = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(site)]
    subprocess.run([*words, str(folder)], check=True)


def run_of(kind, name):
    words = {"pruner": "random", "device": "null", "eval": "footprint"} | {kind.replace("evaluator", "eval"): name}
    return [word for key, value in words.items() for word in (f"--{key}", value)]


# two of the names are those of something that the module imports
@pytest.mark.parametrize(("kind", "name"), [("pruner", "foo"), ("device", "samples"), ("evaluator", "score")])
def test_a_new_plugin_works_at_once(tmp_path, runs, kind, name):
    made = harness("new", kind, name, where=tmp_path)
    assert made.returncode == 0, made.stderr
    files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in files) < 40
    site = tmp_path / "site"
    installed(tmp_path / name, site)
    checked = harness("check", name, "--json", where=tmp_path, site=site)
    report = json.loads(checked.stdout)[0]
    assert checked.returncode == 0, [result for result in report["results"] if result["outcome"] == "failed"]
    assert report["passed"] == report["of"] >= 9
    ran = harness("run", *run_of(kind, name), "--model", "tiny", "--limit", "2", "--json", where=tmp_path, site=site)
    record = json.loads(ran.stdout)
    assert record["status"] == "ok", record["reason"]
    if kind == "pruner":
        assert record["budget"]["achieved"] <= 0.8
    if kind == "evaluator":
        assert record["scores"][name]["n"] == 2


def test_its_own_test_runs_under_pytest(tmp_path, runs):
    harness("new", "evaluator", "foo", where=tmp_path)
    site = tmp_path / "site"
    installed(tmp_path / "foo", site)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "foo/tests"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["pruner", "Foo"], "is not a valid name"),
        (["pruner", "random"], "already"),
        (["pruner", "builtin"], "would be replaced"),
        (["evaluator", "magnitude"], "would be replaced"),
        (["pruner", "x" * 300], "is not a valid name"),
        (["planner", "foo"], "planner"),
        (["pruner", "foo", "--into", "/proc/nowhere"], "cannot write"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path, words, cause):
    done = harness("new", *words, where=tmp_path)
    assert done.returncode in (2, 3)
    assert cause in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "mine.txt").write_text("mine")
    done = harness("new", "pruner", "foo", where=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "foo").iterdir()] == ["mine.txt"]


def test_what_is_made_in_the_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert with_new_tables(text, ROOT) == text, "run: python -m harness.leaderboard.readme"
