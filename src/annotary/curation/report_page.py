"""What a step or a pipeline has done, as one page of HTML that needs nothing from anywhere.

It is made of the `_report.json` that each step writes: what came in and went out, why rows were dropped, the settings;
of matching and balancing also shares, entries, and counts of texts against the rank of entries before and after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from annotary.curation._plan_notes import NOTES
from annotary.curation._rank_plot import Curve, rank_plot, told_number
from annotary.curation._report_parts import (
    MARK,
    bars,
    figures,
    page,
    percent,
    settings,
    table,
)
from annotary.curation.steps import FAILURES, REPORT, read_report
from annotary.curation.tables import first_line
from annotary.errors import OutputError, UsageError
from annotary.sinks import write_atomically

PICTURES = "_pictures.html"
"""The page with pictures that a step may have beside its tables; this page links to it."""

_PIPELINE_REPORT = "report.json"
_SHOWN_ENTRIES = 20
_MOST_REASONS = 25

_TOLD = {
    *("step", "settings", "layout", "parts", "parts_failed", "parts_missing", "rows_in", "rows_out"),
    *("dropped", "head", "tail", "curve", "asked", "t", "entries", "entries_unmatched", "text_columns"),
    *("entries_head", "matches_of_head_share", "tail_share", "tail_share_kept", "unmatched_share"),
    *("kept_share", "texts", "texts_matched", "matches", "matches_kept", "entries_matched"),
    *("command", "sources", "limits", "never_match"),
    *("web_texts", "web_texts_kept", "synthetic_texts", "synthetic_texts_kept"),
}  # fmt: skip
"""What of a report has its own place on the page; what else it says is listed."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step as the page tells of it.

    Attributes:
        name: Of its folder.
        folder: Where it is.
        report: What it has reported.
        run: What the pipeline says of it; empty where there is none.
    """

    name: str
    folder: Path
    report: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it did."""
        return str(self.report.get("step") or self.run.get("use") or "")

    @property
    def rows(self) -> tuple[int, int]:
        """Rows in and out."""
        told = self.run or self.report
        return int(told.get("rows_in", 0)), int(told.get("rows_out", 0))

    @property
    def dropped(self) -> Mapping[str, int]:
        """Why rows were dropped to how many they are."""
        return dict((self.run or self.report).get("dropped") or {})

    @property
    def is_of_entries(self) -> bool:
        """Whether entries are counted and not rows."""
        return self.kind == "metadata"


def write_page(folder: Path, output: Path) -> None:
    """Write the page of a step's or a pipeline's folder.

    Args:
        folder: What `annotary curate` has written.
        output: The page; an earlier one is replaced, and nothing else.

    Raises:
        UsageError: The folder holds no report.
        OutputError: Something else is there, or it cannot be written.
    """
    check_page(output)
    write_atomically(output, page_of(folder, output.parent).encode("utf-8", "backslashreplace"))


def check_page(output: Path) -> None:
    """Refuse a place where no page can be.

    Raises:
        UsageError: It does not end as a page does.
        OutputError: Something else is there.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {output} must end in .html")
    _check_ours(output, MARK)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is that of a pipeline, with one below for each step."""
    return (folder / NOTES).is_dir()


def write_plot(folder: Path, output: Path) -> None:
    """Write the plot of a balanced or matched folder, or of the last such step of a pipeline, as SVG.

    Raises:
        UsageError: There is none.
        OutputError: Something else is there, or it cannot be written.
    """
    if output.suffix.lower() != ".svg":
        raise UsageError(f"--plot {output} must end in .svg")
    _check_ours(output, '<svg class="plot"')
    for kind in ("balance", "match"):
        for step in reversed(_steps_of(folder)[1]):
            curve = _curve_of(step) if step.kind == kind else []
            if curve:
                write_atomically(output, rank_plot(curve, step.report.get("t"), is_alone=True))
                return
    raise UsageError(f"{folder} holds nothing that was matched or balanced, so there is no plot")


def page_of(folder: Path, beside: Path) -> str:
    """The page as HTML.

    Args:
        folder: What `annotary curate` has written.
        beside: The folder of the page, for links.
    """
    pipeline, steps = _steps_of(folder)
    if pipeline is None:
        (step,) = steps
        title = f"{step.kind or 'step'}: {folder.resolve().name}"
        about = _told_parts(step.report).partition(" · ")[2]  # its kind is in the title
        return page(title, about, _step(step, beside))
    names = [Path(name).name for name in pipeline.get("tables", [])]
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    about = f"{Path(str(pipeline.get('pipeline', ''))).name} · {', '.join(names[:4])}{more}"
    if not pipeline.get("is_whole", True):
        about += " · not all steps are done"
    body = _overview(steps) + "".join(
        f'<section id="{escape(step.name)}"><h2>{escape(step.name)}</h2>\n'
        f'<p class="about">{escape(_told_parts(step.report))}</p>\n{_step(step, beside)}</section>\n'
        for step in steps
    )
    return page(f"Curation: {folder.resolve().name}", about, body)


def _check_ours(output: Path, mark: str) -> None:
    try:
        with output.open("rb") as file:
            start = file.read(len(mark) + 32)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    if start and mark.encode() not in start:
        raise OutputError(
            f"{output} is no report of annotary; move it away, or choose another name"
        )


def _steps_of(folder: Path) -> tuple[Mapping[str, Any] | None, list[_Step]]:
    """What a pipeline says, if it is one, and its steps; else the one step."""
    if is_pipeline(folder):
        try:
            pipeline = json.loads((folder / _PIPELINE_REPORT).read_text(encoding="utf-8"))
            told = [(dict(one), folder / str(one["name"])) for one in pipeline["steps"]]
        except FileNotFoundError as error:
            raise UsageError(f"{folder} has no report yet: the pipeline was stopped") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            told_why = first_line(error)
            raise UsageError(f"{folder / _PIPELINE_REPORT} cannot be read: {told_why}") from error
        return pipeline, [_Step(run["name"], place, _report(place), run) for run, place in told]
    if not folder.is_dir():
        raise UsageError(f"no such folder: {str(folder)!r}")
    return None, [_Step(folder.resolve().name, folder, read_report(folder), {})]


def _report(folder: Path) -> Mapping[str, Any]:
    """What a step has reported; nothing where there is no report."""
    return read_report(folder) if (folder / REPORT).exists() else {}


def _told_parts(report: Mapping[str, Any]) -> str:
    """How many tables a step has worked on, and what is missing."""
    if "parts" not in report:
        return str(report.get("step", ""))
    failed, missing = len(report.get("parts_failed") or []), report.get("parts_missing") or 0
    count = int(report["parts"])
    told = [str(report.get("step", "")), "1 part" if count == 1 else f"{count:,} parts"]
    if failed:
        told.append(f"{failed:,} broken parts, listed in {FAILURES}")
    if missing:
        told.append(f"{missing:,} parts are missing")
    return " · ".join(told)


def _overview(steps: Sequence[_Step]) -> str:
    """What came in at the begin, what is left at the end, and each step between."""
    of_rows = [step for step in steps if not step.is_of_entries]
    if not of_rows:
        return ""
    first, last = of_rows[0].rows[0], of_rows[-1].rows[1]
    shown = [("rows in", f"{first:,}"), ("rows left", f"{last:,}")]
    if last <= first:  # captions that were written add rows
        shown.append(("share that is left", _of(last, first)))
    seconds = sum(float(step.run.get("seconds", 0.0)) for step in steps)
    shown.append(("time of all steps", _duration(seconds)))
    most = max(first, *(step.rows[1] for step in of_rows), 1)
    rows = [("in", (f"{first:,}", "", ""), first / most)]
    for step in of_rows:
        went_in, went_out = step.rows
        taken = _duration(float(step.run.get("seconds", 0.0)))
        rows.append((step.name, (f"{went_out:,}", _of(went_out, went_in), taken), went_out / most))
    return (
        figures(shown)
        + "<h3>Rows after each step</h3>\n"
        + bars(
            *(("step", "rows", "kept", "time"), rows),
            links=[step.name for step in steps],
            less=3,
        )
    )


def _step(step: _Step, beside: Path) -> str:
    """All that is told of a step."""
    pieces = [_figures(step)]
    if (step.folder / PICTURES).is_file():
        link = _relative(step.folder / PICTURES, beside)
        pieces.append(
            f'<p class="link"><a href="{escape(link)}">Texts and pictures, side by side</a></p>\n'
        )
    pieces.append(_reasons(step))
    curve = _curve_of(step)
    if curve:
        pieces.append(_plot(curve, step.report.get("t")))
    pieces.append(_entries(step))
    if step.kind == "metadata":
        pieces.append(_sources(step.report))
    more = {
        name: value
        for name, value in step.report.items()
        if name not in _TOLD and not isinstance(value, (dict, list))
    }
    pieces.append(settings("More numbers", more))
    asked = {**_given(step.report.get("asked")), **_given(step.run.get("options"))}
    pieces.append(settings("Options", asked))
    pieces.append(
        settings("Settings that the result depends on", _given(step.report.get("settings")))
    )
    return "".join(pieces)


def _given(values: Any) -> dict[str, Any]:
    """What was said of some values."""
    if not isinstance(values, Mapping):
        return {}
    return {name: value for name, value in values.items() if value not in (None, [], "", False)}


def _figures(step: _Step) -> str:
    """The numbers that matter most of a step."""
    report = step.report
    went_in, went_out = step.rows
    if step.is_of_entries:
        shown = [("read", f"{went_in:,}"), ("entries", f"{went_out:,}")]
        never = (report.get("never_match") or {}).get("count", 0)
        return figures([*shown, ("can match no text", f"{never:,}")])
    shown = [
        ("rows in", f"{went_in:,}"),
        ("rows out", f"{went_out:,}"),
        ("kept", _of(went_out, went_in)),
    ]
    if step.kind == "capfilt":
        shown = [("texts in", f"{went_in:,}"), ("texts kept", f"{went_out:,}")]
        for origin in ("web", "synthetic"):
            texts = int(report.get(f"{origin}_texts", 0))
            kept = int(report.get(f"{origin}_texts_kept", 0))
            shown.append((f"{origin} texts kept, of {texts:,}", _of(kept, texts)))
    if step.kind == "match":
        texts, matched = int(report.get("texts", 0)), int(report.get("texts_matched", 0))
        shown.append(("texts without an entry", _of(texts - matched, texts)))
        if texts:
            shown.append(("entries in a text", f"{report.get('matches', 0) / texts:.2f}"))
        if "entries_matched" in report:
            shown.append(
                (f"entries found, of {report['entries']:,}", f"{report['entries_matched']:,}")
            )
    if step.kind == "balance" and "t" in report:
        shown += [
            ("t", told_number(report["t"])),
            ("texts without an entry", percent(report["unmatched_share"])),
            *([("texts kept", percent(report["kept_share"]))] if _has_texts_apart(report) else []),
            (f"entries above t, of {report['entries']:,}", f"{report['entries_head']:,}"),
            ("matches in the tail, before", percent(report["tail_share"])),
            ("matches in the tail, after", percent(report["tail_share_kept"])),
        ]
    return figures(shown)


def _has_texts_apart(report: Mapping[str, Any]) -> bool:
    """Whether rows have several texts, of which some may be kept and others not."""
    return len((report.get("settings") or {}).get("text_columns", ())) > 1


def _reasons(step: _Step) -> str:
    """Why rows were dropped, the most frequent reasons first."""
    ordered = sorted(step.dropped.items(), key=lambda one: (-one[1], one[0]))
    if not ordered:
        return "" if step.is_of_entries else '<p class="none">No row was dropped.</p>\n'
    unit = {"metadata": "names", "capfilt": "texts"}.get(step.kind, "rows")
    whole = max(1, step.rows[0])
    shown = ordered[:_MOST_REASONS]
    if len(ordered) > _MOST_REASONS:
        rest = sum(rows for _, rows in ordered[_MOST_REASONS:])
        shown.append((f"{len(ordered) - _MOST_REASONS} other reasons", rest))
    lines = [(why, (f"{rows:,}", percent(rows / whole)), rows / whole) for why, rows in shown]
    return f"<h3>Why {unit} were dropped</h3>\n" + bars(("reason", unit, f"of all {unit}"), lines)


def _plot(curve: Curve, t: float | None) -> str:
    told = "Each entry by its rank: the one that most texts match is the first. Both axes are logarithmic."
    if t is not None:
        told += (
            " An entry above the line of t keeps about t texts, and more where its texts have rarer entries, too;"
            " where none is kept, the line has a gap."
        )
    title = "Texts of each entry" + (", before and after" if t is not None else "")
    return (
        f'<h3>{title}</h3>\n<figure><div class="wide">{rank_plot(curve, t, width=888, height=400)}</div>'
        f'<div class="narrow">{rank_plot(curve, t, width=340, height=300)}</div>'
        f"<figcaption>{told}</figcaption></figure>\n"
    )


def _entries(step: _Step) -> str:
    """The entries that most texts match, and those that the fewest match."""
    head, tail = step.report.get("head"), step.report.get("tail")
    if head is None and step.kind == "match":
        return _most_matched(step)
    if not head:
        return ""
    shown = head[:_SHOWN_ENTRIES]
    left = (tail or [])[-_SHOWN_ENTRIES:] if len(head) + len(tail or []) > len(shown) else []
    ranked = {one["id"] for one in shown}
    left = [one for one in left if one["id"] not in ranked]
    titles = ("entry", "before", "after", "probability")
    pieces = [f"<div><h3>Head: most texts</h3>\n{table(titles, _entry_rows(shown))}</div>\n"]
    if left:
        pieces.append(
            f"<div><h3>Tail: fewest texts</h3>\n{table(titles, _entry_rows(left))}</div>\n"
        )
    return f'<div class="two">\n{"".join(pieces)}</div>\n'


def _entry_rows(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for one in entries:
        name = f"entry {one['id']:,}" if one.get("entry") is None else _visible(str(one["entry"]))
        chance = float(one["probability"])
        yield (
            name,
            f"{one['before']:,}",
            f"{one['after']:,}",
            f"{chance:.5f}" if chance < 1 else "1",
        )


def _most_matched(step: _Step) -> str:
    """The entries of a folder of matches that most texts match."""
    counts, names = _counts(step.folder), _names(step.folder)
    if counts is None or not counts.any():
        return ""
    order = np.argsort(-counts.astype(np.int64), kind="stable")[:_SHOWN_ENTRIES]
    texts = max(1, int(step.report.get("texts", 0)))
    rows = [
        (
            _visible(names[one]) if one < len(names) else f"entry {one:,}",
            (f"{counts[one]:,}", percent(int(counts[one]) / texts)),
            int(counts[one]) / int(counts[order[0]]),
        )
        for one in order
        if counts[one]
    ]
    return "<h3>Entries that most texts match</h3>\n" + bars(
        ("entry", "texts", "of all texts"), rows
    )


def _sources(report: Mapping[str, Any]) -> str:
    """Where the entries of a list come from."""
    rows = [
        (name, f"{one.get('texts', 0):,}", f"{one.get('entries', 0):,}")
        for name, one in (report.get("sources") or {}).items()
    ]
    return "<h3>Sources</h3>\n" + table(("source", "read", "entries"), rows) if rows else ""


def _curve_of(step: _Step) -> Curve:
    """Texts against rank, at ranks that are spread evenly over a logarithmic scale."""
    if step.report.get("curve"):
        return [
            (int(rank), int(before), int(after)) for rank, before, after in step.report["curve"]
        ]
    counts = _counts(step.folder) if step.kind == "match" else None
    if counts is None or not counts.any():
        return []
    ordered = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), 200).round().astype(np.int64))
    return [(int(rank), int(ordered[rank - 1]), None) for rank in ranks]


def _counts(folder: Path) -> Any:
    """Counts of texts for each entry, uint64[entries]; None where there are none."""
    from annotary.curation.balance import read_counts_file
    from annotary.curation.match import COUNTS

    try:
        return read_counts_file(folder / COUNTS)
    except UsageError:
        return None


def _names(folder: Path) -> list[str]:
    """The entries; none where they do not stand beside."""
    from annotary.curation.match import ENTRY_LIST

    try:
        return list(json.loads((folder / ENTRY_LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return []


def _visible(entry: str) -> str:
    """An entry of which spaces around it can be seen."""
    return f"“{entry}”" if entry != entry.strip() or not entry else entry


def _relative(path: Path, beside: Path) -> str:
    """A link from a folder to a file."""
    relative = os.path.relpath(str(path), str(beside))
    return quote(Path(relative).as_posix(), errors="surrogateescape")


def _of(part: int, whole: int) -> str:
    """A share; none where there is nothing, or where rows were added, as of lists of texts."""
    return percent(part / whole) if whole and part <= whole else "–"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
