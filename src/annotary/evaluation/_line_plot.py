"""Lines and dots between two axes as an SVG, in the colours of the page that it stands in, by light and by dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_LOOK = """
.plot text { fill: var(--pale); }
.plot path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .axis { stroke: var(--pale); stroke-width: 1; }
.plot .one { stroke: var(--bar); }
.plot .two { stroke: var(--warm); }
.plot .three { stroke: var(--green); }
.plot .four { stroke: var(--violet); }
.plot .five { stroke: var(--pale); }
.plot .ideal { stroke: var(--pale); stroke-width: 1.25; stroke-dasharray: 5 4; }
.plot .dots { stroke-width: 4; stroke-opacity: .5; }
.plot .large { stroke-width: 8; }
"""
_FONT = "font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums;"

STYLE = f"""
.plot {{ display: block; width: 100%; height: auto; {_FONT} }}{_LOOK}"""
"""Of a drawing that stands in a page."""

_FILE_STYLE = f"""
svg {{ {_FONT} }} .page {{ fill: var(--page); }}{_LOOK}"""

_WIDTH, _HEIGHT = 420, 320
_LEFT, _RIGHT, _BOTTOM, _LEGEND = 40, 12, 42, 20
_GAP = 16

Colour = Literal["one", "two", "three", "four", "five", "ideal"]


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together.

    Attributes:
        name: In the legend; empty for none.
        points: Across and up; those outside the axes are left out.
        colour: A class of `STYLE`.
        kind: A line, small dots, or large ones.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: Colour = "one"
    kind: Literal["line", "dots", "large"] = "line"


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Attributes:
        name: What it is.
        low: Where it begins; above 0 on a logarithmic scale.
        high: Where it ends.
        is_logarithmic: Whether powers of ten are equally far apart.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    is_logarithmic: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value is, 0..1 between its ends."""
        if not self.is_logarithmic:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0

    def marks(self) -> list[tuple[float, str]]:
        """Where numbers stand, and which."""
        if not self.is_logarithmic:
            steps = [self.low + (self.high - self.low) * i / 5 for i in range(6)]
            if self.high >= 1000:
                return [(value, _short(value)) for value in steps]
            digits = max(1, 1 - math.floor(math.log10(self.high - self.low)))
            texts = [f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" for value in steps]
            return list(zip(steps, texts, strict=True))
        first, last = (
            math.ceil(math.log10(self.low) - 1e-9),
            math.floor(math.log10(self.high) + 1e-9),
        )
        return [(10.0**power, _short(10**power)) for power in range(first, last + 1)]


def line_plot(told: str, across: Axis, up: Axis, lines: Sequence[Line]) -> str:
    """The drawing.

    Args:
        told: What it shows, for those who cannot see it.
        across: The horizontal axis.
        up: The vertical axis.
        lines: What is drawn, the last on top.
    """
    legend = [line for line in lines if line.name]
    top = 14 + _LEGEND * len(legend) + 16
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM + _LEGEND * max(0, len(legend) - 1)
    height = bottom + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (right - _LEFT) * across.share(value)

    def y(value: float) -> float:
        return bottom - (bottom - top) * up.share(value)

    pieces = []
    for value, text in up.marks():
        name = "axis" if value == up.low else "grid"
        pieces.append(f'<path class="{name}" d="M{_LEFT} {y(value):.1f}H{right}"/>')
        pieces.append(
            f'<text x="{_LEFT - 7}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for value, text in across.marks():
        pieces.append(f'<path class="grid" d="M{x(value):.1f} {top}V{bottom}"/>')
        anchor = "end" if across.share(value) > 0.97 else "middle"
        pieces.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" text-anchor="{anchor}">{text}</text>'
        )
    pieces.append(
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(across.name)}</text>'
    )
    pieces.append(f'<text x="0" y="{top - 10}">{escape(up.name)}</text>')
    for place, line in enumerate(legend):
        middle = 10 + _LEGEND * place
        dot = _class(line)
        mark = f"M1 {middle}h18" if line.kind == "line" else f"M10 {middle}h0"
        pieces.append(f'<path class="{dot}" d="{mark}"/>')
        pieces.append(f'<text x="26" y="{middle + 4}">{escape(line.name)}</text>')
    for line in lines:
        inside = [
            (x(a), y(b))
            for a, b in line.points
            if -1e-9 <= across.share(a) <= 1 + 1e-9 and -1e-9 <= up.share(b) <= 1 + 1e-9
        ]
        if inside:
            pieces.append(f'<path class="{_class(line)}" d="{_path(inside, line.kind)}"/>')
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(told)}">'
        f"{''.join(pieces)}</svg>\n"
    )


def picture_file(colours: str, plots: Sequence[str], columns: int = 2) -> str:
    """An SVG file that needs no page: drawings in rows, light or dark as the reader has it.

    Args:
        colours: The style sheet that gives the colours their names.
        plots: What `line_plot` drew.
        columns: How many stand side by side.
    """
    heights = [int(plot.split('viewBox="0 0 ', 1)[1].split()[1].rstrip('"')) for plot in plots]
    pieces, top = [], _GAP
    for start in range(0, len(plots), columns):
        row = range(start, min(start + columns, len(plots)))
        for column, place in enumerate(row):
            left = _GAP + column * (_WIDTH + _GAP)
            where = f'<svg x="{left}" y="{top}" width="{_WIDTH}" height="{heights[place]}" '
            pieces.append(where + plots[place].removeprefix("<svg "))
        top += max(heights[place] for place in row) + _GAP
    width = _GAP + min(columns, len(plots)) * (_WIDTH + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}">\n'
        f'<style>{colours}{_FILE_STYLE}</style>\n<rect class="page" width="{width}" height="{top}"/>\n'
        f"{''.join(pieces)}</svg>\n"
    )


def _class(line: Line) -> str:
    return line.colour + {"line": "", "dots": " dots", "large": " large"}[line.kind]


def _path(points: Sequence[tuple[float, float]], kind: str) -> str:
    if kind != "line":
        return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in points)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
