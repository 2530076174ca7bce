"""The images of rows of tables of pairs, wherever the rows say that they are.

A cell is a path, an address, an encoded image, a struct of `bytes` and `path` as Hugging Face datasets have it, or the
path of a member of a tar, `shards/00000.tar/key.jpg`, as tables that were made from WebDataset tars have it.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from annotary.curation.tables import Part, first_line, open_parquet
from annotary.errors import UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions
from annotary.sources._columns import column_of, place_in
from annotary.sources._members import inner_path
from annotary.sources._paths import join, kind_of, reason
from annotary.sources._rows import image_at
from annotary.sources._tar import ERRORS, open_tar
from annotary.sources.parquet import _can_hold, _parts

if TYPE_CHECKING:
    import pyarrow as pa

    from annotary.sources._tar import Tar

_TAR_END = re.compile(r"\.(?:tar|tar\.gz|tgz)(?=/)", re.I)


def image_column(part: Part, schema: pa.Schema, named: str | None) -> str:
    """The column of a part that holds the images.

    Args:
        part: The part.
        schema: Its columns.
        named: The name that was told, if any.

    Raises:
        UsageError: There is none; the message lists the columns.
    """
    usable = [field.name for field in schema if _can_hold(field.type)]
    options = SourceOptions(image_column=named)
    column = column_of(part.file, schema.names, options, usable=usable)
    if column not in usable:
        raise UsageError(
            f"the column {column!r} of {part.file} holds {schema.field(column).type}, "
            "which is neither a path or an address nor an encoded image"
        )
    return column


class RowImages:
    """Where the images of the rows of a part are. A context: tars that it opens are closed at its end.

    Args:
        part: The part.
        folder: Where paths start, if they are there; that of the table when nothing is said. Else they start in the
            current folder.
        options: The largest size.
    """

    def __init__(self, part: Part, folder: str | None, options: SourceOptions) -> None:
        self._file = part.file
        self._is_tar = (
            part.form == "webdataset"
        )  # whose images are named as they are found from here
        self._folder = str(Path(part.file).parent) if folder is None else folder
        self._options = options
        self._first = _first_row(part)
        self._tar: _Members | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def of(self, number: int, cell: pa.Scalar) -> Item | Failure:
        """The image of a row, or why there is none.

        Args:
            number: Of the row in the part, from 0.
            cell: What stands in the column of images.
        """
        name = f"{self._file}/{self._first + number}"
        data, path = _parts(cell)
        if data is not None and len(data.as_buffer()):
            if len(data.as_buffer()) > self._options.max_bytes:
                return _failure(
                    name, f"larger than {self._options.max_bytes:,} bytes (--max-bytes)"
                )
            end = re.split(r"[/\\]", path)[-1]
            return Item(f"{name}-{end}" if end.strip(".") else name, data=data.as_py())
        if not path.strip():
            return _failure(name, "this row names no image")
        for end in _TAR_END.finditer(path):
            tar, member = path[: end.end()], path[end.end() + 1 :]
            for place in (tar,) if self._is_tar else (join(self._folder, tar), tar):
                if kind_of(place) == "file":
                    return self._member(path, place, member)
        return image_at(place_in(path, self._folder), self._folder)

    def _member(self, name: str, tar: str, path: str) -> Item | Failure:
        """An image in a tar. Rows that follow one another are mostly members that do, of one tar."""
        if self._tar is None or self._tar.file != tar:
            self._stack.close()
            self._tar = self._stack.enter_context(_Members(tar, self._options.max_bytes))
        try:
            return Item(name, data=self._tar.content(path))
        except UnreachableImage as error:
            return Failure.of(name, error)


class _Members:
    """The members of a tar by their paths.

    It is read from its begin as far as is needed, and only once when members are asked for in their order. What was
    passed is read again where it stands, or, if the tar is compressed, in another pass.

    Args:
        file: The tar.
        most: The largest member that is read, in bytes.
    """

    def __init__(self, file: str, most: int) -> None:
        self.file = file
        self._most = most
        self._passed: dict[str, tuple[int, int]] = {}
        self._is_packed = not file.lower().endswith(".tar")
        self._broken = ""
        self._stack = ExitStack()
        self._plain: BinaryIO | None = None
        self._archive: Tar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def content(self, path: str) -> bytes:
        """The bytes of a member.

        Raises:
            UnreachableImage: There is no such member, it is too large, or the tar is damaged before it.
        """
        try:
            if path in self._passed:
                return self._again(path)
            found = self._ahead(path)
        except OSError as error:
            raise UnreachableImage(reason(error)) from error
        except ERRORS as error:
            self._broken = first_line(error)
            self._archive = None
            found = None
        if found is None:
            told = f"; the tar is damaged: {self._broken}" if self._broken else ""
            raise UnreachableImage(f"{self.file} has no such member{told}")
        return found

    def _ahead(self, path: str) -> bytes | None:
        """The bytes of a member that lies ahead; None when there is none."""
        if self._archive is None:
            if self._passed or self._broken:
                return None
            self._archive = self._opened()
        while (member := next(self._members, None)) is not None:
            inner = inner_path(member.name) if member.isreg() and not member.issparse() else ""
            if not inner:
                continue
            self._passed[inner] = (member.offset_data, member.size)
            if inner == path:
                self._check(member.size)
                return self._archive.content(member)
        self._archive = None
        return None

    def _again(self, path: str) -> bytes:
        """The bytes of a member that was passed."""
        offset, size = self._passed[path]
        self._check(size)
        if self._is_packed:
            with open(self.file, "rb") as file, open_tar(file) as archive:
                for member in archive:
                    if member.offset_data == offset:
                        return archive.content(member)
            raise UnreachableImage(f"{self.file} has changed meanwhile")
        if self._plain is None:
            self._plain = self._stack.enter_context(open(self.file, "rb"))  # noqa: SIM115 - the stack closes it
        self._plain.seek(offset)
        data = self._plain.read(size)
        if len(data) < size:
            raise UnreachableImage(f"{self.file} ends within this member")
        return data

    def _opened(self) -> Tar:
        file = self._stack.enter_context(open(self.file, "rb"))  # noqa: SIM115 - the stack does
        archive = self._stack.enter_context(open_tar(file))
        self._members = iter(archive)
        return archive

    def _check(self, size: int) -> None:
        if size > self._most:
            raise UnreachableImage(f"larger than {self._most:,} bytes (--max-bytes)")


def _first_row(part: Part) -> int:
    """The number in its file of the first row of a part, from 0."""
    if part.groups is None:
        return 0
    with open_parquet(part.file) as table:
        return sum(table.metadata.row_group(group).num_rows for group in range(part.groups[0]))


def _failure(name: str, message: str) -> Failure:
    return Failure.of(name, UnreachableImage(message))
