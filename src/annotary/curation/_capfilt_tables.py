"""The images and texts of tables, row by row: CSV, JSON Lines, Parquet, and WebDataset tars.

CSV, JSON Lines and tars need nothing but Python; Parquet needs pyarrow. What is no row (no JSON, a wrong number of
cells, a sample without an image) is a failure that has the row's name, and the next row follows.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from annotary.curation.tables import (
    SUFFIXES,
    arrow,
    first_line,
    is_of_a_step,
    no_column,
    open_parquet,
    refuse_unfinished,
)
from annotary.errors import NothingToDo, UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions
from annotary.sources._braces import expand
from annotary.sources._columns import column_of, place_in
from annotary.sources._members import inner_path
from annotary.sources._paths import kind_of, reason
from annotary.sources._rows import LONGEST_ROW, image_at
from annotary.sources._shard import Shard
from annotary.sources._tar import ERRORS, open_tar
from annotary.sources.folder import has_image_suffix

TEXT_COLUMNS = (
    "caption", "text", "alt", "alt_text", "txt", "title", "captions", "texts", "description", "TEXT",
)  # fmt: skip
"""Usual names of a column with texts, the likeliest first."""

_LOOKED_AT = 100
"""Rows of JSON Lines, and samples of a tar, of which the columns are taken for those of all."""

_ROWS_AT_ONCE = 32
"""Of Parquet, where a row may hold an encoded image."""

Cells: TypeAlias = Mapping[str, Any]


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        table: The table's path.
        number: From 1, without the head.
        found: Its image, or why there is none.
        texts: Column and value of every cell that should hold a text, or a list of texts.
    """

    table: str
    number: int
    found: Item | Failure
    texts: tuple[tuple[str, Any], ...]


class _Form(Protocol):
    """How rows stand in a file."""

    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells | str]]:
        """Number and cells of every row; in the place of the cells, why it is no row."""


class Tables:
    """Tables that can be gone through several times.

    Args:
        paths: Tables; folders, of which all tables are taken, but for names that begin with "_" or "."; names with
            braces, such as `shards/{00000..00146}.tar`.
        text_columns: The columns that hold texts; of each table the first with a usual name when there are none. None
            reads no texts.
        options: Which column holds the images, and how large one may be.

    Attributes:
        files: Their paths.

    Raises:
        UsageError: There is no table, one cannot be read, or has no such column; the message lists the columns.
        MissingExtra: One is Parquet, and there is no pyarrow.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        text_columns: Sequence[str] | None,
        options: SourceOptions,
    ) -> None:
        self.files = list(dict.fromkeys(file for path in paths for file in _files(os.fspath(path))))
        if not self.files:
            raise NothingToDo(f"no table in {', '.join(str(path) for path in paths)}")
        self._options = options
        self._shard = Shard.of(options.shard)
        self._columns: dict[str, tuple[str, tuple[str, ...]]] = {}
        for file in self.files:
            known = _columns_of(file)
            if known:  # a table without rows may have none
                image = "image" if _is_tar(file) else column_of(file, known, options)
                texts = () if text_columns is None else _text_columns(file, known, text_columns)
                self._columns[file] = image, texts

    def rows(self, *, with_images: bool) -> Iterator[Row]:
        """The rows of all tables, in their order.

        Args:
            with_images: Whether the images of tars are read; else an item has no bytes of its image.
        """
        for file, (image, texts) in self._columns.items():
            form = _form_of(file, self._options, with_images=with_images)
            for number, cells in form.rows((image, *texts)):
                if isinstance(cells, str):
                    name = f"{file}:{number}" if number else file
                    yield Row(file, number, Failure.of(name, UnreachableImage(cells)), ())
                    continue
                found = _image(file, number, cells.get(image), self._options)
                if self._is_here(found):
                    yield Row(file, number, found, tuple((name, cells.get(name)) for name in texts))

    def _is_here(self, found: Item | Failure) -> bool:
        """Whether an image belongs to this machine's shard."""
        relative = found.relative if isinstance(found, Item) else ""
        return self._shard.count == 1 or self._shard.has(relative or found.image)


def _files(path: str) -> Iterator[str]:
    """The tables that an argument names."""
    if kind_of(path) == "folder":
        refuse_unfinished(Path(path))
        for place, folders, names in os.walk(path):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(("_", ".")) and not is_of_a_step(Path(place, name))
            )
            for name in sorted(names):
                if not name.startswith(("_", ".")) and _form_name(name):
                    yield os.path.join(place, name)  # noqa: PTH118 - as it was typed
        return
    for file in [path] if kind_of(path) else expand(path):
        kind = kind_of(file)
        if not kind:
            raise UsageError(f"no such file or folder: {file!r}")
        if kind != "file" or not _form_name(file):
            raise UsageError(f"{file} is no table; tables end in {', '.join(SUFFIXES)}")
        yield file


def _form_name(file: str) -> str:
    lower = file.lower()
    ends = [end for end in SUFFIXES if lower.endswith(end)]
    return SUFFIXES[max(ends, key=len)] if ends else ""


def _is_tar(file: str) -> bool:
    return _form_name(file) == "webdataset"


def _form_of(file: str, options: SourceOptions, *, with_images: bool) -> _Form:
    """What reads a table."""
    if _is_tar(file):
        return _Tar(file, options.max_bytes, with_images=with_images)
    forms: dict[str, Callable[[str], _Form]]
    forms = {"csv": _Csv, "jsonl": _JsonLines, "parquet": _Parquet}
    return forms[_form_name(file)](file)


def _columns_of(file: str) -> list[str]:
    """The columns of a table.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return list(_form_of(file, SourceOptions(), with_images=False).columns())
    except OSError as error:
        raise UsageError(f"{file}: {reason(error)}") from error
    except (csv.Error, *ERRORS) as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from error


def _text_columns(file: str, known: Sequence[str], told: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table that hold texts.

    Raises:
        UsageError: There is none, or one is not there.
    """
    for name in told:
        if name not in known:
            raise UsageError(no_column(file, name, known, "--text-column"))
    if told:
        return tuple(dict.fromkeys(told))
    for name in TEXT_COLUMNS:
        if name in known:
            return (name,)
    listed = ", ".join(map(repr, known[:20]))
    raise UsageError(
        f"none of the columns of {file} has a usual name for texts; choose one with --text-column: {listed}"
    )


def _image(file: str, number: int, cell: Any, options: SourceOptions) -> Item | Failure:
    """The image of a row, named as the source of such tables names it."""
    if isinstance(cell, Item | Failure):  # of a tar
        return cell
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(data, bytes) and data:
        end = path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else ""
        name = f"{number - 1}-{end}" if end.strip(".") else str(number - 1)
        if len(data) > options.max_bytes:
            told = UnreachableImage(f"larger than {options.max_bytes:,} bytes (--max-bytes)")
            return Failure.of(f"{file}/{name}", told)
        return Item(f"{file}/{name}", data=data, relative=f"{Path(file).name}/{name}")
    if isinstance(path, str) and path.strip() and "\0" not in path:
        folder = str(Path(file).parent)
        return image_at(place_in(path, folder), folder)
    return Failure.of(f"{file}:{number}", UnreachableImage("this row names no image"))


def _opened(file: str) -> Any:
    # Names of files are bytes to the system, which need not be UTF-8.
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    return gzip.open(file, "rt", **how) if file.lower().endswith(".gz") else open(file, **how)


class _Csv:
    def __init__(self, file: str) -> None:
        self._file = file

    def columns(self) -> Sequence[str]:
        with _opened(self._file) as file:
            return [name.strip() for name in next(self._reader(file), [])]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells | str]]:
        number = 0
        try:
            with _opened(self._file) as file:
                reader = self._reader(file)
                head = [name.strip() for name in next(reader)]
                places = {name: head.index(name) for name in columns}
                while True:
                    try:
                        cells = next(reader, None)
                    except csv.Error as error:
                        number += 1
                        yield number, f"this row is broken: {error}"
                        continue
                    if cells is None:
                        return
                    if cells:
                        number += 1
                        yield number, _named(cells, head, places)
        except (OSError, EOFError) as error:
            yield 0, _told_end(number, error)

    def _reader(self, file: Any) -> Any:
        # The limit is one for the process; it is raised and never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
        first = file.readline(LONGEST_ROW)
        file.seek(0)
        is_tabs = ".tsv" in self._file.lower()[-7:]
        return csv.reader(file, delimiter="\t" if is_tabs else max(",;\t", key=first.count))


def _named(cells: Sequence[str], head: Sequence[str], places: Mapping[str, int]) -> Cells | str:
    """The cells of a row by their columns."""
    if len(cells) != len(head):
        return f"{len(cells)} cells in place of {len(head)}; put texts with commas in quotes"
    return {name: cells[place] for name, place in places.items()}


class _JsonLines:
    def __init__(self, file: str) -> None:
        self._file = file

    def columns(self) -> Sequence[str]:
        found: dict[str, None] = {}
        for _, cells in islice(self.rows(()), _LOOKED_AT):
            if not isinstance(cells, str):
                found.update(dict.fromkeys(cells))
        return list(found)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells | str]]:
        number = 0
        try:
            with _opened(self._file) as file:
                for line in file:
                    if line.strip():
                        number += 1
                        yield number, _object(line)
        except (OSError, EOFError) as error:
            yield 0, _told_end(number, error)


def _object(line: str | bytes) -> Cells | str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"this row is not JSON: {error}"
    return found if isinstance(found, dict) else "this row is no JSON object"


class _Parquet:
    def __init__(self, file: str) -> None:
        arrow()
        self._file = file

    def columns(self) -> Sequence[str]:
        import pyarrow

        try:
            with open_parquet(self._file) as table:
                return list(table.schema_arrow.names)
        except pyarrow.ArrowException as error:
            raise UsageError(f"{self._file} cannot be read: {first_line(error)}") from error

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells | str]]:
        import pyarrow

        number = 0
        try:
            with open_parquet(self._file) as table:
                wanted = list(dict.fromkeys(columns))
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False):
                    for cells in batch.to_pylist():
                        number += 1
                        yield number, cells
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            yield 0, _told_end(number, error)


class _Tar:
    """Samples of a tar, as WebDataset has them.

    Args:
        file: The tar.
        max_bytes: Of an image; a larger one is a failure.
        with_images: Whether images are read; else an item has no bytes.
    """

    def __init__(self, file: str, max_bytes: int, *, with_images: bool) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._with_images = with_images

    def columns(self) -> Sequence[str]:
        found: dict[str, None] = {}
        for _, cells in islice(self.rows(()), _LOOKED_AT):
            if not isinstance(cells, str):
                found.update(dict.fromkeys(cells))
        return [name for name in found if name != "image"]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Cells | str]]:
        number, sample, key = 0, dict[str, Any](), ""
        try:
            with open(self._file, "rb") as file, open_tar(file) as archive:
                for member in archive:
                    path = inner_path(member.name) if member.isreg() else ""
                    start = path.rfind("/") + 1
                    stem, _, ending = path[start:].partition(".")
                    if not ending or not stem or "__MACOSX" in path:
                        continue
                    if sample and path[:start] + stem != key:
                        number += 1
                        yield number, self._whole(sample, key)
                        sample = {}
                    key = path[:start] + stem
                    self._add(sample, archive, member, path, ending)
        except (OSError, *ERRORS) as error:
            yield 0, _told_end(number, error)
        if sample:
            yield number + 1, self._whole(sample, key)

    def _add(
        self, sample: dict[str, Any], archive: Any, member: Any, path: str, ending: str
    ) -> None:
        """Put a member into its sample."""
        name = f"{self._file}/{path}"
        if has_image_suffix(path):
            # Beside a.jpg, a.mask.png is a part of the sample and not its image.
            if "." not in ending or not isinstance(sample.get("image"), Item | Failure):
                sample["image"] = self._image(archive, member, name, path)
        elif member.size <= LONGEST_ROW and not member.issparse():
            if ending.lower() == "json":
                found = _object(archive.content(member))
                # What the tar itself says of a sample stands above what is written in it.
                for field, value in ({} if isinstance(found, str) else found).items():
                    sample.setdefault(field, value)
            elif ending.lower() in TEXT_COLUMNS:
                text = archive.content(member).decode("utf-8", "replace")
                sample[ending.lower()] = text.rstrip("\r\n")

    def _image(self, archive: Any, member: Any, name: str, path: str) -> Item | Failure:
        if member.size > self._max_bytes or member.issparse():
            told = UnreachableImage(f"larger than {self._max_bytes:,} bytes (--max-bytes)")
            return Failure.of(name, told)
        data = archive.content(member) if self._with_images else b""
        return Item(name, data=data, relative=path)

    def _whole(self, sample: dict[str, Any], key: str) -> Cells:
        told = UnreachableImage("this sample has no image")
        if not isinstance(sample.get("image"), Item | Failure):
            sample["image"] = Failure.of(f"{self._file}/{key}", told)
        return sample


def _told_end(rows: int, error: BaseException) -> str:
    """Why a table could not be read to its end."""
    why = reason(error) if isinstance(error, OSError) and error.errno else first_line(error)
    told = f"only {rows:,} rows of this table could be read" if rows else "it cannot be read"
    return f"{told}: {why}"
