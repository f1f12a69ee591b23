"""`harness list`: every registered name, every broken plug-in."""

from __future__ import annotations

import click

from harness import plugins
from harness.cli.answer import print_json
from harness.errors import one_line

KINDS = ("pruners", "devices", "evaluators", "models", "recoveries", "architectures")
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
        print_json(rows)
        return
    rows = [{name: one_line(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]
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
            click.secho(f"  groups: {one_line(', '.join(plugins.groups()), most=20_000)}", dim=True)


def plural(kind: str) -> str:
    return next(name for name in KINDS if SINGULAR.get(name, name[:-1]) == kind)
