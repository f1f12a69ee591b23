"""Perplexity over fixed windows of a text: its rows, joined by blank lines and cut into windows of equal length."""

from __future__ import annotations

from typing import Any

from harness.api import Context, Score, Scores
from harness.errors import Unsupported, UsageError
from harness.evaluation import texts


class Perplexity:
    text: str

    def __init__(self, window: int = 512) -> None:
        if window < 2:
            raise UsageError(f"a window of {window} tokens predicts nothing", "give window=512")
        self.window = window

    def evaluate(self, model: Any, ctx: Context) -> Scores:
        import torch

        most = ctx.anatomy.config.get("max_position_embeddings")
        if most is not None and self.window > most:
            raise Unsupported(f"the model sees {most} tokens, a window is {self.window}", f"give window={most}")
        text = texts.read(self.text)
        tokens = texts.tokenize(ctx.tokenizer, text.documents, text.join)
        windows = tokens[: len(tokens) // self.window * self.window].reshape(-1, self.window)[: ctx.limit]
        if not len(windows):
            raise Unsupported(f"{self.text} has no window of {self.window} tokens", "give a smaller window")
        bos = ctx.tokenizer.bos_token_id if ctx.anatomy.needs_bos else None
        losses = {}
        with torch.inference_mode():
            for at, window in enumerate(windows):
                losses[f"{self.text}/{at}"] = self._loss(model, window, bos)
                ctx.progress(at + 1, len(windows))
        details = {
            "tokens": len(tokens),
            "windows": len(windows),
            "window": self.window,
            "stride": self.window,
            "tokens_scored": len(windows) * (self.window - (bos is None)),
            "bos": bos,
            "data": text.identity,
            **self._protocol(text, ctx.tokenizer),
        }
        return {"": Score(losses, higher_is_better=False, scale="exp-mean", details=details)}

    def _protocol(self, text: texts.Text, tokenizer: Any) -> dict[str, Any]:
        """What else decides whether figures on this text compare, for the record."""
        return {}

    def _loss(self, model: Any, window: Any, bos: int | None) -> float:
        import torch

        row = window if bos is None else torch.cat([torch.tensor([bos]), window])
        row = row.to(model.device)
        logits = model(row[None], use_cache=False).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits.float(), row[1:]))


class Passages(Perplexity):
    text = "passages"


class Wikitext2(Perplexity):
    text = "wikitext2"


class C4(Perplexity):
    text = "c4"


class Ptb(Perplexity):
    """Lines as published, joined by one blank. `<unk>` is ordinary text and counts."""

    text = "ptb"

    def __init__(self, window: int = 512, split: str = "test") -> None:
        super().__init__(window)
        self.text = "ptb" if split == "test" else "ptb-validation"

    def identity(self, fetch: bool) -> dict[str, Any]:
        return {self.text: texts.identity(self.text, texts.EVALUATE, fetch)}

    def _protocol(self, text: texts.Text, tokenizer: Any) -> dict[str, Any]:
        unknown = sum(line.count("<unk>") for line in text.documents)
        how = "one special token" if "<unk>" in tokenizer.all_special_tokens else "text"
        return {"join": "one blank", "unk": f"{unknown} times <unk>, as {how}"}
