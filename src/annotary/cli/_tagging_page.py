"""Pages of what was measured of taggers, with small pictures of the images that they are most wrong about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotary.cli._options import made
from annotary.cli._tagging_truth import Truth, names_of
from annotary.errors import OutputError, UsageError
from annotary.images import DecodeOptions

if TYPE_CHECKING:
    from annotary.evaluation.tagging_streams import WorstImages


def check_page(path: Path, mark: str | None = None) -> None:
    """Refuse a place where no page can be, before the work is done.

    Args:
        path: Of the page.
        mark: What pages of the kind begin with.

    Raises:
        UsageError: It does not end as a page does.
        OutputError: Something else is there.
    """
    from annotary.evaluation.tagging_report import MARK

    wanted = MARK if mark is None else mark
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {path} must end in .html")
    try:
        with path.open("rb") as file:
            start = file.read(len(wanted) + 32)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if start and wanted.encode() not in start:
        raise OutputError(f"{path} is no report of annotary; move it away, or choose another name")


def write_page(
    path: Path,
    report: Mapping[str, Any],
    worst: WorstImages,
    truth: Truth,
    values: Mapping[str, Any],
) -> None:
    """Write the page of a report.

    Args:
        path: Of the page.
        report: What was measured.
        worst: The images that are most wrong.
        truth: All images.
        values: The values of the options.

    Raises:
        OutputError: It cannot be written.
    """
    from annotary.curation._capfilt_page import Pictures
    from annotary.evaluation.tagging_report import (
        WorstImage,
        WorstOfTag,
        pictured_tags,
        report_page,
    )
    from annotary.sinks import write_atomically
    from annotary.sources import SourceOptions

    shown = pictured_tags(report)
    found = {tag: (worst.given_wrongly(tag), worst.missed(tag)) for tag in shown}
    numbers = {one.image for both in found.values() for side in both for one in side}
    names = names_of(truth, numbers)
    table = [str(values["dataset"])] if "dataset" in values else []
    tables = [one for one in table if Path(one).is_file()]
    pictures = Pictures(tables, SourceOptions(), made(DecodeOptions, values)).of(
        sorted(set(names.values()))
    )

    def images(wrong: Any) -> list[WorstImage]:
        return [
            WorstImage(names[one.image], one.score, pictures.get(names[one.image])) for one in wrong
        ]

    pages = [
        WorstOfTag(report["per_tag"][tag]["tag"], images(given), images(missed))
        for tag, (given, missed) in found.items()
        if given or missed
    ]
    write_atomically(path, report_page(report, pages).encode("utf-8", "backslashreplace"))
