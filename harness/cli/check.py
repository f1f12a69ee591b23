"""`harness check`: a plug-in against the conformance kit."""

from __future__ import annotations

import sys
import time

import click

from harness.cli.answer import print_json


@click.command("check")
@click.argument("name")
@click.option("--kind", type=click.Choice(["pruner", "device", "evaluator"]), help="Where a name stands for several.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the plug-in.")
@click.option("--json", "as_json", is_flag=True, help="The reports as an array and nothing else.")
def command(name: str, kind: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Check a pruner, device or evaluator on tiny models, without a network. Exit 1 if something does not hold.

    \b
    harness check magnitude
    harness check magnitude --set granularity=2:4
    """
    from harness.system import process

    process.prepare()
    from harness.cli.run import pair
    from harness.conformance.kit import check
    from harness.conformance.report import Result

    marks = {"passed": ("ok", "green"), "failed": ("FAIL", "red"), "skipped": ("skip", "cyan")}

    def print_result(result: Result) -> None:
        if not as_json:
            word, colour = marks.get(result.outcome, ("known", "yellow"))
            click.echo(f"{click.style(f'{word:5}', fg=colour)} {result.check:18} {result.detail}".rstrip())
            if result.trace and "--debug" in sys.argv:
                click.echo(result.trace.rstrip())

    start = time.monotonic()
    reports = check(name, kind or "", dict(pair(text) for text in settings), print_result)
    if as_json:
        print_json([report.words() for report in reports])
    else:
        for report in reports:
            click.echo(
                f"{report.kind} {name}: {report.passed} of {report.of} hold (kit {report.kit}, "
                f"{time.monotonic() - start:.0f} s)"
            )
    if not all(report.ok for report in reports):
        click.get_current_context().exit(1)
