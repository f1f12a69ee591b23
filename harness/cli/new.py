"""`harness new`: the folder of a plug-in that works at once."""

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

What it does, which paper it is from, what differs from the paper, and what it needs.
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
        found = {{}}
        for text in TEXTS[: ctx.limit]:
            ids = ctx.tokenizer(text, return_tensors="pt").input_ids
            guesses = model(ids).logits[0, :-1].argmax(-1)
            found[text] = float((guesses == ids[0, 1:]).float().mean())
        return {{"": Score(found, higher_is_better=True)}}


@hookimpl
def harness_register_evaluators():
    summary, target = "share of next tokens guessed", "harness_{module}:{title}Evaluator"
    return [EvaluatorSpec(name="{name}", target=target, summary=summary)]
"""
LONGEST = 40
SOURCES = {"pruner": PRUNER, "device": DEVICE, "evaluator": EVALUATOR}
TRY = {
    "pruner": "--pruner {name}",
    "device": "--pruner random --device {name}",
    "evaluator": "--pruner random --eval {name}",
}


def taken(name: str, module: str) -> str:
    """What an installation under this name would replace or hide."""
    from importlib.metadata import PackageNotFoundError, distribution, entry_points

    if module in {point.name for point in entry_points(group="harness")}:
        return f"a plug-in {module!r}"
    try:
        return f"the distribution {distribution(f'prune-harness-{name}').name}"
    except PackageNotFoundError:
        return ""


def make(folder: Path, files: Mapping[str, str]) -> None:
    """The folder with all its files, or nothing: it is filled under another name and then renamed."""
    if not str(folder).isprintable():
        raise UsageError(one_line(f"{folder} holds characters that cannot be printed"), "give --into another folder")
    if os.path.lexists(folder):
        raise UsageError(f"{folder} is there already", "give another name, or --into another folder")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    missing = [path for path in (scratch, *scratch.parents) if not os.path.lexists(path)]
    base = missing[-1].parent
    if not base.is_dir():
        raise UsageError(f"{base} is not a folder", "give --into a folder")
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
            remedy = "make room, then the same command again" if full else "give --into a folder that can be written"
            raise EnvironmentFault(f"cannot write {folder}: {error.strerror}", remedy) from error
        raise


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@click.command("new")
@click.argument("kind", type=click.Choice(list(SOURCES)))
@click.argument("name")
@click.option(
    "--into", type=click.Path(path_type=Path), default=Path(), help="The folder it is made in.  [default: here]"
)
def command(kind: str, name: str, into: Path) -> None:
    """Make a folder with a plug-in that installs, runs and passes the conformance kit; then make it yours.

    \b
    harness new pruner foo
    pip install -e foo && harness check foo && harness run --pruner foo --model tiny
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST:
        raise UsageError(
            f"{name[:60]!r} is not a name", f"give up to {LONGEST} lower case letters, digits and hyphens: my-pruner"
        )
    plain_name(name, "a plug-in")
    from harness.plugins import registry

    if name in registry().specs[kind]:
        raise UsageError(f"there is a {kind} {name!r} already", f"harness info {name}")
    module = name.replace("-", "_")
    if clash := taken(name, module):
        raise UsageError(f"{clash} is there already, and would be replaced", "give another name")
    words = {"name": name, "module": module, "title": "".join(part.title() for part in name.split("-"))}
    folder = into / module
    files = {"pyproject.toml": PROJECT, f"harness_{module}.py": SOURCES[kind], "README.md": README}
    files[f"tests/test_{module}.py"] = TEST
    make(folder, {path: text.format(**words) for path, text in files.items()})
    for path in files:
        click.echo(f"made {folder / path}")
    click.echo("now:")
    for line in (
        f"pip install -e {shlex.quote(str(folder))}",
        f"harness check {name}",
        f"harness run {TRY[kind].format(**words)} --model tiny",
    ):
        click.echo(f"  {line}")
