"""The command `harness`. A command's module is imported when the command is used, and nothing heavy before."""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cached_property
from typing import Any

import click

from harness.errors import HarnessError, describe, one_line, without_secrets
from harness.system import process, supervisor
from harness.system.interrupts import interrupts

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
    """Run the command in a supervised process and exit with its code, however it ends."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]  # --debug is welcome after the command too
    while True:
        ending = supervisor.supervise(lambda: run_command(arguments))
        signal_number = ending.reports.get("interrupted")
        if ending.code is not None:
            sys.exit(ending.code)
        if signal_number is not None:
            sys.exit(fail(*INTERRUPTED[:2], 128 + signal_number))
        plugin = ending.reports.get("importing")
        if not plugin or plugin in supervisor.fatal_imports:
            break
        supervisor.fatal_imports[plugin] = f"while it was imported, {ending.reason}"  # again, without this plug-in
    if "cell" in ending.reports:
        from harness.cli.run import row_of

        row = supervisor.supervise(lambda: guarded(lambda: row_of(ending)))
        sys.exit(1 if row.code is None else row.code)
    stage = ending.reports.get("stage") or " ".join(["harness", *arguments[:1]])
    remedy = "if a plug-in ended it, HARNESS_PLUGINS=NAME,… leaves the others out"
    sys.exit(fail(f"{stage}: {ending.reason}", remedy, 1))


def run_command(arguments: list[str]) -> int:
    """The exit code of a command, with any failure told as one line of cause and one of remedy."""
    interrupts.heed()
    as_json = "--json" in arguments

    def command() -> int:
        with process.stdout_kept() if as_json else nullcontext(), interrupts.told_apart():
            code = cli.main(args=arguments, prog_name="harness", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0

    return guarded(command)


def guarded(command: Callable[[], int]) -> int:
    """What the command answers, or the exit code of its failure."""
    debug = "--debug" in sys.argv
    try:
        return command()
    except SystemExit as done:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click found that nobody reads
            return 0
        return done.code if isinstance(done.code, int) else int(bool(done.code))
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        context = f"harness {error.ctx.info_name} --help" if error.ctx and error.ctx.parent else "harness --help"
        return fail(error.format_message(), f"see {context}", 2)
    except (KeyboardInterrupt, click.Abort):
        return fail(*INTERRUPTED)
    except BrokenPipeError:
        return 0
    except HarnessError as error:
        if debug:
            traceback.print_exc()
        return fail(error.cause, error.remedy, error.exit_code)
    except OSError as error:
        if error.errno in DISK:
            return fail(f"the output cannot be written: {error.strerror}", "make room where it goes", 3)
        return bug(error, debug)
    except BaseException as error:
        return bug(error, debug)


INTERRUPTED = ("interrupted", "the same command continues where this one stopped", 130)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def fail(cause: str, remedy: str, code: int) -> int:
    """Print cause and remedy, and return the exit code."""
    with suppress(OSError):
        click.echo(f"error: {one_line(cause).rstrip('.')}", err=True)
        if remedy:
            click.echo(f"  try: {one_line(remedy)}", err=True)
    return code


def bug(error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    return fail(describe(error), f"a bug of harness; traceback: {log()}", 1)


def log() -> str:
    """A file with the traceback, which a report of a bug needs."""
    import tempfile

    text = without_secrets(traceback.format_exc())
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="harness-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as error:
        return f"not written ({error.strerror}); --debug shows it"
    return file.name
