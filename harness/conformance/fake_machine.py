"""Lets this machine stand in for a remote one, for tests of devices that are not at hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


def profile_and_run(cli: Any, device: str, runs: Path, *options: str, profile: bool = True) -> dict[str, Any]:
    """Run `harness profile`, if wanted, and `harness run` with a latency budget; return the record of the run."""
    from click.testing import CliRunner

    common = ["--model", "tiny", "--device", device, "--workload", "prefill:1x16", *options]
    run = ["run", "--pruner", "magnitude", "--latency", "0.7x", *common, "--limit", "2", "--json"]
    for command in (["profile", *common], run) if profile else (run,):
        result = CliRunner().invoke(cli, command, env={"HARNESS_RUNS": str(runs), "HARNESS_CHECK": "0"})
        if result.exit_code not in (0, 1):  # 1: the row may be unstable on a busy machine
            raise AssertionError(f"harness {' '.join(command)}: {result.output} {result.exception}")
    return dict(json.loads(result.stdout))


@contextmanager
def machine(home: Path, programs: Path, devices: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """Set up the programs and the device files of a remote machine that is really this one.

    `programs` is a folder of Python scripts, which come first in PATH. `devices` maps a device to the fields of its
    file; `{bin}` in a field stands for the folder of the programs. Yields the folder of the device files.
    """
    binaries = home / "bin"
    binaries.mkdir()
    for program in programs.iterdir():
        script = binaries / program.name
        script.write_text(f"#!{sys.executable}\n{program.read_text(encoding='utf-8')}", encoding="utf-8")
        script.chmod(0o755)
    for name, fields in devices.items():
        defaults = {"transport": "local", "folder": str(home / "there"), "timeout_s": 120}
        text = json.dumps({**defaults, **fields}).replace("{bin}", str(binaries))
        (home / f"{name}.yaml").write_text(text, encoding="utf-8")
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    with mock.patch.dict(os.environ, HARNESS_DEVICES=str(home), PATH=path):
        yield home
