"""The parts of a report's page: how it looks, and pieces of HTML in which everything is escaped."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from annotary.curation._rank_plot import STYLE as PLOT_STYLE

MARK = "<!-- annotary curate report -->"
"""What a page begins with; nothing else is replaced by one."""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f8; --ink: #1b1f23; --pale: #59636e; --line: #d9dde2;
  --bar: #3457c4; --track: #e7eaee; --before: #9aa3ad; --limit: #b3541e; --link: #2649b8; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1215; --card: #171b20; --ink: #e6e9ec; --pale: #a0a9b4;
  --line: #30363e; --bar: #8aa4ff; --track: #262c33; --before: #78828d; --limit: #f0a36f; --link: #9db3ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 920px; padding: 28px 16px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 48px 0 4px; padding-top: 20px; border-top: 1px solid var(--line); font-weight: 650; }
h3 { font-size: .95rem; margin: 28px 0 8px; font-weight: 600; }
p { margin: 0 0 12px; overflow-wrap: anywhere; }
.about { color: var(--pale); font-size: .9rem; }
a { color: var(--link); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 10px; margin: 16px 0 4px;
  padding: 0; list-style: none; }
.figures li { display: flex; flex-direction: column; justify-content: space-between; padding: 10px 12px;
  background: var(--card); border-radius: 8px; min-width: 0; }
@media (min-width: 760px) { .figures { grid-template-columns: repeat(var(--columns), 1fr); } }
.figures span { display: block; color: var(--pale); font-size: .8rem; line-height: 1.35; }
.figures b { display: block; font-size: clamp(1rem, 4.3vw, 1.2rem); line-height: 1.4; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 0 5px 14px; text-align: right; font-weight: 400; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 92px; }
thead th { color: var(--pale); font-size: .8rem; vertical-align: bottom; }
td.bar { width: 42%; min-width: 90px; padding-right: 0; }
td.bar span { display: block; height: 9px; border-radius: 2px; background: var(--track); overflow: hidden; }
td.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 36px; }
.two > div { min-width: 0; }
.scroll { overflow-x: auto; }
figure { margin: 8px 0 0; }
.narrow { display: none; }
@media (max-width: 640px) { .narrow { display: block; } .wide, .only-wide { display: none; }
  body { padding-top: 18px; } td.bar { width: 26%; min-width: 48px; } th, td { padding-left: 10px; } }
figcaption { color: var(--pale); font-size: .85rem; margin-top: 4px; }
details { margin-top: 20px; }
summary { color: var(--pale); cursor: pointer; font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(90px, max-content) 1fr; gap: 3px 18px; margin: 8px 0 0;
  font-size: .88rem; }
dt { color: var(--pale); overflow-wrap: anywhere; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.none { color: var(--pale); margin-top: 16px; }
.link { margin-top: 16px; }
"""


def page(title: str, about: str, body: str) -> str:
    """A whole page.

    Args:
        title: Text.
        about: A line below it, text.
        body: HTML.
    """
    return (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{PLOT_STYLE}</style></head><body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="about">{escape(about)}</p></header>\n'
        f"<main>\n{body}</main>\n</body></html>\n"
    )


def figures(shown: Iterable[tuple[str, str]]) -> str:
    """Numbers that matter most, large.

    Args:
        shown: What each is, and its value.
    """
    cells = [
        f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>\n" for name, value in shown
    ]
    # As many columns as leave the fewest places of the last row empty.
    columns = min((6, 5, 4), key=lambda one: (-len(cells) % one, -one)) if len(cells) > 4 else 4
    columns = min(columns, len(cells))
    return f'<ul class="figures" style="--columns:{columns}">\n{"".join(cells)}</ul>\n'


def bars(
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str], float]],
    *,
    links: Collection[str] = (),
    less: int | None = None,
) -> str:
    """A table with a bar at the end of each row.

    Args:
        head: What the columns are; the bar has none.
        rows: The first cell, the other cells, and the length of the bar, 0..1.
        links: First cells that are ids of sections of the page, and lead there.
        less: The column that narrow screens leave out, by its place in the head.
    """
    hidden = [' class="only-wide"' if place == less else "" for place in range(len(head))]
    titles = "".join(
        f'<th scope="col"{how}>{escape(one)}</th>' for one, how in zip(head, hidden, strict=True)
    )
    lines = []
    for first, cells, length in rows:
        numbers = "".join(
            f"<td{how}>{escape(cell)}</td>" for cell, how in zip(cells, hidden[1:], strict=True)
        )
        width = 100 * min(1.0, max(0.0, length))
        name = escape(first)
        if first in links:
            name = f'<a href="#{name}">{name}</a>'
        lines.append(
            f'<tr><td dir="auto">{name}</td>{numbers}'
            f'<td class="bar"><span><i style="width:{width:.2f}%"></i></span></td></tr>\n'
        )
    return f"<table><thead><tr>{titles}<th></th></tr></thead><tbody>\n{''.join(lines)}</tbody></table>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, all others are numbers."""
    titles = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    lines = [
        f'<tr><td dir="auto">{escape(row[0])}</td>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    ]
    return f"<table><thead><tr>{titles}</tr></thead><tbody>\n{''.join(lines)}</tbody></table>\n"


def settings(title: str, values: Mapping[str, Any]) -> str:
    """Names and values, folded away; nothing where there are none."""
    if not values:
        return ""
    lines = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(told(name, value))}</dd>\n"
        for name, value in values.items()
    )
    return f"<details><summary>{escape(title)}</summary><dl>\n{lines}</dl></details>\n"


def told(name: str, value: Any) -> str:
    """A value of a report for people; what is a share, by its name, is told in per cent."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and name.endswith(("share", "coverage")):
        return percent(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return ", ".join(told("", one) for one in value) or "–"
    return json.dumps(value, ensure_ascii=False)


def percent(share: float) -> str:
    """A share, 0..1, with as many digits as make sense."""
    if 0 < share < 0.001 or 0.9995 < share < 1:
        return f"{share:.3%}"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"
