"""What the outputs of all these programs have in common: numbers in words, between noise."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable

from harness.errors import HarnessError, one_line

NUMBER = r"[-+]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d+)?"
LONGEST_NS = 2.0**63
LARGEST_BYTES = 2.0**63
UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}


class BadOutput(HarnessError):
    """A program ended, and what it printed holds no figure, or a fault in its own words."""


def killed(code: int) -> str:
    """As a shell tells of a signal."""
    name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
    return f"it was ended by {name}" + (", as a machine does that is out of memory" if name == "SIGKILL" else "")


def number(words: str) -> float:
    """As any locale writes it: the last of two kinds of marks is the decimal one, and so is a lone comma."""
    mantissa, mark, exponent = words.partition("e") if "e" in words else words.partition("E")
    if "," in mantissa and "." in mantissa:
        thousands = "," if mantissa.rindex(".") > mantissa.rindex(",") else "."
        mantissa = mantissa.replace(thousands, "")
    try:
        value = float(mantissa.replace(",", ".") + mark + exponent)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadOutput(one_line(f"it printed {words!r}, which is no number that can be read one way only", 300))
    return value


def ns(value: str, unit: str) -> int:
    return nanoseconds(number(value) * UNITS[unit], value)


def megabytes(text: str) -> int:
    """Bytes behind a number of megabytes; more than any machine has is no measurement."""
    value = number(text) * 1e6
    if not 0 <= value < LARGEST_BYTES:
        raise BadOutput(one_line(f"it printed an amount of memory that cannot be: {text} MB", 300))
    return round(value)


def nanoseconds(value: float, text: str = "") -> int:
    """A whole number of nanoseconds; a time of a thousand years is no measurement."""
    if not 0 <= value < LONGEST_NS:
        raise BadOutput(one_line(f"it printed a time that cannot be: {text or value}", 300))
    return max(1, round(value))


def fault(text: str, signs: Iterable[str], code: int = 0) -> str:
    """The first line that says what went wrong, or the signal that ended it."""
    for line in text.splitlines():
        if any(re.search(sign, line) for sign in signs):
            return line.strip()
    if code > 128:
        return killed(code)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
