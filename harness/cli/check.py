"""`harness check`: run the conformance kit on a plug-in."""

from __future__ import annotations

import sys
import time

import click

from harness.cli.json_output import print_json


@click.command("check")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(["pruner", "device", "evaluator"]), help="Needed if a name has several kinds."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the plug-in; repeat for several."
)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: an array of reports.")
def command(name: str, kind: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Check a pruner, device or evaluator on tiny models, without a network. Exit code 1 if a check fails.

    \b
    harness check magnitude
    harness check magnitude --set granularity=2:4
    """
    from harness.system import process

    process.prepare()
    from harness.cli.run import parse_setting
    from harness.conformance.kit import check
    from harness.conformance.report import Result

    marks = {"passed": ("ok", "green"), "failed": ("FAIL", "red"), "skipped": ("skip", "cyan")}

    def print_result(result: Result) -> None:
        if not as_json:
            label, colour = marks.get(result.outcome, ("known", "yellow"))
            click.echo(f"{click.style(f'{label:5}', fg=colour)} {result.check:18} {result.detail}".rstrip())
            if result.trace and "--debug" in sys.argv:
                click.echo(result.trace.rstrip())

    start = time.monotonic()
    reports = check(name, kind or "", dict(parse_setting(text) for text in settings), print_result)
    if as_json:
        print_json([report.to_dict() for report in reports])
    else:
        for report in reports:
            click.echo(
                f"{report.kind} {name}: {report.passed} of {report.of} checks passed (kit {report.kit}, "
                f"{time.monotonic() - start:.0f} s)"
            )
    if not all(report.ok for report in reports):
        click.get_current_context().exit(1)
