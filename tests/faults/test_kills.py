"""Killed at any moment, by SIGKILL, or crowded: the same command ends with one equal record per cell."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ..conftest import ROOT


def killed(tmp_path, *words: str) -> dict:
    command = [sys.executable, "-m", "tests.faults.kills", *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert not report["wrong"], report
    return report


def test_a_run_that_is_killed(tmp_path):
    assert killed(tmp_path, "run", "--kills", "5")["landed"]


def test_processes_together(tmp_path):
    assert killed(tmp_path, "together", "--kills", "4")["records"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_two_hundred_kills_of_a_run(tmp_path, seed):
    assert killed(tmp_path, "run", "--kills", "20", "--seed", str(seed))["landed"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_fifty_kills_of_a_sweep(tmp_path, seed):
    assert killed(tmp_path, "sweep", "--kills", "10", "--seed", str(seed))["landed"]


@pytest.mark.slow
def test_ten_processes_together(tmp_path):
    assert killed(tmp_path, "together", "--kills", "10")["records"] == 2
