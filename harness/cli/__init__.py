"""The command `harness`. The module of a subcommand is imported only when it is used, so that --help is fast."""

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
    "run": ("run", "prune a model, check it, time it, evaluate it, record it"),
    "sweep": ("sweep", "run a matrix of cells from a YAML file; resumable"),
    "list": ("list", "list what is installed: pruners, devices, evaluators, models, recoveries"),
    "info": ("info", "show one of these in detail: paper, parameters, shapes"),
    "profile": ("profile", "measure the cost table of a device, which latency budgets use"),
    "new": ("new", "create a plug-in: a pruner, device or evaluator that works at once"),
    "check": ("check", "run the conformance kit on a plug-in"),
    "doctor": ("doctor", "show what this machine can do, and what is missing"),
    "status": ("status", "list the cells of this folder; --why shows how they differ"),
    "compare": ("compare", "compare two records: scores by document, and latencies"),
    "leaderboard": ("leaderboard", "show records as tables, pages and pictures"),
    "validate": ("validate", "check that records are unedited, complete and consistent"),
    "verify": ("verify", "run random records again and compare the results"),
    "publish": ("publish", "copy validated records into a published leaderboard"),
}


class LazyGroup(click.Group):
    """Imports a subcommand when it is used, and includes the commands of plug-ins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self.plugin_commands)]

    @cached_property
    def plugin_commands(self) -> dict[str, click.Command]:
        """The commands that plug-ins register, by name."""
        from harness import plugins

        group = click.Group()
        for _ in plugins.call_hook("harness_register_commands", group):
            pass
        return {name: command for name, command in group.commands.items() if name not in COMMANDS}

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            return importlib.import_module(f"harness.cli.{COMMANDS[name][0]}").command
        return self.plugin_commands.get(name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            from harness.plugins import unknown_name

            raise unknown_name("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_, line) in COMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in sorted(self.plugin_commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prune-harness", prog_name="harness")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Prune a neural network to a budget on a real device, and record the evidence of what it cost.

    \b
    harness run --pruner magnitude                     (a real model, without a download)
    harness run --pruner magnitude --model llama3.2-1b --dry-run
    """


def main() -> None:
    """Run the command in a supervised process and exit with its code, however it ends."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # also allowed after the command
    while True:
        ending = supervisor.supervise(lambda: run_command(arguments))
        signal_number = ending.reports.get("interrupted")
        if ending.code is not None:
            sys.exit(ending.code)
        if signal_number is not None:
            sys.exit(fail(*INTERRUPTED[:2], 128 + signal_number))
        # A plug-in whose import killed the process is reported as broken, and the command starts again without it.
        plugin = ending.reports.get("importing")
        if not plugin or plugin in supervisor.fatal_imports():
            break
        supervisor.add_fatal_import(plugin, f"while it was imported, {ending.reason}")
    if "cell" in ending.reports:
        from harness.cli.run import record_failure

        recording = supervisor.supervise(lambda: exit_code(lambda: record_failure(ending)))
        sys.exit(1 if recording.code is None else recording.code)
    stage = ending.reports.get("stage") or " ".join(["harness", *arguments[:1]])
    remedy = "if a plug-in is at fault, load only the ones you need: HARNESS_PLUGINS=NAME,…"
    sys.exit(fail(f"{stage}: {ending.reason}", remedy, 1))


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code. A failure prints one line with its cause and one with a remedy."""
    interrupts.heed()
    as_json = "--json" in arguments

    def command() -> int:
        with process.stdout_for_answers() if as_json else nullcontext(), interrupts.as_keyboard_interrupt():
            code = cli.main(args=arguments, prog_name="harness", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0

    return exit_code(command)


def exit_code(command: Callable[[], int]) -> int:
    """The exit code that the command returns, or that of its failure."""
    debug = "--debug" in sys.argv
    try:
        return command()
    except SystemExit as exiting:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click noticed that stdout is closed
            return 0
        return exiting.code if isinstance(exiting.code, int) else int(bool(exiting.code))
    except click.exceptions.Exit as exiting:
        return exiting.exit_code
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
        if error.errno in DISK_ERRORS:
            return fail(f"the output cannot be written: {error.strerror}", "make room on the disk it goes to", 3)
        return bug(error, debug)
    except BaseException as error:
        return bug(error, debug)


INTERRUPTED = ("interrupted", "run the same command again; it continues where this one stopped", 130)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def fail(cause: str, remedy: str, code: int) -> int:
    """Print cause and remedy, and return the exit code."""
    with suppress(OSError):
        click.echo(f"error: {one_line(cause).rstrip('.')}", err=True)
        if remedy:
            click.echo(f"  try: {one_line(remedy)}", err=True)
    return code


def bug(error: BaseException, debug: bool) -> int:
    """Report an unexpected exception, and return the exit code."""
    if debug:
        traceback.print_exc()
    return fail(describe(error), f"report this as a bug of harness, with the traceback in {write_traceback()}", 1)


def write_traceback() -> str:
    """Write the traceback of the current exception to a file; returns its path, or why it could not be written."""
    import tempfile

    text = without_secrets(traceback.format_exc())
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="harness-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as error:
        return f"(not written: {error.strerror}; --debug shows it)"
    return file.name
