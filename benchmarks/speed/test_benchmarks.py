"""Compares our scorer for benchmarks with lm-eval's own model class: the answers must agree, and ours must be faster.

    uv run pytest benchmarks/speed/test_benchmarks.py

Both classes score the same requests with the same dense model in one process, one thread, fp32. lm-eval's class runs at
both batch sizes, and the faster one counts. DOCUMENTS=20 makes a short run. Only a full run of 200 documents writes
benchmarks.md.
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
LEAST_GAIN = {"hellaswag": 1.4, "arc_easy": 1.5, "mmlu": 3.5}
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    lines: list[dict[str, Any]] = []
    yield lines
    if len(lines) == len(NAMES) and DOCUMENTS >= 200:
        text = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
        about = (
            f"{DOCUMENTS} documents each ({MODEL}, fp32, one thread; mmlu: {DOCUMENTS // len(SUBJECTS)} of each of "
            f"{', '.join(SUBJECTS)}, five examples before each question). Times are CPU seconds of tokenising and "
            "scoring, without loading the model. *Stock* is lm-eval's own class, at the faster of the batch sizes "
            f"{BATCHES[0]} and {BATCHES[1]}. *Shared, CPU s* is our scorer, which computes tokens that requests share "
            "only once. *Shared* is how many times the stock class computes each different token, which limits the "
            "gain. *Apart* is the largest difference between two log-likelihoods."
        )
        page = f"# Benchmarks compared with lm-eval's stock class\n\n{about}\n\n{text}\n"
        (FOLDER / "benchmarks.md").write_text(page, encoding="utf-8")


@cache
def model_and_tokenizer() -> tuple[Any, Any]:
    from harness.cell import planning
    from harness.cell.request import Request
    from harness.models.saved import folders
    from harness.system import process

    process.prepare("fp32")
    plan = planning.make_plan(Request("dense", model=MODEL, device="null", evaluators=("footprint",)))
    plan = planning.with_weights(plan)
    assert plan.folder is not None
    return folders.read(plan.folder, "fp32"), folders.tokenizer(plan.folder)


def load_requests(name: str) -> tuple[list[Any], list[tuple[Any, Any, list[Any]]]]:
    """All requests of a benchmark, and each document with its task and its requests."""
    from harness.resolve import resolve_evaluators

    label = f"mmlu:subjects={'+'.join(SUBJECTS)}" if name == "mmlu" else name
    (evaluation,), _ = resolve_evaluators([label], "quick")
    documents = [(task, doc, requests) for _, task, doc, requests in evaluation.build().questions(DOCUMENTS)]
    return [request for *_, requests in documents for request in requests], documents


def count_tokens(lm: Any, requests: list[Any]) -> tuple[int, int]:
    """Tokens that the stock class computes, and how many of them remain when rows share their common beginnings.

    The stock class computes one row per request. Requests that differ only in their last token share a row.
    """
    rows = set()
    for request in requests:
        context, continuation = lm._encode_pair(*request.args)
        rows.add(tuple((context + continuation)[:-1]))
    from harness_lm_eval.packing import Request, tree

    return sum(map(len, rows)), tree([Request(row, row[:1]) for row in rows]).size


def cpu_seconds(work: Any) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@pytest.mark.parametrize("name", NAMES)
def test_benchmark(name, rows):
    from harness_lm_eval.model import SharedLM
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = model_and_tokenizer()
    requests, documents = load_requests(name)
    shared = SharedLM(model, tokenizer)
    computed, different = count_tokens(shared, requests)
    shared.loglikelihood(requests[:8], disable_tqdm=True)  # the first passes read the weights from disk
    shared_s, shared_answers = cpu_seconds(lambda: shared.loglikelihood(requests, disable_tqdm=True))
    stock_s = {}
    for size in BATCHES:
        stock = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size)
        stock_s[size], stock_answers = cpu_seconds(lambda stock=stock: stock.loglikelihood(requests, disable_tqdm=True))
    better = min(stock_s, key=lambda size: stock_s[size])

    # the answers agree: log-likelihoods, whether each choice is the greedy one, and the result of each document
    pairs = list(zip(shared_answers, stock_answers, strict=True))
    difference = max(abs(shared_value - stock_value) for (shared_value, _), (stock_value, _) in pairs)
    assert difference < 1e-3
    assert [greedy for _, greedy in shared_answers] == [greedy for _, greedy in stock_answers]
    start, changed = 0, 0
    for task, doc, own_requests in documents:
        end = start + len(own_requests)
        results = [task.process_results(doc, answers[start:end]) for answers in (shared_answers, stock_answers)]
        changed += results[0] != results[1]
        start = end
    assert changed == 0
    gain = stock_s[better] / shared_s
    rows.append(
        {
            "benchmark": name,
            "requests": len(requests),
            "stock, CPU s": f"{stock_s[better]:.0f} (batch {better})",
            "shared, CPU s": f"{shared_s:.0f}",
            "gain": f"{gain:.2f}x",
            "shared": f"{computed / different:.2f}x",
            "apart": f"{difference:.0e}",
            "choices changed": changed,
        }
    )
    assert gain > LEAST_GAIN.get(name, 1.0)
