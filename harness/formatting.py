"""Figures as text, for tables and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure_with_error(value: float | None, stderr: float | None) -> str:
    """A figure with its standard error, as text; empty if there is no figure."""
    return "" if value is None else figure(value) + ("" if stderr is None else f" ± {figure(stderr, 2)}")


def figure(value: float, digits: int = 4) -> str:
    """A number with so many significant digits; thousands as 10,700 and not as 1.07e+04."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if min(1000, 10**digits) <= abs(rounded) < 1e12 else f"{value:.{digits}g}"


def display_texts(details: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as tables show them: `binary_bytes` becomes `binary`, in MB."""
    texts = {}
    for name, value in details.items():
        if name.endswith("_bytes") and isinstance(value, int | float):
            texts[name.removesuffix("_bytes").replace("_", " ")] = f"{value / 1e6:,.1f} MB"
        else:
            texts[name.replace("_", " ")] = str(value)
    return texts
