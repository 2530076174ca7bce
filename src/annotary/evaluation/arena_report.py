"""The leaderboard of an arena as one page of HTML that needs nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from annotary.evaluation._line_plot import Axis, Colour, Line, line_plot
from annotary.evaluation._report_style import page
from annotary.evaluation.arena import RATES
from annotary.evaluation.tagging_report import plain_table, share, sorting_table

MARK = "<!-- annotary arena -->"
"""What a page begins with; nothing else is replaced by one."""

_COLOURS: tuple[Colour, ...] = ("one", "two", "three", "four", "five")


def arena_page(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: What `annotary arena` reports.
    """
    about = (
        f"{report['dataset']} · {report['images']:,} images · {report['tags']:,} tags that all models know and"
        f" {report['minimum_support']:,} or more images have"
    )
    body = _leaderboard(report) + _curves(report) + _duels(report) + _tags(report)
    return page("Arena of taggers", escape(about), body, MARK)


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """A share with where it lies."""
    if interval is None:
        return share(value)
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def _leaderboard(report: Mapping[str, Any]) -> str:
    rows = []
    for place, one in enumerate(report["models"], 1):
        told = [with_interval(one["macro"][rate], one["intervals"].get(rate)) for rate in RATES]
        more = [share(one[kind]["f1"]) for kind in ("micro", "weighted")]
        rows.append((f"{place}. {one['name']}", told[2], told[3], *told[:2], *more, one["rule"]))
    head = (
        "model",
        "macro F1",
        "mAP",
        "precision",
        "recall",
        "micro F1",
        "weighted F1",
        "thresholds",
    )
    wins = [
        (
            one["name"],
            f"{report['wins']['f1']['wins'][one['name']]:,}",
            f"{report['wins']['ap']['wins'][one['name']]:,}",
        )
        for one in report["models"]
    ]
    ties = [("(several)", *(f"{report['wins'][rate]['ties']:,}" for rate in ("f1", "ap")))]
    certain = (
        " In brackets: between which values it lies with 95 % certainty, by"
        f" {report['rounds']:,} draws of the images."
    )
    kinds = (
        "Average precision depends on no threshold. Micro and weighted F1 count frequent tags more: compare no number"
        " of one kind with one of another."
    )
    notes = (
        "Means over the tags, each model at its own thresholds." + certain * bool(report["rounds"]),
        kinds,
    )
    return (
        plain_table(head, rows)
        + "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
        + "<h3>Tags at which a model alone is best</h3>\n"
        + plain_table(("model", "by F1", "by AP"), [*wins, *ties])
    )


def _curves(report: Mapping[str, Any]) -> str:
    shown = report["models"][: len(_COLOURS)]
    lines, dots, means = [], [], []
    for colour, one in zip(_COLOURS, shown, strict=False):
        curve = [
            (point["micro_recall"], point["micro_precision"])
            for point in one["curve"]
            if point["micro_recall"] > 0
        ]
        lines.append(Line(one["name"], curve, colour))
        dots.append(
            Line("", [(one["micro"]["recall"], one["micro"]["precision"])], colour, "large")
        )
        means.append(Line(one["name"], _by_support(report, one["name"]), colour))
    most = max((one["support"] for one in report["per_tag"]), default=10)
    axis = Axis("images here", 1.0, max(10.0, most * 1.15), is_logarithmic=True)
    pieces = [
        (
            "Precision and recall",
            line_plot(
                "Precision against recall", Axis("recall"), Axis("precision"), [*lines, *dots]
            ),
            "All decisions together (micro), one threshold from high to low; the dots are the models' own.",
        ),
        (
            "F1 and frequency",
            line_plot("F1 of tags by how frequent they are", axis, Axis("mean F1"), means),
            "Means over tags that about as many images have.",
        ),
    ]
    figures = "".join(
        f"<figure><h3>{title}</h3>\n{drawn}<figcaption>{escape(told)}</figcaption></figure>\n"
        for title, drawn, told in pieces
    )
    return f'<h2>Curves</h2>\n<div class="plots">\n{figures}</div>\n'


def _by_support(report: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    groups: dict[int, list[tuple[int, float]]] = {}
    for one in report["per_tag"]:
        found = (one["support"], one["models"][name]["f1"])
        groups.setdefault(one["support"].bit_length(), []).append(found)
    return [
        (
            float(sum(support for support, _ in group) / len(group)),
            sum(f1 for _, f1 in group) / len(group),
        )
        for _, group in sorted(groups.items())
    ]


def _duels(report: Mapping[str, Any]) -> str:
    rows = []
    for one in report["duels"]:
        told = f"{one['f1_difference']:+.3f}"
        if one["interval"] is not None:
            low, high = one["interval"]
            told += f" ({low:+.3f} to {high:+.3f})"
        wins = [
            f"{one[f'{rate}_wins']:,} : {one[f'{rate}_losses']:,}, {one[f'{rate}_ties']:,} equal"
            for rate in ("f1", "ap")
        ]
        rows.append((f"{one['first']} and {one['second']}", told, *wins))
    if not rows:
        return ""
    head = ("two models", "difference of macro F1", "tags won by F1", "tags won by AP")
    note = "Both are drawn the same images, so that a difference is surer than each of the two numbers."
    return f'<h2>Two by two</h2>\n<p class="note">{note}</p>\n{plain_table(head, rows)}'


def _tags(report: Mapping[str, Any]) -> str:
    names = [one["name"] for one in report["models"]]
    head = [
        "tag",
        "category",
        "images",
        *(f"F1 {name}" for name in names),
        *(f"AP {name}" for name in names),
    ]
    rows = [
        (
            one["tag"],
            one["category"],
            one["support"],
            *(float(one["models"][name]["f1"]) for name in names),
            *(one["models"][name]["ap"] for name in names),
        )
        for one in sorted(report["per_tag"], key=lambda one: -one["support"])
    ]
    return (
        '<h2>Every tag</h2>\n<input type="search" placeholder="filter tags" aria-label="filter tags"'
        ' data-filters="tags"><output></output>\n'
        f'<div class="tall">{sorting_table(head, rows, texts=2, name="tags")}</div>\n'
    )
