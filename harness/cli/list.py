"""`harness list`: every registered name, every broken plug-in."""

from __future__ import annotations

import json

import click

from harness import plugins

KINDS = ("pruners", "devices", "evaluators", "models", "recoveries")
SINGULAR = {"recoveries": "recovery"}


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="An array of name, kind, ok, version, origin, summary, reason.")
@click.option("--markdown", is_flag=True, help="The table that the README shows.")
def command(kind: str | None, as_json: bool, markdown: bool) -> None:
    """What is installed. A plug-in that cannot be read is a line with its reason.

    \b
    harness list pruners
    """
    if markdown:
        from harness.leaderboard.readme import listed

        click.echo(listed())
        return
    wanted = SINGULAR.get(kind, kind[:-1]) if kind else None
    rows = plugins.rows(wanted)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    origin = max(len(f"{row['origin']} {row['version']}") for row in rows)
    for group in [*([wanted] if wanted else plugins.KINDS), "plugin"]:
        members = [row for row in rows if row["kind"] == group]
        if not members:
            continue
        click.secho(plural(group) if group != "plugin" else "broken plug-ins", bold=True)
        for row in members:
            where = f"{row['origin']} {row['version']}"
            line = row["summary"] if row["ok"] else click.style(row["reason"], fg="red")
            click.echo(f"  {row['name']:{width}}  {click.style(f'{where:{origin}}', dim=True)}  {line}")
        if group == "evaluator":
            click.secho(f"  groups: {', '.join(plugins.groups())}", dim=True)


def plural(kind: str) -> str:
    return next(name for name in KINDS if SINGULAR.get(name, name[:-1]) == kind)
