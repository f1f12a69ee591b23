"""The evaluator: the dense and the pruned model continue the same prompts, and their texts are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import Context, Score, Scores, Unsupported
from harness_generation.prompts import IDENTITY, PROMPTS
from harness_generation.text import distinct, repetition, rouge_l
from harness_generation.writing import Row, SpecialTokens, greedy, mean_loss

SAMPLES, LENGTH = 3, 240  # pairs of texts in the record, and characters of each


@dataclass
class Generation:
    tokens: int = 48
    batch: int = 20

    def identity(self, fetch: bool) -> dict[str, Any]:
        return {"prompts": IDENTITY}

    def evaluate(self, model: Any, ctx: Context) -> Scores:
        if ctx.dense is None:
            raise Unsupported(
                "generation compares with the dense model, which this run does not provide", "use harness run"
            )
        special = SpecialTokens.of(ctx)
        prompts = [special.prompt(ctx.tokenizer, text) for text in PROMPTS[: ctx.limit]]
        self._check_length(max(map(len, prompts)), ctx)
        # The pruned model comes first, the dense one last; they may be the same.
        writers = [model] if ctx.dense is model else [model, ctx.dense]
        total, done, batch = len(prompts) * (len(writers) + 1), 0, self.batch
        continuations: list[list[Row]] = []
        for writer in writers:
            rows, batch = greedy(
                writer, prompts, special, self.tokens, batch, lambda at, done=done: ctx.progress(done + at, total)
            )
            continuations.append(rows)
            done += len(rows)
        losses = []
        for prompt, row in zip(prompts, continuations[0], strict=True):
            losses.append(mean_loss(ctx.dense, prompt, row))
            ctx.progress(done + len(losses), total)
        bodies = [[special.body(row) for row in rows] for rows in continuations]
        texts = [[ctx.tokenizer.decode(body, skip_special_tokens=True) for body in rows] for rows in bodies]
        details = {
            "prompts": IDENTITY,
            "tokens": self.tokens,
            "batch": batch,
            "bos": special.begin,
            "tokens_written": statistics.fmean(map(len, bodies[0])),
            "ended": sum(row != body for row, body in zip(continuations[0], bodies[0], strict=True)),
            "empty": bodies[0].count([]),
        }
        similarities = [rouge_l(text, dense) for text, dense in zip(texts[0], texts[-1], strict=True)]
        pairs = side_by_side(texts[-1], texts[0]) if len(texts) > 1 else []
        notes = [f"prompts did not fit into memory {self.batch} at a time; {batch} did"] if batch < self.batch else []

        def score(figures: Sequence[float], higher_is_better: bool, scale: str = "mean", **more: Any) -> Score:
            documents = {f"generation/{at}": figure for at, figure in enumerate(figures)}
            return Score(documents, higher_is_better, scale, details, notes, **more)

        return {
            "rouge_l": score(similarities, True, texts=pairs),
            "by_dense": score(losses, False, "exp-mean"),
            "distinct_1": score([distinct(body, 1) for body in bodies[0]], True),
            "distinct_2": score([distinct(body, 2) for body in bodies[0]], True),
            "repetition": score([repetition(body) for body in bodies[0]], False),
        }

    def _check_length(self, longest: int, ctx: Context) -> None:
        """Raise Unsupported if the longest prompt and its continuation exceed the model's positions."""
        most = ctx.anatomy.config.get("max_position_embeddings")
        if most is not None and longest + self.tokens > most:
            raise Unsupported(
                f"a prompt of {longest} tokens and {self.tokens} after it are more than the {most} of this model",
                f"--eval generation:tokens={most - longest}" if longest < most else "",
            )


def side_by_side(dense: Sequence[str], pruned: Sequence[str]) -> list[dict[str, str]]:
    """The first few prompts with both texts, for the record."""
    rows = list(zip(PROMPTS, dense, pruned, strict=False))[:SAMPLES]
    return [dict(zip(("prompt", "dense", "pruned"), map(shorten, row), strict=True)) for row in rows]


def shorten(text: str) -> str:
    """The text, cut to LENGTH characters."""
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
