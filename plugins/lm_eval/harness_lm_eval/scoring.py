"""Answers the passes of `packing` with a transformers decoder: log-likelihoods, and whether greedy choice agrees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from harness.system.process import out_of_memory
from harness_lm_eval.packing import Branch, Node, Request, planned

CAPACITY = {"cpu": 384, "cuda": 4096}  # tokens of a pass: enough to keep the kernels busy, few enough for the mask
LOGITS = 64 << 20  # values of float32 that one look at the vocabulary may take


@dataclass
class Scorer:
    """One model. Fills what memory allows: where a pass does not fit, its capacity is halved for all that follow."""

    model: Any
    capacity: int = 0
    halved: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.capacity = self.capacity or CAPACITY.get(self.model.device.type, CAPACITY["cpu"])

    def score(
        self, requests: Sequence[Request], told: Callable[[int, int], None] = lambda *_: None
    ) -> list[tuple[float, bool]]:
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        due, done = [len(request.targets) for request in requests], 0
        while left := [at for at, tokens in enumerate(due) if tokens]:
            try:
                for at in left:  # a request whose passes were broken off begins anew
                    sums[at], greedy[at], due[at] = 0.0, True, len(requests[at].targets)
                for number, value, agrees in self._answers(planned([requests[at] for at in left], self.capacity)):
                    at = left[number]
                    sums[at] += value
                    greedy[at] &= agrees
                    due[at] -= 1
                    if not due[at]:
                        done += 1
                        told(done, len(due))
                if any(due):
                    raise AssertionError("the plan left requests without an answer")
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.capacity == 1:
                    raise
                error.__traceback__ = None  # its frames hold what did not fit
                self.capacity = max(self.capacity // 2, 1)
                self.halved.append(self.capacity)
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
        return list(zip(sums, greedy, strict=True))

    @torch.inference_mode()
    def _answers(self, branch: Branch, past: Any = None) -> Iterator[tuple[int, float, bool]]:
        if branch.stem:
            past = self._fork(past)
            yield from self._pass([_chain(branch.stem)], past)
        for nodes in branch.passes:
            yield from self._pass(nodes, self._fork(past) if past is not None else None)
        for further in branch.branches:
            yield from self._answers(further, past)

    def _fork(self, past: Any) -> Any:
        """A cache that begins with the same keys and values, which stay as they are."""
        if past is None:
            return DynamicCache(config=self.model.config)
        return DynamicCache([(layer.keys, layer.values) for layer in past.layers], config=self.model.config)

    def _pass(self, nodes: Sequence[Node], past: Any) -> Iterator[tuple[int, float, bool]]:
        device = self.model.device
        laid = [node for top in nodes for node in top.walk()]
        starts = dict(zip(map(id, laid), itertools.accumulate([0, *(len(node.tokens) for node in laid)]), strict=False))
        seen = nodes[0].start  # what the cache holds
        tokens = torch.tensor([token for node in laid for token in node.tokens])
        asked = {starts[id(node)] + offset: wanted for node in laid for offset, wanted in sorted(node.asked.items())}
        kept = torch.tensor(sorted(asked) or [len(tokens) - 1])
        found = self.model(
            input_ids=tokens[None].to(device),
            position_ids=torch.cat([torch.arange(n.start, n.start + len(n.tokens)) for n in laid])[None].to(device),
            attention_mask=None if len(laid) == 1 else self._mask(laid, starts, len(tokens), seen),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=kept.to(device),
        ).logits[0]
        rows = list(asked.values())
        step = max(LOGITS // found.shape[-1], 1)
        for first in range(0, len(rows), step):
            likely = torch.log_softmax(found[first : first + step].float(), dim=-1)
            best = likely.argmax(dim=-1).tolist()
            pairs = [(at, *pair) for at, wanted in enumerate(rows[first : first + step]) for pair in wanted]
            places = torch.tensor([[at, token] for at, _, token in pairs], device=device)
            values = likely[places[:, 0], places[:, 1]].tolist()
            for (at, number, token), value in zip(pairs, values, strict=True):
                yield number, value, best[at] == token

    def _mask(self, laid: Sequence[Node], starts: dict[int, int], width: int, seen: int) -> Any:
        """Each token sees the cache, its own path, and itself. Parents come before their children."""
        sees = torch.zeros(width, width, dtype=torch.bool)
        for node in laid:
            start = starts[id(node)]
            end = start + len(node.tokens)
            sees[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            for child in node.children:
                begin = starts[id(child)]
                sees[begin : begin + len(child.tokens), :end] = sees[end - 1, :end]
        dtype, device = self.model.dtype, self.model.device
        mask = torch.zeros(1, 1, width, seen + width, dtype=dtype, device=device)
        mask[0, 0, :, seen:].masked_fill_(~sees.to(device), torch.finfo(dtype).min)
        return mask


def _chain(stem: Sequence[Node]) -> Node:
    """One beginning after the other, as one node: no mask is needed."""
    first = stem[0].start
    asked = {node.start - first + offset: wanted for node in stem for offset, wanted in node.asked.items()}
    return Node(first, tuple(token for node in stem for token in node.tokens), [], asked)
