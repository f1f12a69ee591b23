"""lm-eval's Hugging Face class with shared tokens computed once. Tokenising and truncation stay stock."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness.errors import HarnessError, Unsupported
from harness.models.architectures.lookup import architecture_for
from harness_lm_eval.packing import Request
from harness_lm_eval.scoring import Scorer


class SharedLM(HFLM):
    """Scores continuations like `HFLM`; what is longer than a sliding window is left to it."""

    def __init__(self, model: Any, tokenizer: Any, told: Callable[[int, int], None] = lambda *_: None) -> None:
        log = logging.getLogger("lm_eval.models.huggingface")
        before, log.level = log.level, logging.ERROR  # it warns of a model that is no name
        try:
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        finally:
            log.level = before
        self.told = told
        self.scorer = Scorer(model)
        self.truncated = 0
        kind = architecture_for(model)
        windows = kind.windows(kind.anatomy(kind.config(model))).values()
        self.window = min((window for window in windows if window), default=None)
        self.slides = False  # whether a row was longer than that

    @property
    def prefix_token_id(self) -> int:
        found = super().prefix_token_id
        if found is None:
            raise Unsupported(
                "the tokenizer has neither a BOS nor an EOS token to begin a text with",
                "set one in its tokenizer_config.json",
            )
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], *args: Any, **more: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._request(context, continuation) for _, context, continuation in requests]
        self.slides = self.window is not None and any(len(request.row) > self.window for request in asked)
        if self.slides:  # what a token sees there is no path of a tree
            found = super()._loglikelihood_tokens(requests, *args, **more)
        else:
            found = self.scorer.score(asked, self.told)
        for (words, *_), (value, _) in zip(requests, found, strict=True):
            if not math.isfinite(value):
                raise HarnessError(
                    f"the model's log-likelihood of {words[1]!r} is {value}: it overflows or holds NaN",
                    "ask for a smaller cut, or for --dtype fp32",
                )
        return found

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        if not context or not continuation:
            which = "continuation" if context else "context"
            raise Unsupported(f"a {which} has no tokens of its own", "look at the rows, or take another tokenizer")
        if len(continuation) > self.max_length:
            raise Unsupported(
                f"a continuation has {len(continuation)} tokens, the model sees {self.max_length}",
                "leave this task out",
            )
        whole = context + continuation
        self.truncated += len(whole) > self.max_length + 1
        row = whole[-(self.max_length + 1) :][:-1]
        return Request(tuple(row), tuple(continuation))
