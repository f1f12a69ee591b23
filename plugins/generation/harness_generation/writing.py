"""Greedy text of a model, by transformers' own `generate`, and how likely another model finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness import Context, HarnessError
from harness.system.process import out_of_memory

Row = list[int]


@dataclass(frozen=True)
class Marks:
    """The tokens that begin and end a text: those of the dense model, whichever model writes."""

    begin: int | None
    ends: tuple[int, ...]

    @classmethod
    def of(cls, ctx: Context) -> Marks:
        """A text begins as the tokenizer begins one, and with BOS in families to which it is no text without."""
        bos = ctx.tokenizer.bos_token_id
        begins = ctx.anatomy.needs_bos or bos in ctx.tokenizer("").input_ids
        told = ctx.anatomy.config.get("eos_token_id")  # one, several or none
        ends = {ctx.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
        return cls(bos if begins else None, tuple(sorted(ends)))

    def prompt(self, tokenizer: Any, text: str) -> Row:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return list(ids) if self.begin is None else [self.begin, *ids]

    def body(self, row: Row) -> Row:
        """What was written, without the token that ended it."""
        return row[:-1] if row and row[-1] in self.ends else row


def greedy(
    model: Any,
    prompts: Sequence[Row],
    marks: Marks,
    tokens: int,
    batch: int,
    told: Callable[[int], None] = lambda _: None,
) -> tuple[list[Row], int]:
    """The likeliest next token, again and again: at most so many per prompt, with the end if it came; and the batch
    that memory allowed."""
    import torch

    rows: list[Row] = []
    while len(rows) < len(prompts):
        made = None
        try:
            made = _together(model, prompts[len(rows) : len(rows) + batch], marks, tokens)
        except (MemoryError, RuntimeError) as error:
            if batch == 1 or not out_of_memory(error):
                raise
        if made is None:  # outside the handler, whose traceback holds on to what filled the memory
            batch //= 2
            torch.cuda.empty_cache()
            continue
        rows += made
        told(len(rows))
    return rows, batch


def _together(model: Any, prompts: Sequence[Row], marks: Marks, tokens: int) -> list[Row]:
    """Padded on the left, so that all write at the same column; `generate` counts positions from the mask."""
    import torch
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    pad = marks.ends[0] if marks.ends else 0
    gaps = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=list(marks.ends) or None, pad_token_id=pad
    )
    with writes_by(model, plain):
        made = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=plain,
            logits_processor=[numbers],
        )
    return [_whole(row, marks) for row in made[:, width:].tolist()]


def _whole(row: Row, marks: Marks) -> Row:
    """Up to its end; the others of its batch may have gone on."""
    return next((row[: at + 1] for at, token in enumerate(row) if token in marks.ends), row)


@contextmanager
def writes_by(model: Any, settings: Any) -> Iterator[None]:
    """A model's own settings fill whatever is not said: sampling, penalties, words it may not write."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def numbers(_: Any, logits: Any) -> Any:
    """Stands among the processors of `generate`: the largest of what is no number is a token all the same."""
    if not logits.isfinite().all():
        raise HarnessError("the model's logits are not finite numbers", "ask for a smaller ratio, or for --dtype fp32")
    return logits


def surprise(model: Any, prompt: Row, row: Row) -> float:
    """The mean negative log-likelihood of a continuation, its end included."""
    import torch

    ids = torch.tensor(prompt + row, device=model.device)
    with torch.inference_mode():
        logits = model(ids[None], use_cache=False, logits_to_keep=len(row) + 1).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[len(prompt) :]))
