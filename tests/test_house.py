"""The house: rooms stay small, imports point one way, nothing unpickles, the README does what it shows."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT

CORE = sorted((ROOT / "harness").rglob("*.py"))
PLUGINS = [path for room in ("plugins", "devices") for path in sorted((ROOT / room).glob("*/harness_*"))]
PLUGINS = [file for path in PLUGINS for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]

# Who may import whom: a module imports its own rank or below. Ranks read from the bottom of the design's arrow.
RANKS = [
    ("errors", "quantities", "api", "hookspecs", "events", "stats", "markup", "plugins", "system", "records"),
    ("resolve", "models", "evaluation", "pruning"),
    ("latency", "devices"),
    ("builtin", "conformance", "cell"),
    ("functions", "sweep", "leaderboard"),
    ("cli", "__main__"),
]
# A folder's modelling classes and its cut are written by the same room that surgery builds models with.
KNOWN = {("checkpoints", "surgery"), ("checkpoints", "latency")}


def rank(room: str) -> int:
    return next(i for i, rooms in enumerate(RANKS) if room in rooms)


def imports(path: Path) -> set[str]:
    """What a file imports anywhere in it, leaving out what only a type checker reads."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "harness":
                found |= {f"harness.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    parts = path.relative_to(ROOT / "harness").with_suffix("").parts
    if parts[0] == "__init__":
        return
    for name in imports(path):
        words = name.split(".")
        assert not (words[0].startswith("harness_")), f"the core imports the plug-in {name}"
        if words[0] == "harness" and len(words) > 1 and words[1] != parts[0]:
            allowed = rank(words[1]) <= rank(parts[0]) or (parts[0], words[1]) in KNOWN
            assert allowed, f"{'.'.join(parts)} imports {name}, which stands above it"


def test_plugins_import_public_names_and_never_each_other():
    assert len(PLUGINS) > 1
    for path in PLUGINS:
        own = next(part for part in path.parts[::-1] if part.startswith("harness_")).removesuffix(".py")
        assert not [n for n in imports(path) if n.startswith("harness_") and n.split(".")[0] != own], path


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (150 if path.name == "hookspecs.py" else 500)
    for unsafe in ("torch.load(", "shell=True", "yaml.load(", "os.system(", "pickle.load"):
        assert unsafe not in text
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & imports(path)


def test_every_hook_has_a_pasteable_example():
    tree = ast.parse((ROOT / "harness" / "hookspecs.py").read_text(encoding="utf-8"))
    hooks = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(hooks) == 8
    for hook in hooks:
        told = ast.get_docstring(hook) or ""
        example = told.partition("@hookimpl")[1] + told.partition("@hookimpl")[2]
        assert f"def {hook.name}(" in example, hook.name
        ast.parse(example)


def test_every_plugin_folder_is_one_distribution():
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for folder in [path.parent for room in ("plugins", "devices") for path in (ROOT / room).glob("*/pyproject.toml")]:
        words = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        name = "prune-harness-" + folder.name.replace("_", "-")
        assert words["project"]["name"] == name
        assert list(words["project"]["entry-points"]["harness"].values()) == [f"harness_{folder.name}"]
        assert name in root["dependency-groups"]["plugins"]
        assert root["tool"]["uv"]["sources"][name] == {"workspace": True}
        assert (folder / "README.md").exists()
        assert (folder / "tests").is_dir()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_plugin_is_short_and_runs(tmp_path, runs):
    """The seven lines and the nine, built and installed for real, run by the command."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path, and this environment has no pip")
    python = next(block for block in blocks("python") if "harness_register_pruners" in block)
    toml = next(block for block in blocks("toml") if "entry-points" in block)
    assert len([line for line in python.splitlines() if line.strip()]) <= 7
    assert len([line for line in toml.splitlines() if line.strip()]) <= 9
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "harness_first.py").write_text(python)
    (folder / "pyproject.toml").write_text(toml)
    site = tmp_path / "site"
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(site)]
    subprocess.run([*command, str(folder)], check=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    words = ["run", "--pruner", "first", "--model", "tiny", "--ratio", "0.3", "--device", "null", "--limit", "1"]
    done = subprocess.run(
        [sys.executable, "-c", "from harness.cli import main; main()", *words, "--json"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "ok"
    assert record["budget"]["achieved"] >= 0.3


def test_the_readme_commands_exist():
    from harness.cli import COMMANDS

    shown = re.findall(r"^(?:uv run )?harness (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert "run" in shown
    assert set(shown) <= set(COMMANDS)
