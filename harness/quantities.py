"""The words of a request: how much may remain, of what, under which load."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError, one_line

Shape = Mapping[str, int]
"""Units kept per site; a site that is not named keeps all of them."""


@dataclass(frozen=True)
class Budget:
    """What may remain: `ratio` of the prunable parameters gone, or a latency (`x` of dense, or `ms`)."""

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
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(x|ms)", text.strip())
        if not found or not float(found[1]) > 0 or (found[2] == "x" and float(found[1]) > 1):
            raise UsageError(
                one_line(f"latency {text[:100]!r} is not a budget"), "give a share of dense (0.7x) or a time (25ms)"
            )
        return Budget("latency", float(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}{self.unit}"


@dataclass(frozen=True)
class Workload:
    """`prefill:BxS` (time to first token), `decode:BxC` (one token at context C), `image:BxP`."""

    kind: str
    batch: int
    size: int

    @staticmethod
    def parse(text: str) -> Workload:
        found = re.fullmatch(r"(prefill|decode|image):([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text.strip())
        if not found:
            raise UsageError(
                one_line(f"workload {text[:100]!r} is not known"), "give prefill:BATCHxTOKENS or decode:BATCHxCONTEXT"
            )
        return Workload(found[1], int(found[2]), int(found[3]))

    @property
    def items(self) -> int:
        """What one pass takes in: all tokens of the prompts, one token per sequence when decoding, or images."""
        return self.batch * (self.size if self.kind == "prefill" else 1)

    def __str__(self) -> str:
        return f"{self.kind}:{self.batch}x{self.size}"


def figures(told: Mapping[str, Any]) -> dict[str, str]:
    """Plain facts as a table shows them: `binary_bytes` is `binary`, in MB."""
    texts = {}
    for name, value in told.items():
        if name.endswith("_bytes") and isinstance(value, int | float):
            texts[name.removesuffix("_bytes").replace("_", " ")] = f"{value / 1e6:,.1f} MB"
        else:
            texts[name.replace("_", " ")] = str(value)
    return texts
