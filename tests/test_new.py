"""From nothing to a plug-in of one's own: made, installed, checked, run. Nothing in the folder is edited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from harness.leaderboard.readme import filled

from .conftest import ROOT


def harness(*words, where, site=None):
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", "from harness.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=where, env={**os.environ, "PYTHONPATH": path})


def installed(folder, site):
    """The package is really built, from its own pyproject.toml."""
    if (uv := shutil.which("uv")) is None:
        pytest.skip("uv is not on the path, and this environment has no pip")
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(site)]
    subprocess.run([*command, str(folder)], check=True)


RUN = {
    "pruner": ["--pruner", "foo", "--device", "null", "--eval", "footprint"],
    "device": ["--pruner", "random", "--device", "foo", "--eval", "footprint"],
    "evaluator": ["--pruner", "random", "--device", "null", "--eval", "foo"],
}


@pytest.mark.parametrize("kind", list(RUN))
def test_a_new_plugin_works_at_once(tmp_path, runs, kind):
    made = harness("new", kind, "foo", where=tmp_path)
    assert made.returncode == 0, made.stderr
    files = [path for path in (tmp_path / "foo").rglob("*") if path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in files) < 40
    site = tmp_path / "site"
    installed(tmp_path / "foo", site)
    checked = harness("check", "foo", "--json", where=tmp_path, site=site)
    report = json.loads(checked.stdout)[0]
    assert checked.returncode == 0, [result for result in report["results"] if result["outcome"] == "failed"]
    assert report["passed"] == report["of"] >= 9
    ran = harness("run", *RUN[kind], "--model", "tiny", "--limit", "2", "--json", where=tmp_path, site=site)
    record = json.loads(ran.stdout)
    assert record["status"] == "ok", record["reason"]
    if kind == "pruner":
        assert record["budget"]["achieved"] <= 0.8
    if kind == "evaluator":
        assert record["scores"]["foo"]["n"] == 2


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
    assert "10 passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["pruner", "Foo"], "is not a name"),
        (["pruner", "random"], "already"),
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


def test_the_list_in_the_readme_is_made():
    text = (ROOT / "README.md").read_text()
    assert filled(text) == text, "run: python -m harness.leaderboard.readme"
