"""Benchmarks through the shared scorer beside lm-eval's stock class: the same answers, and how many times the CPU time.

    uv run pytest benchmarks/speed/test_benchmarks.py

Both classes score the same requests of the same dense model in one process, one thread, fp32; the stock class at both
batch sizes, of which the better counts. DOCUMENTS=20 is a quick look; benchmarks.md is written by a whole run of 200.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

os.environ.setdefault("OMP_NUM_THREADS", "1")
MODEL, SUBJECTS = "smollm2-135m", ("anatomy", "astronomy", "marketing", "philosophy", "virology")
DOCUMENTS = int(os.environ.get("DOCUMENTS", "200"))
BATCHES = (1, 8)
NAMES = ("hellaswag", "arc_easy", "piqa", "openbookqa", "winogrande", "mmlu")
LEAST = {"hellaswag": 1.4, "arc_easy": 1.5, "mmlu": 3.5}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    found: list[dict[str, Any]] = []
    yield found
    if len(found) == len(NAMES) and DOCUMENTS >= 200:
        text = tabulate(found, headers="keys", tablefmt="github", disable_numparse=True)
        about = (
            f"{DOCUMENTS} documents each ({MODEL}, fp32, one thread; mmlu: {DOCUMENTS // len(SUBJECTS)} of each of "
            f"{', '.join(SUBJECTS)}, five examples before each question). CPU seconds of tokenising and scoring, the "
            f"model loaded; the stock class at its better batch size of {BATCHES[0]} and {BATCHES[1]}. *Shared* is how "
            "many times the stock class computes each different token: the limit of what sharing can gain. *Apart* is "
            "the largest difference between two log-likelihoods."
        )
        page = f"# Benchmarks beside lm-eval's stock class\n\n{about}\n\n{text}\n"
        (HERE / "benchmarks.md").write_text(page, encoding="utf-8")


@cache
def opened() -> tuple[Any, Any]:
    from harness.cell import planning
    from harness.cell.request import Request
    from harness.models.saved import folders
    from harness.system import process

    process.prepare("fp32")
    plan = planning.make(Request("dense", model=MODEL, device="null", evaluators=("footprint",)))
    plan = planning.with_weights(plan)
    assert plan.folder is not None
    return folders.read(plan.folder, "fp32"), folders.tokenizer(plan.folder)


def asked(name: str) -> tuple[list[Any], list[tuple[Any, Any, list[Any]]]]:
    """All requests of a benchmark, and which of them belong to a document."""
    from harness.resolve import evaluations

    label = f"mmlu:subjects={'+'.join(SUBJECTS)}" if name == "mmlu" else name
    (evaluation,), _ = evaluations([label], "quick")
    documents = [(task, doc, requests) for _, task, doc, requests in evaluation.build().questions(DOCUMENTS)]
    return [one for *_, requests in documents for one in requests], documents


def tokens(lm: Any, requests: list[Any]) -> tuple[int, int]:
    """What the stock class reads, a row per request or per group of one-token choices; what is different of it."""
    rows = set()
    for one in requests:
        context, continuation = lm._encode_pair(*one.args)
        rows.add(tuple((context + continuation)[:-1]))
    from harness_lm_eval.packing import Request, tree

    return sum(map(len, rows)), tree([Request(row, row[:1]) for row in rows]).size


def spent(work: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


@pytest.mark.parametrize("name", NAMES)
def test_benchmark(name, rows):
    from harness_lm_eval.model import SharedLM
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = opened()
    requests, documents = asked(name)
    ours = SharedLM(model, tokenizer)
    read, different = tokens(ours, requests)
    ours.loglikelihood(requests[:8], disable_tqdm=True)  # the first passes open the weights
    ours_s, found = spent(lambda: ours.loglikelihood(requests, disable_tqdm=True))
    stock_s = {}
    for size in BATCHES:
        stock = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size)
        stock_s[size], wanted = spent(lambda stock=stock: stock.loglikelihood(requests, disable_tqdm=True))
    better = min(stock_s, key=lambda size: stock_s[size])
    apart = max(abs(one - other) for (one, _), (other, _) in zip(found, wanted, strict=True))
    assert apart < 1e-3
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    at, changed = 0, 0
    for task, doc, own in documents:
        mine, theirs = (task.process_results(doc, answers[at : at + len(own)]) for answers in (found, wanted))
        changed += mine != theirs
        at += len(own)
    assert changed == 0
    gain = stock_s[better] / ours_s
    rows.append(
        {
            "benchmark": name,
            "requests": len(requests),
            "stock, CPU s": f"{stock_s[better]:.0f} (batch {better})",
            "shared, CPU s": f"{ours_s:.0f}",
            "gain": f"{gain:.2f}x",
            "shared": f"{read / different:.2f}x",
            "apart": f"{apart:.0e}",
            "choices changed": changed,
        }
    )
    assert gain > LEAST.get(name, 1.0)
