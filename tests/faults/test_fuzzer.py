"""The fuzzer itself: it notices what an input did, names the input, and repeats no piece."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from harness.errors import UsageError

from ..faults import fuzz
from .parsers import Parser

BAD = 7  # the seed of the input that does harm


def parser(parse):
    """One that refuses all inputs but the bad one."""

    def at_bad(folder, path):
        if int(path.read_text()) == BAD:
            return parse(folder, path)
        raise UsageError(f"{path.name} is refused")

    one = Parser("probe", 1, at_bad, {"input.txt": b"7"})
    object.__setattr__(one, "input", lambda seed: {"input.txt": str(seed).encode()})
    return one


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


HARMS = {
    "uncaught": lambda folder, path: 1 / 0,
    "slow": lambda folder, path: spin(0.3),
    "touched": lambda folder, path: (folder.parent / "canary" / "notes.txt").write_text("mine"),
    "memory": lambda folder, path: b"x" * (300 << 20),
    "unnamed": lambda folder, path: exec("raise UsageError('bad')", globals()),
    "ended": lambda folder, path: os.kill(os.getpid(), signal.SIGSEGV),
}


@pytest.mark.parametrize("kind", HARMS)
def test_each_harm_is_one_failure_of_one_input(kind, monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW_S", 0.2 if kind == "slow" else 9)
    monkeypatch.setattr(fuzz, "GROWTH", 100 << 20)
    child = fuzz.Child(parser(HARMS[kind]), 0, 20)
    row = fuzz.merge(child.answer(), child)
    assert row["counts"] == {"refused": 19, kind: 1}
    (failure,) = row["failures"].values()
    assert (failure["count"], failure["seed"]) == (1, BAD)


def test_an_input_without_an_end_is_ended(monkeypatch):
    monkeypatch.setattr(fuzz, "STOP_S", 0.5)
    child = fuzz.Child(parser(lambda folder, path: spin(600)), 0, 10)
    row = fuzz.merge(child.answer(), child)
    assert row["counts"] == {"refused": 9, "slow": 1}
    assert [failure["seed"] for failure in row["failures"].values()] == [BAD]


def test_what_an_input_leaves_is_gone_before_the_next(tmp_path):
    probe = Parser(
        "probe", 1, lambda folder, path: (folder / "more.txt").write_text("x"), {"a/b.txt": b"0"}, {"c": b"1"}
    )
    sandbox = fuzz.Sandbox(probe, tmp_path)
    assert sandbox.run({"a/b.txt": b"5"}).kind == "accepted"
    assert [path.name for path in sandbox.folder.rglob("*")] == ["c"]


def test_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "PIECE", 50)
    chosen = [parser(lambda folder, path: True)]
    fuzz.run(chosen, 0, 100, 1, tmp_path, whole=True)
    lines = (tmp_path / "pieces.jsonl").read_text().splitlines()
    (tmp_path / "pieces.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # killed as it wrote
    capsys.readouterr()
    fuzz.run(chosen, 0, 100, 2, tmp_path, whole=True)
    assert len(capsys.readouterr().out.splitlines()) == 1  # only the piece that was lost
    rows = fuzz.load_rows(tmp_path)
    assert sum(sum(row["counts"].values()) for row in rows) == 100
    assert json.dumps(rows[0]) == lines[1]
    assert "| all | 100 |" in fuzz.summary(tmp_path)
