"""Another machine, played by this one: for tests of devices that are not at hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


def commands(cli: Any, device: str, runs: Path, *words: str, profile: bool = True) -> dict[str, Any]:
    """The record of a run that is held to a latency, after a cost table where there is the time for one."""
    from click.testing import CliRunner

    on = ["--model", "tiny", "--device", device, "--workload", "prefill:1x16", *words]
    asked = ["run", "--pruner", "magnitude", "--latency", "0.7x", *on, "--limit", "2", "--json"]
    for line in (["profile", *on], asked) if profile else (asked,):
        done = CliRunner().invoke(cli, line, env={"HARNESS_RUNS": str(runs), "HARNESS_CHECK": "0"})
        if done.exit_code not in (0, 1):  # a machine that is busy makes a row unstable
            raise AssertionError(f"harness {' '.join(line)}: {done.output} {done.exception}")
    return dict(json.loads(done.stdout))


@contextmanager
def machine(home: Path, programs: Path, devices: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """Its programs, Python files each, come first in the path; the file of each device says that this is it.

    Words may name a program by `{bin}`. Gives the folder of the devices' files.
    """
    binaries = home / "bin"
    binaries.mkdir()
    for program in programs.iterdir():
        made = binaries / program.name
        made.write_text(f"#!{sys.executable}\n{program.read_text(encoding='utf-8')}", encoding="utf-8")
        made.chmod(0o755)
    for name, words in devices.items():
        usual = {"transport": "local", "folder": str(home / "there"), "timeout_s": 120}
        told = json.dumps({**usual, **words}).replace("{bin}", str(binaries))
        (home / f"{name}.yaml").write_text(told, encoding="utf-8")
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    with mock.patch.dict(os.environ, HARNESS_DEVICES=str(home), PATH=path):
        yield home
