"""How reports of taggers look, and the little script that sorts and filters their tables."""

from __future__ import annotations

from annotary.evaluation._line_plot import STYLE as PLOT_STYLE

COLOURS = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f8; --ink: #1b1f23; --pale: #59636e; --line: #d9dde2;
  --bar: #3457c4; --track: #e7eaee; --warm: #b3541e; --green: #1a7f4b; --violet: #8a3fb0; --link: #2649b8; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1215; --card: #171b20; --ink: #e6e9ec; --pale: #a0a9b4;
  --line: #30363e; --bar: #8aa4ff; --track: #262c33; --warm: #f0a36f; --green: #6fd39b; --violet: #d09bf0;
  --link: #9db3ff; } }
"""
"""The names that colours have, by light and by dark."""

STYLE = (
    COLOURS
    + """* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1140px; padding: 28px 16px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 8px; padding-top: 18px; border-top: 1px solid var(--line); font-weight: 650; }
h3 { font-size: .95rem; margin: 24px 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 12px; overflow-wrap: anywhere; }
.about, figcaption, .note { color: var(--pale); font-size: .9rem; }
.note { margin: 10px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px; margin: 16px 0;
  padding: 0; list-style: none; }
.figures li { padding: 10px 12px; background: var(--card); border-radius: 8px; min-width: 0; }
.figures span { display: block; color: var(--pale); font-size: .8rem; line-height: 1.35; }
.figures b { font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { max-height: 70vh; overflow: auto; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 5px 0 5px 16px; text-align: right; font-weight: 400; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: baseline; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 88px; }
th:first-child, td:first-child { padding-left: 0; min-width: 130px; }
thead th { color: var(--pale); font-size: .8rem; vertical-align: bottom; background: var(--page); }
.tall thead th { position: sticky; top: 0; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 2px 0; cursor: pointer; }
th button:hover, th[aria-sort] button { color: var(--ink); text-decoration: underline; text-underline-offset: 3px; }
th[aria-sort="ascending"] button::after { content: " ↑"; }
th[aria-sort="descending"] button::after { content: " ↓"; }
tr.best td { font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 12px 28px; }
figure { margin: 8px 0 0; min-width: 0; }
input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 5px 8px; max-width: 100%; margin: 0 0 8px; }
output { color: var(--pale); font-size: .9rem; margin-left: 10px; }
.wrong { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 4px 28px; }
.wrong section { min-width: 0; padding-bottom: 6px; }
.wrong h4 { margin: 2px 0 6px; font-size: .82rem; font-weight: 400; color: var(--pale); }
.row { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; margin: 0 0 10px; }
.row figure { margin: 0; }
.row img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px;
  background: var(--card); }
.row .gone { display: grid; place-items: center; aspect-ratio: 1; border: 1px dashed var(--line); border-radius: 5px;
  color: var(--pale); font-size: .75rem; }
.row figcaption { font-size: .72rem; line-height: 1.3; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
details { margin-top: 16px; }
summary { color: var(--pale); cursor: pointer; font-size: .9rem; }
@media (max-width: 640px) { body { padding-top: 18px; } th, td { padding-left: 11px; } }
"""
    + PLOT_STYLE
)

SCRIPT = """
"use strict";
const value = (row, place) => {
  const cell = row.children[place], told = cell.dataset.value ?? cell.textContent;
  const number = told === "" ? NaN : Number(told);
  return Number.isNaN(number) ? told.toLowerCase() : number;
};
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("button").forEach((button, place) => button.addEventListener("click", () => {
    const head = button.parentElement;
    const isDown = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending"
      : !head.classList.contains("text");
    table.querySelectorAll("th").forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const rows = [...body.rows].map(row => [value(row, place), row]);
    const kind = one => typeof one === "string";
    rows.sort(([a], [b]) => kind(a) !== kind(b) ? kind(a) - kind(b)
      : (a < b ? -1 : a > b ? 1 : 0) * (isDown ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
  }));
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const count = input.nextElementSibling;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().replaceAll(" ", "_").trim();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.children[0].textContent.toLowerCase().replaceAll(" ", "_").includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? "" : shown + " of " + rows.length;
  });
}
"""


def page(title: str, about: str, body: str, mark: str) -> str:
    """A whole page that needs nothing from anywhere.

    Args:
        title: HTML.
        about: A line below it, HTML.
        body: HTML.
        mark: A comment that pages of the kind begin with, so that nothing else is replaced by one.
    """
    return (
        f'<!DOCTYPE html>\n{mark}\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{STYLE}</style></head><body>\n"
        f'<header><h1>{title}</h1>\n<p class="about">{about}</p></header>\n'
        f"<main>\n{body}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )
