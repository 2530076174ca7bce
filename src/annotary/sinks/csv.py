"""CSV: one row an image, in the order of the input: `image,width,height`, and columns for what a run finds.

Names and their scores are lists in one cell each, in descending order of score, joined by the separator (", " unless
told otherwise); of several captions each has a line of its cell. What has more to it than a name is a list in JSON. A
run that finds boxes, answers or matches alone writes a row for each of them instead, with the image beside it; how many
rows belong to the image stands in each, so that a part of them is never taken for all. A file name that is not valid
UTF-8 is written with escapes, as in JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

from annotary.errors import OutputError
from annotary.records import Annotation, Caption, Label, Reason, Tag
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import EDGES, best_of

SUFFIXES = (".csv",)
OPTIONS = ("separator",)
PARTS = ("tags", "labels", "captions", "answers", "matches", "boxes", "decision")

_IMAGE = ("image", "width", "height")

ROW_EACH = {
    "answers": (*_IMAGE, "answers", "question", "answer", "score"),
    "matches": (*_IMAGE, "matches", "text", "score", "cosine"),
    "boxes": (*_IMAGE, "boxes", "label", "score", *EDGES),
}
"""The columns of parts that have a row each when nothing else is found. The fourth says how many there are."""

_CELLS = {
    "tags": ("tags", "scores"),
    "captions": ("caption", "caption_score", "caption_match"),
    "answers": ("answers",),
    "matches": ("matches",),
    "boxes": ("boxes",),
    "decision": ("decision", "reasons"),
}


def columns_of(parts: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table of these parts."""
    if len(parts) == 1 and parts[0] in ROW_EACH:
        return ROW_EACH[parts[0]]
    scores = "label_scores" if "tags" in parts else "scores"
    cells = {**_CELLS, "labels": ("labels", scores)}
    return (*_IMAGE, *(column for part in PARTS if part in parts for column in cells[part]))


HEADINGS = tuple(
    columns_of(parts) for count in range(len(PARTS) + 1) for parts in combinations(PARTS, count)
)
"""The columns of all tables."""


class CsvRows:
    """Records as rows, each ended by a line feed; a cell may hold line feeds when it is quoted.

    Args:
        separator: What stands between two names, and between two scores.
        columns: What a row holds, from `columns_of`.
    """

    between = b""
    closing = b""

    def __init__(self, separator: str, columns: tuple[str, ...]) -> None:
        self.opening = _heading(columns)
        self._separator = separator
        self._columns = columns

    def name(self, image: str) -> str:
        """The name with what is not valid UTF-8 escaped."""
        return image.encode("utf-8", "backslashreplace").decode()

    def encode(self, annotation: Annotation) -> bytes:
        """One row; for parts that have a row each, all rows of the image."""
        image = {
            "image": self.name(annotation.image),
            "width": annotation.width,
            "height": annotation.height,
        }
        part = _part_of(self._columns)
        found = [self._cells(annotation)] if part is None else _rows_each(annotation, part)
        return b"".join(self._row({**image, **cells}) for cells in found)

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole record."""
        rows = _rows(file, len(self._columns))
        if _part_of(self._columns) is None:
            return ((row[0], end) for row, end in rows)
        return ((found[0][0], end) for found, end in _together(rows))

    def _cells(self, annotation: Annotation) -> dict[str, object]:
        decision = annotation.decision
        label_scores = self._scores(annotation.labels)
        has_tags = "tags" in self._columns
        captions = [caption for caption in annotation.captions if caption.text.split()]
        return {
            "tags": self._separator.join(tag.name for tag in annotation.tags),
            "scores": self._scores(annotation.tags) if has_tags else label_scores,
            "labels": self._separator.join(label.name for label in annotation.labels),
            "label_scores": label_scores,
            "caption": "\n".join(" ".join(caption.text.split()) for caption in captions),
            **_judged(captions),
            "answers": _json(answer.to_json() for answer in annotation.answers),
            "matches": _json(match.to_json() for match in annotation.matches),
            "boxes": _json(box.to_json() for box in annotation.boxes),
            "decision": decision.action if decision else "",
            "reasons": self._separator.join(map(_told, decision.reasons if decision else ())),
        }

    def _row(self, cells: Mapping[str, object]) -> bytes:
        row = [cells.get(column, "") for column in self._columns]
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # so that it quotes both characters
        line = text.getvalue().removesuffix("\r\n")
        return line.encode("utf-8", "backslashreplace") + b"\n"

    def _scores(self, found: Sequence[Tag | Label]) -> str:
        return self._separator.join(f"{entry.score:g}" for entry in found)


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> AppendingFile:
    """A sink that continues the file."""
    assert output is not None
    columns = columns_of(parts)
    _check_columns(output, columns)
    return AppendingFile(output, CsvRows(options.separator, columns))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every row; the labels where there is no column of tags, else those of boxes."""
    try:
        with output.open("rb") as file:
            columns = _columns_in(file.readline())
            if not {"tags", "labels", "boxes"}.intersection(columns):
                raise OutputError(f"{output} has no tags among its columns")
            rows = _rows(file, len(columns))
            if columns == ROW_EACH["boxes"]:
                for found, _ in _together(rows):
                    boxes = ((row[4], float(row[5])) for row in found if row[5])
                    yield TagsOfImage(found[0][0], best_of(boxes))
            elif {"tags", "labels"}.intersection(columns):
                for row, _ in rows:
                    yield TagsOfImage(row[0], _named(row[3:5], row[0], options.separator))
            else:
                place = columns.index("boxes")
                for row, _ in rows:
                    entries = json.loads(row[place] or "[]")
                    yield TagsOfImage(
                        row[0], best_of((box["label"], box["score"]) for box in entries)
                    )
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{output} cannot be read: {error}") from error


def _heading(columns: Sequence[str]) -> bytes:
    return (",".join(columns) + "\n").encode()


def _columns_in(line: bytes) -> tuple[str, ...]:
    """The columns that the first line of a table of annotary names; none when it is another table."""
    return next((columns for columns in HEADINGS if _heading(columns) == line), ())


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a table of annotary that has other columns.

    Raises:
        OutputError: It has.
    """
    try:
        with path.open("rb") as file:
            there = _columns_in(file.readline(1000))
    except OSError:
        return  # opening it tells what is wrong
    if there and there != columns:
        raise OutputError(
            f"{path} has the columns {', '.join(there)}, and this run writes {', '.join(columns)};"
            " choose another --output"
        )


def _part_of(columns: tuple[str, ...]) -> str | None:
    """The part that has a row each in a table of these columns."""
    return next((part for part, own in ROW_EACH.items() if own == columns), None)


def _rows_each(annotation: Annotation, part: str) -> list[dict[str, object]]:
    """The rows of an image by column, without the image; one that is empty where there is nothing."""
    entries: list[dict[str, object]]
    if part == "boxes":
        entries = [
            {
                "label": box.label,
                "score": f"{box.score:g}",
                **{edge: f"{at:.10g}" for edge, at in zip(EDGES, box.xyxy, strict=True)},
            }
            for box in annotation.boxes
        ]
    elif part == "answers":
        entries = [
            {"question": answer.question, "answer": answer.text, "score": _number(answer.score)}
            for answer in annotation.answers
        ]
    else:
        entries = [
            {"text": match.text, "score": f"{match.score:g}", "cosine": _number(match.cosine)}
            for match in annotation.matches
        ]
    return [{**entry, part: len(entries)} for entry in entries or [{}]]


def _together(
    rows: Iterator[tuple[list[str], int]],
) -> Iterator[tuple[list[list[str]], int]]:
    """The rows of each image that has all of them, and where they end.

    Raises:
        ValueError: Rows of an image are missing, and others follow.
    """
    found: list[list[str]] = []
    for row, end in rows:
        if found and (row[0], row[3]) != (found[0][0], found[0][3]):
            raise ValueError(f"rows of {found[0][0]!r} are missing before byte {end}")
        found.append(row)
        if not row[3].isdecimal():
            raise ValueError(f"a row does not say how many belong to its image, before byte {end}")
        if len(found) == max(1, int(row[3])):
            yield found, end
            found = []


def _judged(captions: Sequence[Caption]) -> dict[str, object]:
    """How captions were judged, in the order of their lines; nothing where none was."""
    judged = {
        "caption_score": [_number(caption.score) for caption in captions],
        "caption_match": [_number(caption.match) for caption in captions],
    }
    return {name: "\n".join(found) if any(found) else "" for name, found in judged.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _json(entries: Iterator[dict[str, object]]) -> str:
    return json.dumps(list(entries), ensure_ascii=False)


def _told(reason: Reason) -> str:
    return f"{reason.name} {reason.score:g} >= {reason.threshold:g} ({reason.action})"


def _named(cells: list[str], image: str, separator: str) -> tuple[tuple[str, float], ...]:
    """The names and scores in two cells.

    Raises:
        ValueError: They are not parted by this separator.
    """
    names, scores = (cell.split(separator) if cell else [] for cell in cells)
    try:
        return tuple(zip(names, map(float, scores), strict=True))
    except ValueError as error:
        told = f"{separator!r} does not part the tags and scores of {image!r}"
        raise ValueError(f"{told}; say the --separator that it was written with") from error


def _rows(file: BinaryIO, cells: int) -> Iterator[tuple[list[str], int]]:
    """Every whole row after the head, with so many cells, and where it ends.

    Raises:
        ValueError: There is something else than rows of ours and a tail that was cut off.
    """
    end = file.tell()
    parts: list[bytes] = []
    is_open = False  # whether a quote is
    for line in file:
        parts.append(line)
        is_open ^= line.count(b'"') % 2 == 1
        if is_open or not line.endswith(b"\n"):
            continue
        row = _cells(b"".join(parts))
        if len(row) != cells:
            raise ValueError(f"a row of {len(row)} cells where {cells} belong, at byte {end}")
        end += sum(map(len, parts))
        parts = []
        yield row, end
    # A tail that was cut off is a part of one row. If whole rows are in it, a quote before them is wrong.
    if any(len(_cells(line)) == cells for line in parts[1:-1]):
        raise ValueError(f"a quote is not closed after byte {end}")


def _cells(row: bytes) -> list[str]:
    before = csv.field_size_limit(max(len(row), csv.field_size_limit()))
    try:
        return next(csv.reader([row.decode("utf-8", "replace")]), [])
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(before)
