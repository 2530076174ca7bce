"""What was measured of a tagger as one page of HTML with plots and pictures that needs nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from annotary.evaluation._line_plot import Axis, Line, line_plot
from annotary.evaluation._report_style import page
from annotary.evaluation.tagging_results import trap_of

MARK = "<!-- annotary evaluate tagging -->"
"""What a page begins with; nothing else is replaced by one."""

MOST_PICTURED = 24
"""Tags whose worst images are shown."""

_KINDS = ("macro", "micro", "weighted")


class WorstImage(NamedTuple):
    """An image about which a model and the truth do not agree.

    Attributes:
        name: Of the image.
        score: Of the tag, 0..1.
        picture: As a data URI; None where it could not be had.
    """

    name: str
    score: float
    picture: str | None


class WorstOfTag(NamedTuple):
    """The worst images of a tag.

    Attributes:
        tag: Its name.
        given: Images that were given it and do not have it.
        missed: Images that have it and were not given it.
    """

    tag: str
    given: Sequence[WorstImage]
    missed: Sequence[WorstImage]


def report_page(report: Mapping[str, Any], worst: Sequence[WorstOfTag]) -> str:
    """The page.

    Args:
        report: What `annotary evaluate tagging` reports.
        worst: Worst images, the tags in the order in which they are shown.
    """
    about = (
        f"{report['dataset']} · {report['images']:,} images · {report['tags']:,} tags ·"
        f" {report['tags_in_means']:,} with {report['minimum_support']:,} or more images count in the means"
    )
    body = (
        _summary(report) + _plots(report) + _slices(report) + _tags(report) + _worst(report, worst)
    )
    return page(f"Tagging: {escape(report['model'])}", escape(about), body, MARK)


def pictured_tags(report: Mapping[str, Any]) -> list[int]:
    """The tags whose worst images are shown: those with the most errors, by their place in `per_tag`."""
    errors = [(one["fp"] + one["fn"], place) for place, one in enumerate(report["per_tag"])]
    return [place for count, place in sorted(errors, key=lambda e: (-e[0], e[1])) if count][
        :MOST_PICTURED
    ]


def figures(shown: Iterable[tuple[str, str]]) -> str:
    """Numbers that matter most, large."""
    cells = "".join(
        f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>\n" for name, value in shown
    )
    return f'<ul class="figures">\n{cells}</ul>\n'


def sorting_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | float | int | None]],
    *,
    texts: int = 1,
    name: str = "",
) -> str:
    """A table whose columns can be sorted by.

    Args:
        head: What the columns are.
        rows: Cells; whole numbers are counts, others shares 0..1.
        texts: How many of the first columns are texts.
        name: Its id, by which it can be filtered.
    """
    titles = "".join(
        f'<th scope="col"{_text(place < texts)}><button type="button">{escape(one)}</button></th>'
        for place, one in enumerate(head)
    )
    lines = "".join(
        "<tr>" + "".join(_cell(cell, place < texts) for place, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    told = f' id="{name}"' if name else ""
    return f'<table class="sorts"{told}><thead><tr>{titles}</tr></thead><tbody>\n{lines}</tbody></table>\n'


def plain_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A table that stays as it is.

    Args:
        head: What the columns are.
        rows: Cells.
        texts: How many of the first columns are texts.
    """
    titles = "".join(
        f'<th scope="col"{_text(place < texts)}>{escape(one)}</th>'
        for place, one in enumerate(head)
    )
    lines = "".join(
        "<tr>"
        + "".join(f"<td{_text(k < texts)}>{escape(cell)}</td>" for k, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{lines}</tbody></table></div>\n'


def share(value: float | None) -> str:
    """A share 0..1 for people."""
    return "–" if value is None else f"{value:.3f}"


def told_rule(rule: Mapping[str, Any]) -> str:
    """The rule of thresholds, and the one threshold where it is not in its name."""
    if rule["threshold"] is None or "threshold " in rule["rule"]:
        return str(rule["rule"])
    return f"{rule['rule']} ({rule['threshold']:.4f})"


def _summary(report: Mapping[str, Any]) -> str:
    first, found = report["rules"][0], report["map"]
    shown = [(f"{kind} F1", share(first[kind]["f1"])) for kind in _KINDS]
    shown += [("mAP, macro", share(found["macro"])), ("mAP, micro", share(found["micro"]))]
    shown.append(("calibration error", share(report["calibration"]["error"])))
    rows = []
    for rule in report["rules"]:
        for place, kind in enumerate(_KINDS):
            rates = [share(rule[kind][key]) for key in ("precision", "recall", "f1")]
            rows.append(("" if place else told_rule(rule), kind, *rates))
    notes = [f"The large numbers are of: {first['rule']}.", trap_of(report["rules"])]
    notes.append(f"Average precision is {_told_precision(report)}.")
    others = report["tags"] - report["tags_in_means"]
    if others:
        notes.append(
            f"{others:,} tags have too few images for the means and count in micro rates alone."
        )
    notes += _left_out(report)
    return (
        figures(shown)
        + plain_table(("rule", "mean", "precision", "recall", "F1"), rows, texts=2)
        + "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes if note)
    )


def _told_precision(report: Mapping[str, Any]) -> str:
    bounds = report["map"]["macro_bounds"]
    if report["average_precision"] == "exact" or bounds is None:
        return str(report["average_precision"])
    return f"{report['average_precision']}; the exact macro mAP is in {bounds[0]:.4f} to {bounds[1]:.4f}"


def _left_out(report: Mapping[str, Any]) -> list[str]:
    notes = []
    unknown = report["tags_without_model"]["count"]
    if unknown:
        notes.append(
            f"{unknown:,} tags of the images are left out, as the model does not know them."
        )
    for name, one in report["tags_without_truth"].items():
        if one["count"]:
            notes.append(
                f"{one['count']:,} tags of {name} are left out, as no image is known to have them."
            )
    if report["failures"]:
        notes.append(f"{len(report['failures']):,} images could not be read and count nowhere.")
    return notes


def _plots(report: Mapping[str, Any]) -> str:
    curve = report["curve"]
    lines = [
        Line("micro: all decisions", _points(curve, "micro_recall", "micro_precision")),
        Line("macro: mean over tags", _points(curve, "macro_recall", "macro_precision"), "two"),
    ]
    used = [
        (rule[kind]["recall"], rule[kind]["precision"])
        for rule in report["rules"][:1]
        for kind in ("micro", "macro")
        if rule[kind]["f1"] is not None
    ]
    lines += [Line("", used[:1], "one", "large"), Line("", used[1:], "two", "large")]
    bins = report["calibration"]["by_width"]
    reliable = [(one["score"], one["frequency"]) for one in bins]
    pieces = [
        _figure(
            "Precision and recall",
            line_plot("Precision against recall", Axis("recall"), Axis("precision"), lines),
            "One threshold for all tags, from high to low; the dots are the first rule. A tag that is never given has"
            " precision 0.",
        ),
        _figure(
            "Calibration",
            line_plot(
                *("How often tags are true against their score", Axis("mean score"), Axis("true")),
                [
                    Line("as it should be", [(0, 0), (1, 1)], "ideal"),
                    Line("scores of all tags, in tenths", reliable),
                    Line("", reliable, "one", "large"),
                ],
            ),
            f"The calibration error is {report['calibration']['error']:.4f}, in"
            f" {report['calibration']['bins']} bins of equally many scores.",
        ),
        _frequency(report),
    ]
    return f'<h2>Curves</h2>\n<div class="plots">\n{"".join(pieces)}</div>\n'


def _frequency(report: Mapping[str, Any]) -> str:
    of = report["frequency_of"]
    key = "support" if of == "images here" else "trained"
    dots = [(one[key], one["f1"]) for one in report["per_tag"] if one["support"]]
    groups: dict[int, list[float]] = {}
    for count, f1 in dots:
        if count:
            groups.setdefault(count.bit_length(), []).append(f1)
    mean = [
        (2.0 ** (size - 0.5), sum(values) / len(values)) for size, values in sorted(groups.items())
    ]
    most = max([count for count, _ in dots], default=1)
    low = min([count for count, _ in dots if count], default=1)
    axis = Axis(of, _power_below(low), max(most * 1.15, 10.0), is_logarithmic=True)
    told = "Each dot is a tag; the line is the mean of tags that are about equally frequent."
    lines = [Line("a tag", dots, "one", "dots"), Line("mean", mean, "two")]
    drawn = line_plot("F1 of tags against how frequent they are", axis, Axis("F1"), lines)
    return _figure("F1 and frequency", drawn, told)


def _power_below(number: int) -> float:
    """The power of ten at the begin of an axis."""
    found = 1.0
    while found * 10 <= number:
        found *= 10
    return found


def _slices(report: Mapping[str, Any]) -> str:
    head = ("tags", "images", "macro F1", "micro F1", "weighted F1", "mAP")
    pieces = []
    for name, title in (
        ("category", "Category"),
        ("frequency", report["frequency_of"].capitalize()),
    ):
        rows = [
            (
                one["name"],
                f"{one['tags']:,}",
                f"{one['support']:,}",
                *(share(one[kind]["f1"]) for kind in _KINDS),
                share(one["map"]),
            )
            for one in report["slices"][name]
        ]
        if rows:
            pieces.append(plain_table((title, *head), rows))
    told = f'<p class="note">With the thresholds of: {escape(report["detail_of"])}.</p>\n'
    return f"<h2>By category and frequency</h2>\n{told}" + "<br>\n".join(pieces) if pieces else ""


def _tags(report: Mapping[str, Any]) -> str:
    has_training = report["frequency_of"] != "images here"
    head = ["tag", "category", *(["trained"] if has_training else []), "images", "F1", "precision"]
    head += ["recall", "AP", "TP", "FP", "FN", "threshold"]
    rows = [
        (
            one["tag"],
            one["category"],
            *((one["trained"],) if has_training else ()),
            *(one["support"], one["f1"], one["precision"], one["recall"], one["ap"]),
            *(one["tp"], one["fp"], one["fn"], float(one["threshold"])),
        )
        for one in sorted(report["per_tag"], key=lambda one: (-one["f1"], -one["support"]))
    ]
    return (
        f'<h2>Every tag</h2>\n<p class="note">With the thresholds of: {escape(report["detail_of"])}. A click on the'
        ' head of a column sorts by it.</p>\n<input type="search" placeholder="filter tags" aria-label="filter tags"'
        ' data-filters="tags"><output></output>\n'
        f'<div class="tall">{sorting_table(head, rows, texts=2, name="tags")}</div>\n'
    )


def _worst(report: Mapping[str, Any], worst: Sequence[WorstOfTag]) -> str:
    if not worst:
        return ""
    pieces = []
    for one in worst:
        rows = [("given, but not true", one.given), ("true, but not given", one.missed)]
        shown = "".join(
            f'<h4>{title}</h4>\n<div class="row">{"".join(map(_picture, images))}</div>\n'
            for title, images in rows
            if images
        )
        pieces.append(f"<section><h3>{escape(one.tag)}</h3>\n{shown}</section>\n")
    told = escape(
        "The tags with the most errors, each with the images that it is most wrong about by the thresholds of:"
        f" {report['rules'][0]['rule']}."
    )
    return f'<h2>Worst images</h2>\n<p class="note">{told}</p>\n<div class="wrong">\n{"".join(pieces)}</div>\n'


def _picture(image: WorstImage) -> str:
    last = image.name.rsplit("/", 1)[-1]
    shown = (
        f'<img src="{escape(image.picture)}" alt="" loading="lazy">'
        if image.picture
        else '<div class="gone">no picture</div>'
    )
    told = f"{image.score:.3f} {escape(last)}"
    return f'<figure title="{escape(image.name)}">{shown}<figcaption>{told}</figcaption></figure>'


def _figure(title: str, drawn: str, told: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>\n{drawn}<figcaption>{escape(told)}</figcaption></figure>\n"


def _points(
    curve: Sequence[Mapping[str, float]], across: str, up: str
) -> list[tuple[float, float]]:
    """The points of a curve up to where nothing is given, whose precision of 0 is none."""
    return [(one[across], one[up]) for one in curve if one[across] > 0]


def _cell(cell: str | float | int | None, is_text: bool) -> str:
    if is_text or isinstance(cell, str):
        return f'<td{_text(is_text)} dir="auto">{escape(str(cell or ""))}</td>'
    if cell is None:
        return "<td>–</td>"
    if isinstance(cell, int):
        return f'<td data-value="{cell}">{cell:,}</td>'
    return f'<td data-value="{cell:.6g}">{cell:.3f}</td>'


def _text(is_text: bool) -> str:
    return ' class="text"' if is_text else ""
