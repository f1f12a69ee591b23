"""Greedy continuations by transformers' `generate`, and the loss of a model on a continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness import Context, HarnessError
from harness.system.process import out_of_memory

Row = list[int]


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that begin and end a text. They are those of the dense model, whichever model writes."""

    begin: int | None
    ends: tuple[int, ...]

    @classmethod
    def of(cls, ctx: Context) -> SpecialTokens:
        """The special tokens of the run's dense model. BOS begins a text if the tokenizer or the family says so."""
        bos = ctx.tokenizer.bos_token_id
        begins = ctx.anatomy.needs_bos or bos in ctx.tokenizer("").input_ids
        eos = ctx.anatomy.config.get("eos_token_id")  # a token, a list of tokens, or None
        ends = {ctx.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        return cls(bos if begins else None, tuple(sorted(ends)))

    def prompt(self, tokenizer: Any, text: str) -> Row:
        """The tokens of a prompt."""
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return list(ids) if self.begin is None else [self.begin, *ids]

    def body(self, row: Row) -> Row:
        """A continuation without the token that ended it."""
        return row[:-1] if row and row[-1] in self.ends else row


def greedy(
    model: Any,
    prompts: Sequence[Row],
    special: SpecialTokens,
    tokens: int,
    batch: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[Row], int]:
    """Greedy continuations of the prompts, and the batch size that fitted into memory.

    A continuation has at most `tokens` tokens, including the one that ended it.
    """
    import torch

    rows: list[Row] = []
    while len(rows) < len(prompts):
        batch_rows = None
        try:
            batch_rows = _write_batch(model, prompts[len(rows) : len(rows) + batch], special, tokens)
        except (MemoryError, RuntimeError) as error:
            if batch == 1 or not out_of_memory(error):
                raise
        if batch_rows is None:  # outside the handler, whose traceback keeps the tensors that filled the memory
            batch //= 2
            torch.cuda.empty_cache()
            continue
        rows += batch_rows
        on_progress(len(rows))
    return rows, batch


def _write_batch(model: Any, prompts: Sequence[Row], special: SpecialTokens, tokens: int) -> list[Row]:
    """Continuations of a batch. Prompts are padded on the left; `generate` computes positions from the mask."""
    import torch
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    pad = special.ends[0] if special.ends else 0
    gaps = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=list(special.ends) or None, pad_token_id=pad
    )
    with generation_settings(model, settings):
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=[check_finite],
        )
    return [_up_to_end(row, special) for row in output[:, width:].tolist()]


def _up_to_end(row: Row, special: SpecialTokens) -> Row:
    """The row up to its end token. Behind it there is padding, if other rows of the batch are longer."""
    return next((row[: at + 1] for at, token in enumerate(row) if token in special.ends), row)


@contextmanager
def generation_settings(model: Any, settings: Any) -> Iterator[None]:
    """Replace the model's own generation settings inside the block.

    `generate` takes everything that it is not told from them, such as sampling, penalties and suppressed tokens.
    """
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def check_finite(_: Any, logits: Any) -> Any:
    """A logits processor that raises if logits are not finite. Without it, argmax would still return a token."""
    if not logits.isfinite().all():
        raise HarnessError("the model's logits are not finite numbers", "ask for a smaller ratio, or for --dtype fp32")
    return logits


def mean_loss(model: Any, prompt: Row, row: Row) -> float:
    """The mean negative log-likelihood of a continuation, including its end token."""
    import torch

    ids = torch.tensor(prompt + row, device=model.device)
    with torch.inference_mode():
        logits = model(ids[None], use_cache=False, logits_to_keep=len(row) + 1).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[len(prompt) :]))
