"""`harness new`: create the folder of a plug-in that already works."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from harness.errors import EnvironmentFault, UsageError, one_line
from harness.system.paths import plain_name

PROJECT = """\
[project]
name = "prune-harness-{name}"
version = "0.1.0"
dependencies = ["prune-harness"]

[project.entry-points.harness]
{module} = "harness_{module}"

[tool.setuptools]
py-modules = ["harness_{module}"]
"""
README = """\
# {name}

What it does, which paper it comes from, how it differs from the paper, and what it needs.
"""
TEST = """\
from harness.conformance import Conformance


class Test{title}(Conformance):
    name = "{name}"
"""
PRUNER = """\
from harness import Cut, PrunerSpec, hookimpl, uniform


class {title}Pruner:
    def shape(self, anatomy, ratio):
        return uniform(anatomy, ratio)

    def prune(self, model, budget, ctx, state):
        shape = self.shape(ctx.anatomy, budget.value)
        return Cut(keep={{site: range(units) for site, units in shape.items()}})


@hookimpl
def harness_register_pruners():
    summary, target = "keeps the first units of every site", "harness_{module}:{title}Pruner"
    return [PrunerSpec(name="{name}", target=target, summary=summary)]
"""
DEVICE = """\
from harness import DeviceInfo, DeviceSpec, Samples, hookimpl


class {title}Device:
    def probe(self):
        return DeviceInfo(usable=True, fingerprint={{"kind": "{name}"}})

    def prepare(self, model, workload):
        return model.num_parameters() * workload.batch * workload.size

    def measure(self, handle, plan):
        return Samples(wall_ns=[handle] * plan.iterations)

    def close(self, handle):
        pass


@hookimpl
def harness_register_devices():
    summary, target = "one nanosecond per parameter and token", "harness_{module}:{title}Device"
    return [DeviceSpec(name="{name}", target=target, summary=summary, provenance="simulated")]
"""
EVALUATOR = """\
from harness import EvaluatorSpec, Score, hookimpl

TEXTS = ["the first text", "a second one", "and a third"]


class {title}Evaluator:
    def evaluate(self, model, ctx):
        accuracies = {{}}
        for text in TEXTS[: ctx.limit]:
            ids = ctx.tokenizer(text, return_tensors="pt").input_ids
            guesses = model(ids).logits[0, :-1].argmax(-1)
            accuracies[text] = float((guesses == ids[0, 1:]).float().mean())
        return {{"": Score(accuracies, higher_is_better=True)}}


@hookimpl
def harness_register_evaluators():
    summary, target = "share of next tokens predicted correctly", "harness_{module}:{title}Evaluator"
    return [EvaluatorSpec(name="{name}", target=target, summary=summary)]
"""
MAX_NAME = 40  # characters
SOURCES = {"pruner": PRUNER, "device": DEVICE, "evaluator": EVALUATOR}
RUN_OPTIONS = {
    "pruner": "--pruner {name}",
    "device": "--pruner random --device {name}",
    "evaluator": "--pruner random --eval {name}",
}


def conflict(name: str, module: str) -> str:
    """The installed plug-in or distribution that one of this name would replace or hide; empty if there is none."""
    from importlib.metadata import PackageNotFoundError, distribution, entry_points

    if module in {point.name for point in entry_points(group="harness")}:
        return f"the plug-in {module!r}"
    try:
        return f"the distribution {distribution(f'prune-harness-{name}').name}"
    except PackageNotFoundError:
        return ""


def create_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Create the folder with all its files, or nothing: a temporary folder is filled and then renamed."""
    if not str(folder).isprintable():
        raise UsageError(one_line(f"{folder} holds characters that cannot be printed"), "give --into another folder")
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "give another name, or --into another folder")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    missing = [path for path in (scratch, *scratch.parents) if not os.path.lexists(path)]
    base = missing[-1].parent
    if not base.is_dir():
        raise UsageError(f"{base} is not a folder", "give --into an existing folder or a new one")
    try:
        scratch.mkdir(parents=True)
        for path, text in files.items():
            (scratch / path).parent.mkdir(exist_ok=True)
            (scratch / path).write_text(text, encoding="utf-8")
        scratch.rename(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in missing[1:]:
            _remove_empty(parent)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = (
                "make room, then run the same command again" if full else "give --into a folder that you can write to"
            )
            raise EnvironmentFault(f"cannot write {folder}: {error.strerror}", remedy) from error
        raise


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@click.command("new")
@click.argument("kind", type=click.Choice(list(SOURCES)))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Create it in this folder.  [default: the current one]",
)
def command(kind: str, name: str, into: Path) -> None:
    """Create a plug-in that can be installed, runs and passes the conformance kit, as a start for your own.

    \b
    harness new pruner foo
    pip install -e foo && harness check foo && harness run --pruner foo --model tiny
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > MAX_NAME:
        raise UsageError(
            f"{name[:60]!r} is not a valid name",
            f"use up to {MAX_NAME} lower-case letters, digits and hyphens: my-pruner",
        )
    plain_name(name, "a plug-in")
    from harness.plugins import registry

    if name in registry().specs[kind]:
        raise UsageError(f"{kind} {name!r} already exists", f"give another name, or see harness info {name}")
    module = name.replace("-", "_")
    if existing := conflict(name, module):
        raise UsageError(f"{existing} is already installed and would be replaced", "give another name")
    placeholders = {"name": name, "module": module, "title": "".join(part.title() for part in name.split("-"))}
    folder = into / module
    files = {"pyproject.toml": PROJECT, f"harness_{module}.py": SOURCES[kind], "README.md": README}
    files[f"tests/test_{module}.py"] = TEST
    create_folder(folder, {path: text.format(**placeholders) for path, text in files.items()})
    for path in files:
        click.echo(f"created {folder / path}")
    click.echo("next:")
    for line in (
        f"pip install -e {shlex.quote(str(folder))}",
        f"harness check {name}",
        f"harness run {RUN_OPTIONS[kind].format(**placeholders)} --model tiny",
    ):
        click.echo(f"  {line}")
