"""The quantities of a request: budgets, shapes and workloads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UsageError, one_line

Shape = Mapping[str, int]
"""Units kept per site; a site that is not named keeps all of them."""


@dataclass(frozen=True)
class Budget:
    """How much to prune: a `ratio` of the prunable parameters, or down to a latency (`x` of dense, or `ms`)."""

    kind: str
    value: float
    unit: str = ""

    @staticmethod
    def ratio(text: str | float) -> Budget:
        try:
            value = float(text)
        except (ValueError, OverflowError, TypeError):
            value = math.nan
        if not 0 <= value < 1:
            raise UsageError(
                one_line(f"ratio {str(text)[:100]!r} is not a share"),
                "give a number from 0 up to but not including 1: 0.3",
            )
        return Budget("ratio", value)

    @staticmethod
    def latency(text: str) -> Budget:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(x|ms)", text.strip())
        if not match or not float(match[1]) > 0 or (match[2] == "x" and float(match[1]) > 1):
            raise UsageError(
                one_line(f"latency {text[:100]!r} is not a budget"), "give a share of dense (0.7x) or a time (25ms)"
            )
        return Budget("latency", float(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}{self.unit}"


@dataclass(frozen=True)
class Workload:
    """What is timed: `prefill:BxS` (time to first token), `decode:BxC` (one token at context C) or `image:BxP`."""

    kind: str
    batch: int
    size: int

    @staticmethod
    def parse(text: str) -> Workload:
        match = re.fullmatch(r"(prefill|decode|image):([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text.strip())
        if not match:
            raise UsageError(
                one_line(f"workload {text[:100]!r} is not known"), "give prefill:BATCHxTOKENS or decode:BATCHxCONTEXT"
            )
        return Workload(match[1], int(match[2]), int(match[3]))

    @property
    def items(self) -> int:
        """How many items one pass processes: all tokens of the prompts, one token per decoded sequence, or images."""
        return self.batch * (self.size if self.kind == "prefill" else 1)

    def __str__(self) -> str:
        return f"{self.kind}:{self.batch}x{self.size}"
