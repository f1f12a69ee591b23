"""`harness list`: list every registered name and every broken plug-in."""

from __future__ import annotations

import click

from harness import plugins
from harness.cli.json_output import print_json
from harness.errors import one_line

KINDS = ("pruners", "devices", "evaluators", "models", "recoveries", "architectures")
SINGULAR = {"recoveries": "recovery"}


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print only JSON: an array of {name, kind, ok, version, origin, summary, reason}.",
)
@click.option("--markdown", is_flag=True, help="Print the table that the README shows.")
def command(kind: str | None, as_json: bool, markdown: bool) -> None:
    """List what is installed. A broken plug-in is listed with its reason.

    \b
    harness list pruners
    """
    if markdown:
        from harness.leaderboard.readme import registry_table

        click.echo(registry_table())
        return
    singular = SINGULAR.get(kind, kind[:-1]) if kind else None
    rows = plugins.list_rows(singular)
    if as_json:
        print_json(rows)
        return
    rows = [{name: one_line(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]
    name_width = max(len(row["name"]) for row in rows)
    origin_width = max(len(f"{row['origin']} {row['version']}") for row in rows)
    for group in [*([singular] if singular else plugins.KINDS), "plugin"]:
        members = [row for row in rows if row["kind"] == group]
        if not members:
            continue
        click.secho(plural(group) if group != "plugin" else "broken plug-ins", bold=True)
        for row in members:
            origin = click.style(f"{row['origin']} {row['version']}".ljust(origin_width), dim=True)
            text = row["summary"] if row["ok"] else click.style(row["reason"], fg="red")
            click.echo(f"  {row['name']:{name_width}}  {origin}  {text}")
        if group == "evaluator":
            click.secho(f"  groups: {one_line(', '.join(plugins.evaluator_groups()), most=20_000)}", dim=True)


def plural(kind: str) -> str:
    return next(name for name in KINDS if SINGULAR.get(name, name[:-1]) == kind)
