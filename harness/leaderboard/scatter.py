"""A scatter plot with intervals, as SVG text that is the same on every machine. Points have tooltips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.formatting import figure
from harness.markup import html, plain_line

Bounds = tuple[float, float]
Corners = tuple[tuple[float, float], ...]

STYLE = "text{font:11px system-ui,sans-serif}"
MAX_LABEL = 200  # characters

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT = 64, 160  # margins around the plot
TOP, BOTTOM = 30, 44
BAND = 15  # height of a row of points above the plot
ARROW = "↑"

COLOURS = ("#3b6ea5", "#d9822b", "#4c8c4c", "#8a5aa8", "#c44e52", "#6d6d6d", "#1f8a80", "#a8790b", "#c255a0", "#1587a0")


def _star() -> Corners:
    radii = [7, 3] * 5
    angles = [corner * math.pi / 5 for corner in range(10)]
    return tuple((r * math.sin(angle), -r * math.cos(angle)) for r, angle in zip(radii, angles, strict=True))


CORNERS: dict[str, Corners] = {  # of each marker, relative to its middle
    "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    "up": ((0, -5), (5, 4), (-5, 4)),
    "down": ((0, 5), (5, -4), (-5, -4)),
    "star": _star(),
    "cross": (
        (-5, -2),
        (-2, -2),
        (-2, -5),
        (2, -5),
        (2, -2),
        (5, -2),
        (5, 2),
        (2, 2),
        (2, 5),
        (-2, 5),
        (-2, 2),
        (-5, 2),
    ),
}
MARKERS = ("circle", "square", "diamond", "up", "down", "cross")


@dataclass(frozen=True)
class Point:
    """A point with its intervals and its tooltip, `tooltip`. Points of one series are joined by a line."""

    name: str
    series: str
    x: float
    y: float
    x95: Bounds | None = None
    y95: Bounds | None = None
    hollow: bool = False
    tooltip: str = ""


class Axis:
    """Maps figures to pixels, and chooses round figures for its ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log = log
        a, b = (math.log(low), math.log(high)) if log else (low, high)
        margin = 0.04 * (b - a) or 0.5
        self.low, self.high = a - margin, b + margin
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        x = math.log(value) if self.log else value
        return self.start + (x - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            low, high = math.exp(self.low), math.exp(self.high)
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            candidates = [m * 10.0**d for d in decades for m in (1, 1.5, 2, 3, 4, 5, 7)]
            ticks = [value for value in candidates if low <= value <= high]
            if len(ticks) <= 12:
                return ticks
            return [value for value in ticks if f"{value:e}"[0] in "125" and f"{value:e}"[2] == "0"]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next((m for m in (1, 2, 5) if (self.high - self.low) / (m * step) <= 8), 10)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def scatter(points: Sequence[Point], title: str, x: str, y: str, *, log: bool, edge: float, mark: Point | None) -> str:
    """The picture of all points. `mark` is drawn as a star.

    Points above `edge` are drawn in rows above the plot, each with its figure.
    """
    shown = [*points, *([mark] if mark else ())]
    xs = [value for point in shown for value in (point.x, *(point.x95 or ()))]
    ys = [min(value, edge) for point in shown for value in (point.y, *(point.y95 or ()))]
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    # A colour and a marker for each name, and the legend that explains them.
    names = sorted({point.name for point in points})
    styles = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    legend = [*((name, *styles[name]) for name in names), *([(mark.name, "#000", "star")] if mark else ())]
    # Points below the edge are drawn in the plot, the others above it.
    beyond = list(_staggered([point for point in points if point.y > edge], across))
    inside = [point for point in points if point.y <= edge]
    over = BAND * (1 + max((row for _, row in beyond), default=-1))  # height of the rows above the plot
    parts = [_text(WIDTH / 2, 16 - over, title, "middle"), *_frame(across, up, x, y)]
    parts += _lines(inside, across, up, styles)
    for point in inside:
        parts += _point(point, across, up, edge, *styles[point.name])
    for point, row in beyond:
        parts += _point_beyond(point, across.at(point.x), TOP - 8 - BAND * row, *styles[point.name])
    if mark:
        parts.append(_marker("star", across.at(mark.x), up.at(mark.y), "#000", False, mark.tooltip))
    parts += _legend(legend, bool(beyond))
    # Make room for long names, long legends and the rows above the plot.
    width = max(WIDTH, WIDTH - RIGHT + 36 + max(_text_width(name) for name, *_ in legend))
    height = over + max(HEIGHT, TOP + 18 * (len(legend) + 1) + 8)
    size = f'width="{width:.0f}" height="{height}"'
    view = f'viewBox="0 {-over} {width:.0f} {height}" {size}'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} fill="#333" role="img"'
    back = f'<rect y="{-over}" {size} fill="#fff"/>'
    return (
        "\n".join([f'{head} aria-label="{_label(title)}">', f"<style>{STYLE}</style>", back, *parts, "</svg>"]) + "\n"
    )


def _legend(styles: Sequence[tuple[str, str, str]], beyond: bool) -> Iterator[str]:
    left = WIDTH - RIGHT + 18
    for i, (name, colour, shape) in enumerate(styles):
        yield _marker(shape, left, TOP + 8 + 18 * i, colour, False, "")
        yield _text(left + 12, TOP + 12 + 18 * i, name)
    if beyond:
        yield f'<path d="M{LEFT} {TOP}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="2 3"/>'
        yield _text(left - 5, TOP + 12 + 18 * len(styles), f"{ARROW} off the scale")


def _staggered(points: Sequence[Point], across: Axis) -> Iterator[tuple[Point, int]]:
    """Each point with the lowest row above the plot where it overlaps no other point's marker or figure."""
    ends: list[float] = []  # the x from which each row is free
    for point in sorted(points, key=lambda p: (p.x, p.y, p.name, p.tooltip)):
        start = across.at(point.x) - 8
        end = start + 20 + _text_width(_beyond_label(point))
        row = next((i for i, free_from in enumerate(ends) if free_from <= start), len(ends))
        if row == len(ends):
            ends.append(end)
        else:
            ends[row] = end
        yield point, row


def _text_width(text: str) -> float:
    """The width of a text in pixels, rather over-estimated."""
    return 6.5 * min(len(text), MAX_LABEL)


def _beyond_label(point: Point) -> str:
    return f"{ARROW} {figure(point.y, 3)}"


def _point_beyond(point: Point, x: float, y: float, colour: str, shape: str) -> Iterator[str]:
    yield _marker(shape, x, y, colour, point.hollow, point.tooltip)
    yield _text(x + 9, y + 4, _beyond_label(point), "start", colour)


def _frame(across: Axis, up: Axis, x: str, y: str) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in across.ticks():
        tick_x = across.at(value)
        yield f'<path d="M{tick_x:.1f} {TOP}V{bottom}" stroke="#eee"/>'
        yield _text(tick_x, bottom + 16, figure(value), "middle")
    for value in up.ticks():
        tick_y = up.at(value)
        yield f'<path d="M{LEFT} {tick_y:.1f}H{right}" stroke="#eee"/>'
        yield _text(LEFT - 6, tick_y + 4, figure(value), "end")
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="#888" fill="none"/>'
    yield _text((LEFT + right) / 2, HEIGHT - 8, x, "middle")
    middle = (TOP + bottom) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle:.1f})"'
    yield f'<text x="14" y="{middle:.1f}" {turned}>{_label(y)}</text>'


def _lines(points: Sequence[Point], across: Axis, up: Axis, styles: dict[str, tuple[str, str]]) -> Iterator[str]:
    for name, series in sorted({(point.name, point.series) for point in points}):
        corners = sorted((p.x, p.y) for p in points if (p.name, p.series) == (name, series))
        if len(corners) > 1:
            path = "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in corners)
            yield f'<path d="M{path}" stroke="{styles[name][0]}" stroke-opacity=".4" fill="none"/>'


def _point(point: Point, across: Axis, up: Axis, edge: float, colour: str, shape: str) -> Iterator[str]:
    x, y = across.at(point.x), up.at(point.y)
    if point.x95:
        yield f'<path d="M{across.at(point.x95[0]):.1f} {y:.1f}H{across.at(point.x95[1]):.1f}" stroke="{colour}"/>'
    if point.y95:
        low, high = up.at(point.y95[0]), up.at(min(point.y95[1], edge))
        yield f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>'
    yield _marker(shape, x, y, colour, point.hollow, point.tooltip)


def _marker(shape: str, x: float, y: float, colour: str, hollow: bool, tooltip: str) -> str:
    style = f'fill="{"#fff" if hollow else colour}" stroke="{colour}"'
    if shape == "circle":
        head, tag = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {style}', "circle"
    else:
        corners = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in CORNERS[shape])
        head, tag = f'<polygon points="{corners}" {style}', "polygon"
    return f"{head}><title>{html(tooltip)}</title></{tag}>" if tooltip else f"{head}/>"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "") -> str:
    fill = f' fill="{colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{_label(text)}</text>'


def _label(text: str) -> str:
    return html(plain_line(text, MAX_LABEL))
