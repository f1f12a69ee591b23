"""The house: rooms stay small, imports point one way, nothing unpickles, the README does what it shows."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from .house import (
    MAY_NAME_DECODER_PARTS,
    ROOMS,
    ROOT,
    circle,
    core,
    file_imports,
    imports,
    naming_decoder_parts,
    room,
    room_imports,
)

UNCLEAR = {"found", "told", "made", "asked", "alike", "gone", "said", "heard", "lasting"}
CORE = list(core().values())
PLUGINS = [path for folder in ("plugins", "devices") for path in sorted((ROOT / folder).glob("*/harness_*"))]
PLUGINS = [file for path in PLUGINS for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    """The command line asks for cells, cells for devices and models, and so on: never the other way round."""
    assert not [name for name in imports(path) if name.startswith("harness_")], "the core imports a plug-in"
    if path.name == "__init__.py" and path.parent.name == "harness":
        return
    own = ROOMS.index(room(path))
    modules = core()
    for name in imports(path) & set(modules):
        other = room(modules[name])
        if other != "__init__":
            assert ROOMS.index(other) <= own, f"{name} stands above {room(path)}"


def test_imports_have_no_circles():
    assert circle(file_imports()) == []
    assert circle(room_imports(file_imports())) == []


def test_parts_of_decoders_are_named_where_decoders_are_described():
    assert set(naming_decoder_parts()) == MAY_NAME_DECODER_PARTS


def test_the_rooms_are_those_that_are_there():
    assert {room(path) for path in CORE} - {"__init__"} == set(ROOMS)


def test_plugins_never_import_each_other():
    assert len(PLUGINS) > 1
    for path in PLUGINS:
        own = next(part for part in path.parts[::-1] if part.startswith("harness_")).removesuffix(".py")
        assert not [n for n in imports(path) if n.startswith("harness_") and n.split(".")[0] != own], path


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_use_public_names_only(path):
    """Whatever they import of the core stands in the `__all__` of its module."""
    for module, name in used_names(ast.parse(path.read_text(encoding="utf-8"))):
        public = getattr(importlib.import_module(module), "__all__", ())
        assert name in public, f"{module}.{name} is not public"


def used_names(tree: ast.AST) -> set[tuple[str, str]]:
    """What a file uses of the core: imported names, and attributes of imported modules."""
    modules, used = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness":
            for alias in node.names:
                if f"{node.module}.{alias.name}" in core():
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    used.add((node.module, alias.name))
        elif isinstance(node, ast.Import):
            used |= {(alias.name, "") for alias in node.names if alias.name.startswith("harness.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add((modules[node.value.id], node.attr))
    return used


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (150 if path.name == "hookspecs.py" else 500)
    for unsafe in ("torch.load(", "shell=True", "yaml.load(", "os.system(", "pickle.load"):
        assert unsafe not in text
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & imports(path)


def names_given(tree: ast.AST) -> set[str]:
    """Names of functions, classes, parameters and variables; fields of stored records keep theirs."""
    fields = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            names.add(node.id)
    return {name.lstrip("_").lower() for name in names}


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_they_stand_for(path):
    assert not names_given(ast.parse(path.read_text(encoding="utf-8"))) & UNCLEAR


def test_every_hook_has_a_pasteable_example():
    tree = ast.parse((ROOT / "harness" / "hookspecs.py").read_text(encoding="utf-8"))
    hooks = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(hooks) == 9
    for hook in hooks:
        told = ast.get_docstring(hook) or ""
        example = told.partition("@hookimpl")[1] + told.partition("@hookimpl")[2]
        assert f"def {hook.name}(" in example, hook.name
        ast.parse(example)


def test_every_plugin_folder_is_one_distribution():
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for folder in [path.parent for kind in ("plugins", "devices") for path in (ROOT / kind).glob("*/pyproject.toml")]:
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
