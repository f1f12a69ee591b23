"""Runs the passes of `packing` on a transformers decoder: log-likelihoods, and whether greedy decoding agrees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from harness.system.process import out_of_memory
from harness_lm_eval.packing import Branch, Node, Request, plan_passes

CAPACITY = {"cpu": 384, "cuda": 4096}  # tokens of a pass: enough to keep the kernels busy, few enough for the mask
LOGITS = 64 << 20  # float32 values of logits that are computed at once


@dataclass
class Scorer:
    """Scores requests with one model. If a pass does not fit into memory, the capacity of all later ones is halved."""

    model: Any
    capacity: int = 0
    halved: list[int] = field(default_factory=list)  # the capacity after each halving

    def __post_init__(self) -> None:
        self.capacity = self.capacity or CAPACITY.get(self.model.device.type, CAPACITY["cpu"])

    def score(
        self, requests: Sequence[Request], on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of its targets, and whether greedy decoding would give all of them."""
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        missing, done = [len(request.targets) for request in requests], 0
        while unfinished := [at for at, count in enumerate(missing) if count]:
            try:
                for at in unfinished:  # after an interruption, a request starts anew
                    sums[at] = 0.0
                    greedy[at] = True
                    missing[at] = len(requests[at].targets)
                plan = plan_passes([requests[at] for at in unfinished], self.capacity)
                for number, value, agrees in self._answers(plan):
                    at = unfinished[number]
                    sums[at] += value
                    greedy[at] &= agrees
                    missing[at] -= 1
                    if not missing[at]:
                        done += 1
                        on_progress(done, len(missing))
                if any(missing):
                    raise AssertionError("the plan left requests without an answer")
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.capacity == 1:
                    raise
                error.__traceback__ = None  # its frames hold the tensors that did not fit
                self.capacity = max(self.capacity // 2, 1)
                self.halved.append(self.capacity)
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
        return list(zip(sums, greedy, strict=True))

    @torch.inference_mode()
    def _answers(self, branch: Branch, past: Any = None) -> Iterator[tuple[int, float, bool]]:
        """The answers of a branch's passes: request, log-likelihood of one target, whether it is the greedy choice."""
        if branch.stem:
            past = self._fork(past)
            yield from self._pass([_join(branch.stem)], past)
        for nodes in branch.passes:
            yield from self._pass(nodes, self._fork(past) if past is not None else None)
        for sub_branch in branch.branches:
            yield from self._answers(sub_branch, past)

    def _fork(self, past: Any) -> Any:
        """A new cache that starts with the same keys and values; the old cache is not changed."""
        if past is None:
            return DynamicCache(config=self.model.config)
        return DynamicCache([(layer.keys, layer.values) for layer in past.layers], config=self.model.config)

    def _pass(self, nodes: Sequence[Node], past: Any) -> Iterator[tuple[int, float, bool]]:
        """Run one pass over these nodes and all below them, and yield its answers."""
        device = self.model.device
        # The nodes in the order of the pass, and where the tokens of each start.
        order = [node for top in nodes for node in top.walk()]
        offsets = itertools.accumulate([0, *(len(node.tokens) for node in order)])
        starts = dict(zip(map(id, order), offsets, strict=False))
        cached = nodes[0].start  # tokens in the cache
        tokens = torch.tensor([token for node in order for token in node.tokens])
        # The model computes logits only at the positions with targets.
        targets = {starts[id(node)] + offset: pairs for node in order for offset, pairs in sorted(node.targets.items())}
        positions = torch.tensor(sorted(targets) or [len(tokens) - 1])
        logits = self.model(
            input_ids=tokens[None].to(device),
            position_ids=torch.cat([torch.arange(n.start, n.start + len(n.tokens)) for n in order])[None].to(device),
            attention_mask=None if len(order) == 1 else self._mask(order, starts, len(tokens), cached),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=positions.to(device),
        ).logits[0]
        rows = list(targets.values())
        step = max(LOGITS // logits.shape[-1], 1)
        for first in range(0, len(rows), step):
            likelihoods = torch.log_softmax(logits[first : first + step].float(), dim=-1)
            best = likelihoods.argmax(dim=-1).tolist()
            answers = [(at, *pair) for at, pairs in enumerate(rows[first : first + step]) for pair in pairs]
            indices = torch.tensor([[at, token] for at, _, token in answers], device=device)
            values = likelihoods[indices[:, 0], indices[:, 1]].tolist()
            for (at, number, token), value in zip(answers, values, strict=True):
                yield number, value, best[at] == token

    def _mask(self, order: Sequence[Node], starts: dict[int, int], width: int, cached: int) -> Any:
        """The attention mask: each token sees the cache, the path to its node, and its node up to itself.

        Parents come before their children in `order`.
        """
        visible = torch.zeros(width, width, dtype=torch.bool)
        for node in order:
            start = starts[id(node)]
            end = start + len(node.tokens)
            visible[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            for child in node.children:
                child_start = starts[id(child)]
                visible[child_start : child_start + len(child.tokens), :end] = visible[end - 1, :end]
        dtype, device = self.model.dtype, self.model.device
        mask = torch.zeros(1, 1, width, cached + width, dtype=dtype, device=device)
        mask[0, 0, :, cached:].masked_fill_(~visible.to(device), torch.finfo(dtype).min)
        return mask


def _join(stem: Sequence[Node]) -> Node:
    """The nodes of a stem as one node, which needs no mask."""
    first = stem[0].start
    targets = {node.start - first + offset: pairs for node in stem for offset, pairs in node.targets.items()}
    return Node(first, tuple(token for node in stem for token in node.tokens), [], targets)
