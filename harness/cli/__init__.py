"""The command `harness`. A command's module is imported when the command is used, and nothing heavy before."""

from __future__ import annotations

import importlib
import sys
from functools import cached_property
from typing import Any

import click

from harness.errors import HarnessError
from harness.interrupts import interrupts

# name -> module and the line `harness --help` shows for it
COMMANDS = {
    "run": ("run", "prune a model, prove it, measure it, record it"),
    "sweep": ("sweep", "a matrix of cells from a YAML file, resumable"),
    "list": ("list", "what is installed: pruners, devices, evaluators, models, recoveries"),
    "info": ("info", "all about one name: paper, parameters, shapes"),
    "profile": ("profile", "what each width costs on a device: the table behind latency budgets"),
    "new": ("new", "the folder of a pruner, device or evaluator that works at once"),
    "check": ("check", "a plug-in of yours against the conformance kit"),
    "doctor": ("doctor", "what this machine can do, and what is missing"),
    "status": ("status", "the cells of this folder; --why says what differs"),
    "compare": ("compare", "two records on the same documents, and their latencies"),
    "leaderboard": ("leaderboard", "the records of this folder as tables, pages, pictures"),
    "validate": ("validate", "whether records are unedited, whole, and follow from their samples"),
    "verify": ("verify", "random rows made again, and whether they agree"),
    "publish": ("publish", "sound records to where others read them"),
}


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self.added)]

    @cached_property
    def added(self) -> dict[str, click.Command]:
        """Commands that plug-ins bring."""
        from harness import plugins

        extra = click.Group()
        for _ in plugins.answers("harness_register_commands", extra):
            pass
        return {name: command for name, command in extra.commands.items() if name not in COMMANDS}

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            return importlib.import_module(f"harness.cli.{COMMANDS[name][0]}").command
        return self.added.get(name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            from harness.plugins import unknown

            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_, line) in COMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in sorted(self.added.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prune-harness", prog_name="harness")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Prune a neural network to a budget on a real device, and say with evidence what it cost.

    \b
    harness run --pruner magnitude                     a real model, no download
    harness run --pruner magnitude --model llama3.2-1b --dry-run
    """


def main() -> None:
    debug = "--debug" in sys.argv
    # --debug is welcome after the command too
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    interrupts.heed()
    try:
        with interrupts.told_apart():
            code = cli.main(args=arguments, prog_name="harness", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        context = f"harness {error.ctx.info_name} --help" if error.ctx and error.ctx.parent else "harness --help"
        fail(error.format_message(), f"see {context}", 2)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", "the same command continues where this one stopped", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except HarnessError as error:
        if debug:
            raise
        fail(error.cause, error.remedy, error.exit_code)
    except Exception as error:
        if debug:
            raise
        fail(f"{type(error).__name__}: {error}".splitlines()[0], f"a bug of harness; traceback: {log()}", 1)


def fail(cause: str, remedy: str, code: int) -> None:
    click.echo(f"error: {cause.rstrip('.')}", err=True)
    if remedy:
        click.echo(f"  try: {remedy}", err=True)
    sys.exit(code)


def log() -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="harness-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return file.name
