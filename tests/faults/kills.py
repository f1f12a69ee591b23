"""Kills commands at random moments, runs them to their end, and compares what is stored with an undisturbed run.

`python -m tests.faults.kills run --kills 20 --seed 3 --out FOLDER` prints one JSON object. The libraries are imported
once, and every command is a fork of this process. A folder is killed up to five times before it is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

SUITE = """
pruners: [random, magnitude]
models: [tiny]
devices: ["null"]
budgets: [0.2, 0.4]
evaluators: [footprint]
limit: 1
"""
RUN = (
    "run",
    "--pruner",
    "magnitude",
    "--model",
    "tiny",
    "--device",
    "null",
    "--ratio",
    "0.2",
    "--limit",
    "1",
    "--json",
)
KILLS_PER_FOLDER = 5
# Of a record: what is another one at every run.
TIMES = ("started", "finished", "history", "digest", "seal", "cost", "memory", "environment")


def start(words: tuple[str, ...], runs: Path, folder: Path) -> int:
    """The command in a process of its own; its pid."""
    from tests import forks

    folder.mkdir(parents=True, exist_ok=True)
    if not (pid := os.fork()):
        os.setsid()
        environment = {**os.environ, "HARNESS_RUNS": str(runs), "HARNESS_CHECK": "0", "PYTHONPATH": os.getcwd()}
        forks._answer(list(words), str(folder), environment, str(folder))
    return pid


def finish(words: tuple[str, ...], runs: Path, folder: Path) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start(words, runs, folder), 0)[1])


def descendants(pid: int) -> list[int]:
    import psutil

    with contextlib.suppress(psutil.Error):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def content(runs: Path) -> dict[str, Any]:
    """What each record says, less what differs from run to run."""
    from harness.records.store import Store

    answer = {}
    for record in Store(runs).records():
        words = {name: value for name, value in record.to_dict().items() if name not in TIMES}
        for latency in words["latency"].values():
            latency.pop("began", None)
            latency.pop("ended", None)
        answer[record.id] = words
    return answer


def leftovers(runs: Path) -> list[str]:
    """Scratch that nobody will clear, and files that were set aside."""
    names = [path.name for path in (runs / "tmp").glob("*")]
    return names + [path.name for path in runs.rglob("*.damaged*")]


def experiment(kind: str, kills: int, seed: int, out: Path) -> dict[str, Any]:
    """Kills at random moments of a run's own length; which of them landed, and what became of the records."""
    chance = random.Random(f"{kind}-{seed}")
    out.mkdir(parents=True, exist_ok=True)
    words: tuple[str, ...] = RUN
    if kind == "sweep":
        (out / "suite.yaml").write_text(SUITE)
        words = ("sweep", str(out / "suite.yaml"), "--json")
    began = time.monotonic()
    code = finish(words, out / "reference", out / "io")
    length = time.monotonic() - began
    reference = content(out / "reference")
    report: dict[str, Any] = {"kind": kind, "seed": seed, "kills": 0, "landed": 0, "folders": 0, "wrong": []}
    if code or not reference:
        return report | {"wrong": [f"the undisturbed {kind} ended with {code}"]}
    while report["kills"] < kills:
        runs = out / f"runs-{report['folders']}"
        report["folders"] += 1
        for _ in range(min(KILLS_PER_FOLDER, kills - report["kills"])):
            pid = start(words, runs, out / "io")
            time.sleep(chance.uniform(0, length))
            victim = chance.choice(descendants(pid)) if kind == "sweep" else pid
            report["kills"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            report["landed"] += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
        code = finish(words, runs, out / "io")
        if code:
            report["wrong"].append(f"{runs.name}: the last one ended with {code}: {(out / 'io' / 'err').read_text()}")
        if content(runs) != reference:
            report["wrong"].append(f"{runs.name}: its records differ from an undisturbed run's")
        if left := leftovers(runs):
            report["wrong"].append(f"{runs.name}: left {left}")
    return report


def together(count: int, out: Path) -> dict[str, Any]:
    """As many processes at once on one store, two cells among them."""
    out.mkdir(parents=True, exist_ok=True)
    cells = (RUN, (*RUN, "--seed", "1"))
    for words in cells:
        finish(words, out / "reference", out / "io")
    pids = [start(cells[n % 2], out / "runs", out / f"io-{n}") for n in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    wrong = [] if content(out / "runs") == content(out / "reference") else ["records differ from those made alone"]
    wrong += [f"exit codes {codes}"] if any(codes) else []
    wrong += [f"left {left}"] if (left := leftovers(out / "runs")) else []
    return {"kind": "together", "processes": count, "records": len(content(out / "runs")), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["run", "sweep", "together"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from tests import forks

    for name in forks.LIBRARIES:
        importlib.import_module(name)
    out = options.out.absolute()
    if options.kind == "together":
        report = together(options.kills, out)
    else:
        report = experiment(options.kind, options.kills, options.seed, out)
    print(json.dumps(report))
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
