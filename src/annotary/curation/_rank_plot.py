"""Counts of entries against their rank as an SVG with two logarithmic axes, before and after balancing.

It is drawn here: two lines and two axes are no reason to need a library, and so the drawing follows the colours of the
page that it stands in, by light and by dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Curve = Sequence[tuple[int, int, int | None]]
"""Rank from 1, texts before, and texts after; None where nothing was balanced."""

STYLE = """
.plot { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
.plot text { fill: var(--pale, #59636e); }
.plot .grid { stroke: var(--line, #d5d9de); stroke-width: 1; fill: none; }
.plot .axis { stroke: var(--pale, #59636e); stroke-width: 1; fill: none; }
.plot path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.plot .before { stroke: var(--before, #9aa3ad); }
.plot .after { stroke: var(--bar, #3457c4); }
.plot .limit { stroke: var(--limit, #b3541e); stroke-width: 1.25; stroke-dasharray: 5 4; }
.plot text.limit-text { fill: var(--limit, #b3541e); stroke: none; }
"""

_ALONE = """
:root { --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1215; --pale: #a0a9b4; --line: #343b44; --before: #78828d;
  --bar: #8aa4ff; --limit: #f0a36f; } }
.page { fill: var(--page); }
"""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 44  # pixels around the plot
_LEGEND = 26  # pixels of the legend above it


def rank_plot(
    curve: Curve,
    t: float | None,
    *,
    width: int = 720,
    height: int = 380,
    is_alone: bool = False,
) -> str:
    """The drawing.

    Args:
        curve: At least one point, by rank.
        t: Where a line is drawn across; None draws none.
        width: Pixels.
        height: Pixels.
        is_alone: Whether it is a file of its own, with its colours, rather than a part of a page that has `STYLE`.
    """
    most = max(max(before, after or 0) for _, before, after in curve)
    rank_end, count_end = _decade(curve[-1][0]), _decade(max(most, t or 0))
    is_balanced = any(after is not None for _, _, after in curve)
    top = _TOP + (_LEGEND if is_balanced else 0)
    inner_width, inner_height = width - _LEFT - _RIGHT, height - top - _BOTTOM

    def x(rank: float) -> float:
        return _LEFT + inner_width * math.log10(rank) / rank_end

    def y(count: float) -> float:
        return top + inner_height * (1 - math.log10(count) / count_end)

    pieces = [_axes(rank_end, count_end, x, y, width, height)]
    pieces.append(f'<path class="before" d="{_line([(x(r), b) for r, b, _ in curve], y)}"/>')
    if is_balanced:
        after = [(x(rank), value or 0) for rank, _, value in curve]
        pieces.append(f'<path class="after" d="{_line(after, y)}"/>')
        pieces.append(_legend())
    if t is not None and t >= 1:
        pieces.append(_limit(t, y(t), width))
    told = "Texts that match an entry against its rank, both on logarithmic scales"
    style = f"<style>{_ALONE}{STYLE}</style>" if is_alone else ""
    paper = f'<rect class="page" width="{width}" height="{height}"/>' if is_alone else ""
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{told}">{style}{paper}{"".join(pieces)}</svg>\n'
    )


def short(number: float) -> str:
    """A number of an axis: 10, 1k, 20k, 1.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.4g}"


def _axes(
    rank_end: int,
    count_end: int,
    x: Callable[[float], float],
    y: Callable[[float], float],
    width: int,
    height: int,
) -> str:
    """Gridlines at powers of ten with their numbers, and what the axes are."""
    left, right, bottom, top = x(1), x(10**rank_end), y(1), y(10**count_end)
    every = 1 if rank_end <= 6 or width > 500 else 2
    pieces = []
    for power in range(count_end + 1):
        line = "axis" if not power else "grid"
        place = y(10**power)
        pieces.append(f'<path class="{line}" d="M{left:.1f} {place:.1f}H{right:.1f}"/>')
        pieces.append(
            f'<text x="{left - 7:.1f}" y="{place + 4:.1f}" text-anchor="end">{short(10**power)}</text>'
        )
    for power in range(rank_end + 1):
        place = x(10**power)
        if power:
            pieces.append(f'<path class="grid" d="M{place:.1f} {top:.1f}V{bottom:.1f}"/>')
        if power % every == 0:
            anchor = "end" if power == rank_end else "start" if not power else "middle"
            pieces.append(
                f'<text x="{place:.1f}" y="{bottom + 17:.1f}" text-anchor="{anchor}">{short(10**power)}</text>'
            )
    middle = (left + right) / 2
    pieces.append(
        f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">rank of the entry</text>'
    )
    pieces.append(f'<text x="0" y="{top - 14:.1f}">texts that match it</text>')
    return "".join(pieces)


def _line(points: Sequence[tuple[float, int]], y: Callable[[float], float]) -> str:
    """The commands of a path; where a count is 0 there is a gap, as there is no such place on the scale."""
    commands, is_open = [], False
    for place, count in points:
        if count > 0:
            # A line to its own begin is a dot, so that a point between gaps is seen.
            begin = f"M{place:.1f} {y(count):.1f}"
            commands.append(f"L{place:.1f} {y(count):.1f}" if is_open else f"{begin}L{begin[1:]}")
        is_open = count > 0
    return "".join(commands)


def _limit(t: float, place: float, width: int) -> str:
    return (
        f'<path class="limit" d="M{_LEFT} {place:.1f}H{width - _RIGHT}"/>'
        f'<text class="limit-text" x="{width - _RIGHT - 2}" y="{place - 6:.1f}" text-anchor="end">'
        f"t = {escape(told_number(t))}</text>"
    )


def told_number(number: float) -> str:
    """A number for people, with all that it has before the point."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


def _legend() -> str:
    """What the lines are, in a row above the plot."""
    pieces, place = [], 1
    for name, told in (("before", "before balancing"), ("after", "after")):
        pieces.append(
            f'<path class="{name}" d="M{place} 10h18"/><text x="{place + 24}" y="14">{told}</text>'
        )
        place += 24 + 7 * len(told) + 18
    return "".join(pieces)


def _decade(number: float) -> int:
    """The power of ten that ends an axis."""
    return max(1, math.ceil(math.log10(max(number, 1)) - 1e-9))
