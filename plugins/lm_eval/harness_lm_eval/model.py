"""lm-eval's Hugging Face class with shared tokens computed once. Tokenisation and truncation are lm-eval's own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness import HarnessError, Unsupported
from harness.models.architectures.lookup import architecture_for
from harness_lm_eval.packing import Request
from harness_lm_eval.scoring import Scorer


class SharedLM(HFLM):
    """Scores continuations like `HFLM`. Rows longer than a sliding window are scored by `HFLM` itself."""

    def __init__(self, model: Any, tokenizer: Any, on_progress: Callable[[int, int], None] = lambda *_: None) -> None:
        log = logging.getLogger("lm_eval.models.huggingface")
        level = log.level
        log.level = logging.ERROR  # HFLM warns when it gets a model instead of its name
        try:
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        finally:
            log.level = level
        self.on_progress = on_progress
        self.scorer = Scorer(model)
        self.truncated = 0  # number of requests that lost their start
        kind = architecture_for(model)
        windows = kind.windows(kind.anatomy(kind.config(model))).values()
        self.window = min((window for window in windows if window), default=None)  # the shortest sliding window
        self.slides = False  # whether a row was longer than the window

    @property
    def prefix_token_id(self) -> int:
        token = super().prefix_token_id
        if token is None:
            raise Unsupported(
                "the tokenizer has neither a BOS nor an EOS token to begin a text with",
                "set one in its tokenizer_config.json",
            )
        return token

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], *args: Any, **more: Any
    ) -> list[tuple[float, bool]]:
        packed = [self._request(context, continuation) for _, context, continuation in requests]
        self.slides = self.window is not None and any(len(request.row) > self.window for request in packed)
        if self.slides:  # packing assumes that a token sees all tokens before it
            scores = super()._loglikelihood_tokens(requests, *args, **more)
        else:
            scores = self.scorer.score(packed, self.on_progress)
        for (texts, *_), (value, _) in zip(requests, scores, strict=True):
            if not math.isfinite(value):
                raise HarnessError(
                    f"the model's log-likelihood of {texts[1]!r} is {value}: it overflows or holds NaN",
                    "ask for a smaller cut, or for --dtype fp32",
                )
        return scores

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        """The request for the scorer. A row that is too long loses its start, as in HFLM."""
        if not context or not continuation:
            which = "continuation" if context else "context"
            raise Unsupported(f"a {which} has no tokens of its own", "check the rows, or use another tokenizer")
        if len(continuation) > self.max_length:
            raise Unsupported(
                f"a continuation has {len(continuation)} tokens, the model sees {self.max_length}",
                "leave this task out",
            )
        whole = context + continuation
        self.truncated += len(whole) > self.max_length + 1
        row = whole[-(self.max_length + 1) :][:-1]
        return Request(tuple(row), tuple(continuation))
