"""Draws the result and the course of a search as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from harness.models.anatomy.core import Anatomy

COLOURS = ("#3b6ea5", "#d9822b", "#5c9e5c", "#8a5aa8")


def draw(anatomy: Anatomy, shape: Mapping[str, int], log: Sequence[Mapping[str, float]], title: str) -> str:
    """An SVG text: above, the units that each layer keeps; below, loss and latency over the steps. Deterministic."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    sites: dict[str, list[Any]] = {}
    for site in anatomy.blocks():
        sites.setdefault(site.kind, []).append(site)
    with mpl.rc_context({"svg.hashsalt": "dilap", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        FigureCanvasSVG(figure)
        above, below = figure.subplots(2, 1)
        figure.suptitle(title, fontsize=10)
        width = 0.8 / len(sites)
        for number, (kind, kind_sites) in enumerate(sites.items()):
            x = [(site.layer or 0) + (number - (len(sites) - 1) / 2) * width for site in kind_sites]
            heights = [100 * shape.get(site.name, site.units) / site.units for site in kind_sites]
            above.bar(x, heights, width, label=kind, color=COLOURS[number % len(COLOURS)])
        above.set(xlabel="layer", ylabel="units kept, %", ylim=(0, 105))
        above.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        steps = [row["step"] for row in log]
        below.plot(steps, [row["loss"] for row in log], color=COLOURS[0])
        if "inner" in log[-1]:
            below.plot(steps, [row["inner"] for row in log], color=COLOURS[2], linewidth=0.8, label="inner level")
            below.legend(loc="upper left", bbox_to_anchor=(1.08, 1), frameon=False)
        below.set(xlabel="step", ylim=(0, None))
        below.set_ylabel("loss", color=COLOURS[0])
        time = below.twinx()
        time.plot(steps, [100 * row["limit"] for row in log], color="0.6", linestyle=":", label="budget")
        time.plot(steps, [100 * row["time"] for row in log], color=COLOURS[1])
        time.set_ylabel("latency, % of dense (budget dotted)", color=COLOURS[1])
        time.set_ylim(0, 105)
        for axes in (above, below, time):
            axes.spines["top"].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
