"""`harness info NAME`: everything a spec or a card says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from harness import plugins
from harness.cli.answer import print_json
from harness.conformance import kit
from harness.errors import EnvironmentFault, UsageError, one_line

BOUNDS = ("least", "above", "most")


@click.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(name: str, as_json: bool) -> None:
    """All about one pruner, device, evaluator, recovery or model.

    \b
    harness info magnitude
    harness info llama3.2-1b
    """
    known = plugins.registry()
    if members := plugins.groups().get(name):
        line = f"{name} (group of evaluators) --eval {name}: {', '.join(members)}"
        if as_json:
            print_json(members)
        else:
            click.echo(one_line(line, most=20_000))
        return
    found = [(kind, specs[name]) for kind, specs in known.specs.items() if name in specs]
    if not found:
        every = {n for specs in known.specs.values() for n in specs}
        elsewhere = known._elsewhere(name)
        if elsewhere or not name.strip():
            raise plugins.unknown("name", name, every, elsewhere)
        try:
            found = [("model", card(name))]
        except (EnvironmentFault, UsageError):
            raise plugins.unknown("name", name, every, made_here(name)) from None
    described = [describe(kind, spec) for kind, spec in found]
    if as_json:
        print_json(described[0] if len(described) == 1 else described)
        return
    for words in described:
        show(words)


def made_here(name: str) -> str:
    """Between `harness new` and `pip install`."""
    folder = Path(name.replace("-", "_"))
    return (
        f"it is a folder here, not installed yet: pip install -e {folder}"
        if (folder / "pyproject.toml").exists()
        else ""
    )


def card(name: str) -> Any:
    from harness.models.loading.cards import card as find

    return find(name)


def describe(kind: str, spec: Any) -> dict[str, Any]:
    words = {"kind": kind, **{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}}
    origin = plugins.registry().origins.get((kind, spec.name))
    words["origin"] = f"{origin.distribution} {origin.version}" if origin else ""
    if kind in kit.KINDS:
        score = kit.remembered(kind, spec.name)
        checked = f"{score['passed']} of {score['of']} checks hold (kit {score['kit']})" if score else "not checked yet"
        words["conformance"] = checked
    if kind == "model":
        words |= shapes(spec.config)
    elif "parameters" in words:
        words["parameters"] = {
            name: {
                "help": param.help,
                "quick": param.default("quick"),
                "paper": param.default("paper"),
                "choices": list(param.choices),
                **{bound: value for bound in BOUNDS if (value := getattr(param, bound)) is not None},
            }
            for name, param in spec.parameters.items()
        }
    return words


def shapes(config: Any) -> dict[str, Any]:
    from harness.errors import Unsupported
    from harness.models.architectures.lookup import anatomy_of

    try:
        anatomy = anatomy_of(config)
    except Unsupported as error:
        return {"unsupported": f"{error.cause}; {error.remedy}"}
    kinds = sorted({site.kind for site in anatomy.sites.values()})
    return {
        "params": anatomy.params(),
        "params_prunable": anatomy.params(prunable=True),
        "sites": {kind: sum(site.kind == kind for site in anatomy.sites.values()) for kind in kinds},
        "units": {kind: max(s.units for s in anatomy.sites.values() if s.kind == kind) for kind in kinds},
    }


def show(words: dict[str, Any]) -> None:
    name, kind = words.pop("name"), words.pop("kind")
    flags = {"evaluator": f"--eval {name}:name=value", "recovery": f"--recovery {name}:name=value"}
    click.secho(f"{one_line(name)} ", bold=True, nl=False)
    click.echo(one_line(f"({kind}) {words.pop('summary')}"))
    parameters = words.pop("parameters", {})
    config = words.pop("config", {})
    differs = words.pop("differs", ())
    if "needs" in words:
        words["needs"] = words["needs"] or "nothing"
    for name, value in words.items():
        if value in ("", (), {}, None):
            continue
        if isinstance(value, tuple):
            value = ", ".join(map(str, value))
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:,}" if type(v) is int else f"{k}: {v}" for k, v in value.items())
        shown = f"{value:,}" if type(value) is int else one_line(str(value))
        click.echo(f"  {one_line(name.replace('_', ' ')):18} {shown}")
    for name, value in config.items():
        click.echo(click.style(f"  config.{one_line(name):27} {one_line(str(value))}", dim=True))
    if differs:
        click.echo("  differs from its paper (more in its card)")
    for line in differs:
        click.echo(f"    {one_line(line)}")
    if parameters:
        click.echo(f"  parameters ({flags.get(kind, '--set name=value')})")
    for name, param in parameters.items():
        same = param["paper"] == param["quick"]
        values = f"{param['quick']}" if same else f"quick {param['quick']}, paper {param['paper']}"
        choices = f" [{', '.join(map(str, param['choices']))}]" if param["choices"] else ""
        click.echo(f"    {one_line(name):16} {one_line(values + choices + ': ' + param['help'])}")
