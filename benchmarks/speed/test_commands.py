"""What commands cost that only describe: a process of `harness list`, of `harness --help`, and of Python alone.

    uv run pytest benchmarks/speed/test_commands.py

The ratio to an empty Python process can be compared between machines. The table in commands.md is written when every
command ran.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tabulate import tabulate

CALL = "from harness.cli import main; main()"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "harness --help": ["-c", CALL, "--help"],
    "harness list": ["-c", CALL, "list"],
    "harness info dilap": ["-c", CALL, "info", "dilap"],
}
ROUNDS = 11
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    rows: list[dict[str, str]] = []
    yield rows
    if len(rows) == len(COMMANDS):
        text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
        about = f"Wall time of a process, the median of {ROUNDS} after one that is not counted."
        (HERE / "commands.md").write_text(f"# Commands that describe\n\n{about}\n\n{text}\n", encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_process(benchmark, rows, name):
    command = [sys.executable, *COMMANDS[name]]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=ROUNDS, warmup_rounds=1
    )
    median = benchmark.stats.stats.median
    first = float(rows[0]["ms"]) / 1e3 if rows else median
    rows.append({"command": name, "ms": f"{1e3 * median:.0f}", "over Python alone": f"{median / first:.1f}x"})
