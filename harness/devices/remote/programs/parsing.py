"""Numbers, units and error messages in the output of timing programs."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable

from harness.errors import HarnessError, one_line
from harness.system.process import last_line

__all__ = ["BadOutput"]

NUMBER = r"[-+]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d+)?"
MAX_NS = 2.0**63
MAX_BYTES = 2.0**63
UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}


class BadOutput(HarnessError):
    """Raised when the output of a program reports an error or has no usable figure."""


def signal_message(code: int) -> str:
    """Which signal ended a program, from the exit code of a shell."""
    name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
    return f"it was ended by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def number(text: str) -> float:
    """A number as any locale writes it.

    If it has both commas and points, the last one is the decimal mark. If it has only a comma, it is the decimal mark.
    """
    mantissa, mark, exponent = text.partition("e") if "e" in text else text.partition("E")
    if "," in mantissa and "." in mantissa:
        thousands = "," if mantissa.rindex(".") > mantissa.rindex(",") else "."
        mantissa = mantissa.replace(thousands, "")
    try:
        value = float(mantissa.replace(",", ".") + mark + exponent)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadOutput(one_line(f"it printed {text!r}, which is no number that can be read one way only", 300))
    return value


def ns(value: str, unit: str) -> int:
    """Whole nanoseconds of a time in this unit."""
    return nanoseconds(number(value) * UNITS[unit], value)


def megabytes(text: str) -> int:
    """Whole bytes of a number of megabytes. More than any machine has is refused."""
    value = number(text) * 1e6
    if not 0 <= value < MAX_BYTES:
        raise BadOutput(one_line(f"it printed an impossible amount of memory: {text} MB", 300))
    return round(value)


def nanoseconds(value: float, text: str = "") -> int:
    """A whole number of nanoseconds, 1 at least. A time of a thousand years is refused."""
    if not 0 <= value < MAX_NS:
        raise BadOutput(one_line(f"it printed an impossible time: {text or value}", 300))
    return max(1, round(value))


def error_line(text: str, patterns: Iterable[str], code: int = 0) -> str:
    """The first line that matches a pattern of an error; else the signal that ended the program, or the last line."""
    for line in text.splitlines():
        if any(re.search(pattern, line) for pattern in patterns):
            return line.strip()
    if code > 128:
        return signal_message(code)
    return last_line(text, "it printed nothing")
