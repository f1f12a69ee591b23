"""The documentation does what it shows: every block runs, every link leads somewhere, every hook is explained.

A block may carry a mark on the line above it: `<!-- slow: why -->` runs with `-m slow`, `<!-- not run: why -->` never.
A plain block below Python is what that Python prints.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import harness
from harness import hookspecs, plugins

from .conftest import ROOT
from .forks import command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
RUNS = ("python", "sh", "toml", "json", "yaml")
MARK = re.compile(r"<!-- (slow|not run): ?(.*?) ?-->")
NEVER = re.compile(r"GPU|download|install|clone|machines|checkout")  # what a test cannot do
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "harness_spec")}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    mark: str = ""
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    found, lines, at = [], TEXTS[page].splitlines(), 0
    while at < len(lines):
        if lines[at].startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            mark = MARK.fullmatch(lines[at - 1]) if at else None
            text = "\n".join(lines[at + 1 : end])
            found.append(Block(lines[at][3:].strip(), text, at + 1, *(mark.groups() if mark else ())))
            at = end
        at += 1
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Desk:
    """One page's blocks run here in order, in one folder and one namespace."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder, self.site = page, folder, folder / "site"
        self.names: dict[str, object] = {"__name__": "page"}
        self.printed = ""
        self.site.mkdir()
        self.path = [str(self.site)]
        sys.path.insert(0, str(self.site))

    def close(self) -> None:
        sys.path[:] = [entry for entry in sys.path if entry not in self.path]
        self.forget()

    def forget(self) -> None:
        """What was imported from this desk, and what is known to be installed."""
        for name in [n for n, m in sys.modules.items() if (getattr(m, "__file__", "") or "").startswith(self.path[0])]:
            del sys.modules[name]
        importlib.invalidate_caches()
        plugins.registry.cache_clear()

    def run(self, block: Block) -> None:
        try:
            getattr(self, block.language or "plain")(block)
        except Exception as error:
            error.add_note(f"{name_of(self.page)}, block at line {block.line}")
            raise

    def python(self, block: Block) -> None:
        """A block that registers something becomes a module that is installed, and is imported like one."""
        module = re.search(r'target="(harness_\w+):', block.text) if "@hookimpl" in block.text else None
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if module:
                (self.site / f"{module[1]}.py").write_text(block.text + "\n")
                self.installed(module[1].removeprefix("harness_"))
                self.names |= {k: v for k, v in vars(importlib.import_module(module[1])).items() if k[:2] != "__"}
            else:
                exec(compile("\n" * block.line + block.text, str(self.page), "exec"), self.names)
        self.printed = out.getvalue()

    def plain(self, block: Block) -> None:
        if self.printed:
            assert self.printed.strip() == block.text.strip()
        self.printed = ""

    def toml(self, block: Block) -> None:
        tomllib.loads(block.text)

    def yaml(self, block: Block) -> None:
        """The file of a device."""
        from harness.devices.remote.device_file import Target

        Target.model_validate(yaml.safe_load(block.text))

    def json(self, block: Block) -> None:
        json.loads(block.text)

    def sh(self, block: Block) -> None:
        self.printed = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[:3] == ["pip", "install", "-e"]:
                self.install(self.folder / words[3])
                words = words[5:]  # behind the &&
            assert "&&" not in words, f"one command a line: {line}"
            if words:
                assert words[0] == "harness", f"the test runs `harness` and `pip install -e FOLDER` only: {line}"
                self.harness(*words[1:])

    def harness(self, *words: str) -> None:
        """One command. What was too noisy to rank is measured again, as a reader would."""
        if "./my-model" in words and not (self.folder / "my-model").exists():
            self.make_model()
        for tries in (1, 2, 3):
            done = command(*words, PYTHONPATH=os.pathsep.join([*self.path, os.environ.get("PYTHONPATH", "")]))
            if not (done.returncode == 1 and re.search(r"^unstable", done.stdout, re.MULTILINE) and tries < 3):
                break
        assert done.returncode == 0, f"harness {shlex.join(words)}: {done.stdout}\n{done.stderr}"

    def make_model(self) -> None:
        """A folder with a model, as a reader may have one."""
        from harness.models.loading.cards import card
        from harness.models.loading.weights import locate

        shutil.copytree(locate(card("tiny"))[0], self.folder / "my-model")

    # --- installed as pip would leave it ---

    def install(self, folder: Path) -> None:
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        self.path.append(str(folder))
        sys.path.insert(0, str(folder))
        for name, module in project["project"]["entry-points"]["harness"].items():
            assert (folder / f"{module}.py").exists()
            self.installed(name, project["project"]["name"])

    def installed(self, name: str, distribution: str = "") -> None:
        distribution = distribution or f"prune-harness-{name.replace('_', '-')}"
        info = self.site / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[harness]\n{name} = harness_{name}\n")
        self.forget()


@pytest.fixture
def desk(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HARNESS_CHECK", "0")
    monkeypatch.chdir(tmp_path)
    made = Desk(request.param, tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(made.site), os.environ.get("PYTHONPATH", "")]))
    yield made
    made.close()


def with_blocks(*marks: str) -> list[Path]:
    return [page for page in PAGES if any(b.language in RUNS and b.mark in marks for b in blocks(page))]


@pytest.mark.parametrize("desk", with_blocks(""), ids=name_of, indirect=True)
def test_the_page_runs(desk, one_process):
    for block in blocks(desk.page):
        if block.mark == "":
            desk.run(block)
        else:
            desk.printed = ""


@pytest.mark.slow
@pytest.mark.parametrize("desk", with_blocks("slow"), ids=name_of, indirect=True)
def test_the_page_runs_with_what_is_slow(desk):
    for block in blocks(desk.page):
        if block.mark != "not run":
            desk.run(block)
        else:
            desk.printed = ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_and_marks_are_sound(page):
    found = blocks(page)
    assert TEXTS[page].count("```") == 2 * len(found)
    assert {block.language for block in found} <= {*RUNS, ""}
    assert len(MARK.findall(TEXTS[page])) == sum(block.mark != "" for block in found), "a mark without a block"
    assert all(block.reason for block in found if block.mark), "a mark without a reason"
    for block in found:
        assert block.mark != "not run" or NEVER.search(block.reason), f"line {block.line}: {block.reason}"
    code = [block for block in found if block.language in RUNS]
    assert not code or any(block.mark != "not run" for block in code), "nothing on this page is run"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, heading = link.partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_every_page_can_be_found():
    index = TEXTS[ROOT / "docs" / "README.md"]
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def in_code(pattern: str) -> bool:
    """Whether some page shows it, in a block or between backticks."""
    return any(
        re.search(pattern, code)
        for text in TEXTS.values()
        for code in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    )


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    hook = HOOKS[name]
    told, _, example = (inspect.getdoc(hook) or "").partition("@hookimpl")
    assert len(told.split()) >= 5, f"{name}: say what it is for"
    assert told.strip()[:1].isupper()
    for argument in inspect.signature(hook).parameters:
        assert f"`{argument}`" in told, f"{name}: say what `{argument}` is"
    if inspect.signature(hook).return_annotation != "None":
        assert re.search(r"[Rr]eturn", told), f"{name}: say what it returns"
    ast.parse("@hookimpl" + example)
    assert in_code(rf"\b{name}\b"), f"no page mentions {name}"


def test_every_public_name_is_mentioned():
    for name in harness.__all__:
        verb = harness._MODULE_OF[name] == "harness.functions"
        assert in_code(rf"\bharness\.{name}\b" if verb else rf"\b{name}\b"), f"no page mentions harness.{name}"


def fields(name: str) -> list[str]:
    return list(getattr(harness, name).__dataclass_fields__)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("write-a-pruner", ("PrunerSpec", "Param", "Cut", "Context", "Budget")),
        ("write-a-device", ("DeviceSpec", "DeviceInfo", "Samples", "TimingPlan", "Workload")),
        ("write-an-evaluator", ("EvaluatorSpec", "Score")),
    ],
)
def test_every_field_is_mentioned_where_it_is_used(page, names):
    text = TEXTS[ROOT / "docs" / f"{page}.md"]
    missing = [f"{name}.{field}" for name in names for field in fields(name) if not re.search(rf"\b{field}\b", text)]
    assert not missing


@pytest.mark.parametrize(
    ("page", "kind", "name"),
    [
        ("write-a-pruner", "pruner", "random"),
        ("write-a-device", "device", "null"),
        ("write-an-evaluator", "evaluator", "footprint"),
    ],
)
def test_every_check_of_the_kit_is_listed(page, kind, name, tmp_path):
    from harness.conformance import kit

    checks = [title for title, *_ in kit.checks(kit.bench_of(kind, name, {}, tmp_path))]
    text = TEXTS[ROOT / "docs" / f"{page}.md"]
    assert checks
    assert not [title for title in checks if f"`{title}`" not in text]


def test_the_picture_names_every_stage():
    path = ROOT / "docs" / "data-flow.svg"
    told = " ".join(ElementTree.parse(path).getroot().itertext())
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120
    stages = ("plan", "load", "prepare", "prune", "cut", "recover", "save", "reload", "measure", "evaluate", "record")
    for word in (*stages, "leaderboard", "pruner", "recovery", "device", "evaluator"):
        assert re.search(rf"\b{word}\b", told), word
