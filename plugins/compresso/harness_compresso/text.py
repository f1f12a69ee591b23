"""Training text: windows of the run's calibration text, each with a prompt before it if one is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import Context, Unsupported
from harness.evaluation.texts import tokenize
from harness.models.tasks.text import next_token_loss
from harness.pruning.training.loop import check_loss


@dataclass
class Text:
    """Rows of token ids. The last `length` ids of a row are text; those before are read but not learned."""

    rows: Tensor
    length: int
    trained: Callable[[int], None] = lambda _: None

    def loss(self, model: Any, rows: Tensor, step: int) -> Tensor:
        """The language loss on the text of these rows."""
        rows = rows.to(model.device)
        logits = model(rows, use_cache=False, logits_to_keep=self.length).logits
        loss = next_token_loss(logits, rows[:, -self.length :])
        check_loss(loss.item(), step, model, rows)
        self.trained(self.length * len(rows))
        return loss


def training_text(ctx: Context, samples: int, length: int, prompt: str) -> Text:
    """Calibration windows of `length` tokens, each after the prompt if it is not empty."""
    assert ctx.calibration is not None
    windows = ctx.calibration(samples, length)
    if not prompt:
        return Text(windows, windows.shape[1], ctx.trained)
    if ctx.tokenizer is None:
        raise Unsupported("a prompt needs the model's tokenizer, and there is none", "give --set prompt=")
    prompt_ids = tokenize(ctx.tokenizer, [prompt]).expand(len(windows), -1)
    start = 1 if ctx.anatomy.needs_bos else 0  # BOS stays the first token of a row
    rows = torch.cat([windows[:, :start], prompt_ids, windows[:, start:]], dim=1)
    return Text(rows, windows.shape[1], ctx.trained)
