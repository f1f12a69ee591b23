"""Measures how long `leaderboard`, `status` and `validate` take with ten thousand records.

    uv run pytest benchmarks/speed/test_records.py

The records are copies of a published one with other names and invented scores, and with the same latency. The table in
records.md is written when every command has run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tabulate import tabulate

from harness.evaluation import score_stats
from harness.records.keys import canonical
from harness.records.sample_files import pack
from harness.records.schema import digest, seal

FOLDER = Path(__file__).parent
PUBLISHED = FOLDER.parent.parent / "leaderboards" / "results" / "dilap"
MODELS, DEVICES, PRUNERS, RECOVERIES, DOCUMENTS = 50, 10, 10, 2, 100
COMMANDS = {"leaderboard": ("leaderboard",), "status": ("status",), "validate": ("validate",), "again": ("status",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    (folder / "records").mkdir()
    (folder / "samples").mkdir()
    path = next(path for path in sorted(PUBLISHED.glob("*.json")) if '"status": "ok"' in path.read_text())
    base, generator = json.loads(path.read_text(encoding="utf-8")), random.Random(0)
    for timing in base["latency"].values():
        name = timing["samples"]
        (folder / "samples" / name).write_bytes((PUBLISHED / "samples" / name).read_bytes())
    for model, device in itertools.product(range(MODELS), range(DEVICES)):
        dense_losses = [generator.gauss(3.5, 0.4) for _ in range(DOCUMENTS)]
        for pruner, recovery in itertools.product(range(PRUNERS), range(RECOVERIES)):
            record = json.loads(json.dumps(base))
            record["spec"] |= {"model": f"model-{model}", "device": f"device-{device}"}
            record["spec"] |= {"pruner": f"method-{pruner}", "recovery": ("none", "lora")[recovery], "limit": DOCUMENTS}
            record["artefact"]["weights_updated"] = bool(recovery)
            record["id"] = hashlib.sha256(f"{model} {device} {pruner} {recovery}".encode()).hexdigest()[:24]
            for name, score in record["scores"].items():
                losses = [loss + generator.gauss(0.1 * pruner, 0.2) for loss in dense_losses]
                score |= save_scores(folder, name, losses, score["scale"])
                score |= {"dense": None, "dense_stderr": None, "details": {}}
                for field in ("change", "change_ci95", "dense_samples"):
                    score.pop(field, None)
            record["digest"] = digest(record)
            record["seal"] = seal(record)
            text = json.dumps(record, indent=2, sort_keys=True) + "\n"
            (folder / "records" / f"{record['id']}.json").write_text(text)
    return folder


def save_scores(folder: Path, name: str, values: list[float], scale: str) -> dict:
    """Write the scores of all documents to a side file, and return the fields of a record's score."""
    documents = {f"{name}/{index:03}": value for index, value in enumerate(values)}
    text = canonical({"documents": documents, "scale": scale}).encode()
    file = f"{hashlib.sha256(text).hexdigest()}.json.gz"
    (folder / "samples" / file).write_bytes(pack(text))
    value, stderr = score_stats.estimate(values, scale)
    return {"samples": file, "n": len(values), "value": value, "stderr": stderr}


@pytest.fixture(scope="module")
def rows():
    lines: list[dict[str, str]] = []
    yield lines
    if len(lines) == len(COMMANDS):
        text = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
        count = MODELS * DEVICES * PRUNERS * RECOVERIES
        about = f"{count:,} invented records with two scores of {DOCUMENTS} documents each, on {os.cpu_count()} cores."
        (FOLDER / "records.md").write_text(f"# Many records\n\n{about}\n\n{text}\n", encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_many_records(runs, rows, name, tmp_path):
    arguments = [sys.executable, "-m", "harness", *COMMANDS[name]]
    environment = {**os.environ, "HARNESS_RUNS": str(runs)}
    with (tmp_path / "out").open("w") as out:
        start = time.monotonic()
        child = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
    assert status == 0, (tmp_path / "out").read_text()[-2000:]
    rows.append(
        {
            "command": f"harness {' '.join(COMMANDS[name])}" + (", again" if name == "again" else ""),
            "seconds": f"{seconds:.1f}",
            "CPU s": f"{used.ru_utime + used.ru_stime:.1f}",
            "largest process, MB": f"{used.ru_maxrss / 1e3:.0f}",
        }
    )
