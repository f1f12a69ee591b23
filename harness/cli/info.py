"""`harness info NAME`: show the spec of a plug-in, or the card of a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import plugins
from harness.cli.json_output import print_json
from harness.conformance import kit
from harness.errors import EnvironmentFault, UsageError, one_line

if TYPE_CHECKING:
    from harness.api import ModelCard, Param

BOUNDS = ("least", "above", "most")


@click.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def command(name: str, as_json: bool) -> None:
    """Show one pruner, device, evaluator, recovery or model in detail.

    \b
    harness info magnitude
    harness info llama3.2-1b
    """
    registry = plugins.registry()
    if members := plugins.evaluator_groups().get(name):
        line = f"{name} (a group of evaluators): --eval {name} means {', '.join(members)}"
        if as_json:
            print_json(members)
        else:
            click.echo(one_line(line, most=20_000))
        return
    specs = [(kind, by_name[name]) for kind, by_name in registry.specs.items() if name in by_name]
    if not specs:
        names = {name for by_name in registry.specs.values() for name in by_name}
        why_missing = registry.why_missing(name)
        if why_missing or not name.strip():
            raise plugins.unknown_name("name", name, names, why_missing)
        try:
            specs = [("model", find_card(name))]
        except (EnvironmentFault, UsageError):
            raise plugins.unknown_name("name", name, names, not_installed(name)) from None
    descriptions = [describe(kind, spec) for kind, spec in specs]
    if as_json:
        print_json(descriptions[0] if len(descriptions) == 1 else descriptions)
        return
    for description in descriptions:
        show(description)


def not_installed(name: str) -> str:
    """How to install a plug-in whose folder is in the current one, as `harness new` makes it; otherwise empty."""
    folder = Path(name.replace("-", "_"))
    if not (folder / "pyproject.toml").exists():
        return ""
    return f"there is a folder of this name that is not installed: pip install -e {folder}"


def find_card(name: str) -> ModelCard:
    from harness.models.loading.cards import card

    return card(name)


def describe(kind: str, spec: Any) -> dict[str, Any]:
    """All fields of a spec or card, with its origin and what its conformance checks or its shapes add."""
    fields = {"kind": kind, **{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}}
    origin = plugins.registry().origins.get((kind, spec.name))
    fields["origin"] = f"{origin.distribution} {origin.version}" if origin else ""
    if kind in kit.KINDS:
        result = kit.cached_score(kind, spec.name)
        fields["conformance"] = "not checked yet"
        if result:
            fields["conformance"] = f"{result['passed']} of {result['of']} checks passed (kit {result['kit']})"
    if kind == "model":
        fields |= shapes(spec.config)
    elif "parameters" in fields:
        fields["parameters"] = {name: describe_parameter(param) for name, param in spec.parameters.items()}
    return fields


def describe_parameter(param: Param) -> dict[str, Any]:
    bounds = {bound: getattr(param, bound) for bound in BOUNDS}
    return {
        "help": param.help,
        "quick": param.default("quick"),
        "paper": param.default("paper"),
        "choices": list(param.choices),
        **{bound: value for bound, value in bounds.items() if value is not None},
    }


def shapes(config: Any) -> dict[str, Any]:
    """Parameter counts, and the number of sites and units by kind, of a model with this config."""
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


def show(fields: dict[str, Any]) -> None:
    """Print the description of a spec or card."""
    name, kind = fields.pop("name"), fields.pop("kind")
    flags = {"evaluator": f"--eval {name}:name=value", "recovery": f"--recovery {name}:name=value"}
    click.secho(f"{one_line(name)} ", bold=True, nl=False)
    click.echo(one_line(f"({kind}) {fields.pop('summary')}"))
    parameters = fields.pop("parameters", {})
    config = fields.pop("config", {})
    differs = fields.pop("differs", ())
    if "needs" in fields:
        fields["needs"] = fields["needs"] or "nothing"
    for name, value in fields.items():
        if value in ("", (), {}, None):
            continue
        if isinstance(value, tuple):
            value = ", ".join(map(str, value))
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:,}" if type(v) is int else f"{k}: {v}" for k, v in value.items())
        text = f"{value:,}" if type(value) is int else one_line(str(value))
        click.echo(f"  {one_line(name.replace('_', ' ')):18} {text}")
    for name, value in config.items():
        click.echo(click.style(f"  config.{one_line(name):27} {one_line(str(value))}", dim=True))
    if differs:
        click.echo("  differences from its paper (more in its README)")
    for line in differs:
        click.echo(f"    {one_line(line)}")
    if parameters:
        click.echo(f"  parameters ({flags.get(kind, '--set name=value')})")
    for name, param in parameters.items():
        same = param["paper"] == param["quick"]
        values = f"{param['quick']}" if same else f"quick {param['quick']}, paper {param['paper']}"
        choices = f" [{', '.join(map(str, param['choices']))}]" if param["choices"] else ""
        click.echo(f"    {one_line(name):16} {one_line(values + choices + ': ' + param['help'])}")
