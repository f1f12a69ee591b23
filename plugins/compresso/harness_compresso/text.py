"""Training text: windows of the run's calibration text, with a prompt before each if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import Context, Unsupported
from harness.evaluation.texts import tokenize
from harness.models.tasks.text import next_token_loss
from harness.pruning.training.loop import stop_if_lost


@dataclass
class Text:
    """Rows of token ids; the last `own` of each are text, what stands before them is read and not learned."""

    rows: Tensor
    own: int
    trained: Callable[[int], None] = lambda _: None

    def loss(self, model: Any, rows: Tensor, step: int) -> Tensor:
        rows = rows.to(model.device)
        logits = model(rows, use_cache=False, logits_to_keep=self.own).logits
        found = next_token_loss(logits, rows[:, -self.own :])
        stop_if_lost(found.item(), step, model, rows)
        self.trained(self.own * len(rows))
        return found


def training_text(ctx: Context, samples: int, length: int, prompt: str) -> Text:
    assert ctx.calibration is not None
    windows = ctx.calibration(samples, length)
    if not prompt:
        return Text(windows, windows.shape[1], ctx.trained)
    if ctx.tokenizer is None:
        raise Unsupported("a prompt needs the model's tokenizer, and there is none", "give --set prompt=")
    said = tokenize(ctx.tokenizer, [prompt]).expand(len(windows), -1)
    first = 1 if ctx.anatomy.needs_bos else 0  # a window's first token is BOS and stays first
    return Text(torch.cat([windows[:, :first], said, windows[:, first:]], dim=1), windows.shape[1], ctx.trained)
