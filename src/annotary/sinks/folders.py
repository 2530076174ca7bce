"""Folders of labels: every image in `OUTPUT/LABEL/`, as training tools read them; the originals are not touched.

    OUTPUT/dog/a.jpg           an image whose best label is "dog"
    OUTPUT/_unlabelled/b.jpg   one that no label fits
    OUTPUT/labels.jsonl        the record of every image, and where its file is

The list is what a run goes on by: an image is put into its folder first, and listed then. Where a policy decides, its
action stands above the label: `OUTPUT/block/dog/a.jpg`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from annotary.errors import OutputError, UsageError
from annotary.records import Annotation, Item
from annotary.sinks._appending import AppendingRecords
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._names import NameSet
from annotary.sinks._placing import FolderNames, folded, place
from annotary.sinks._reading import read_lines

SUFFIXES = ()
OPTIONS = ("placing",)
NEEDS_BYTES = True
PARTS = ("labels", "decision")

LIST = "labels.jsonl"
"""What is where, in the folder."""

UNLABELLED = "_unlabelled"
"""The folder of images without a label."""

_NOT_FOLDERS = (LIST, "annotary.run.json", "failures.jsonl")

FoldersOf: TypeAlias = Callable[[Item, Annotation], Sequence[str]]
"""The folders of an image, the outer one first, as they would be called if every system took any name."""


class FolderSink:
    """Puts images into folders, and lists them.

    Args:
        output: The folder of the folders.
        options: Whether files are copies or links. With "overwrite", all files of the list are removed.
        folders_of: Which folders an image belongs to: `label_folders` unless told otherwise.

    Attributes:
        needs_bytes: Whether items must come with their bytes: for copies, which are of what was looked at.

    Raises:
        OutputError: The list cannot be read, or is something else.
    """

    def __init__(
        self, output: Path, options: SinkOptions, folders_of: FoldersOf | None = None
    ) -> None:
        self.needs_bytes = options.placing == "copy"
        self._output = output
        self._options = options
        self._folders_of = folders_of or label_folders
        self._names = FolderNames(*_NOT_FOLDERS)
        self._taken = NameSet()
        self._lock = threading.Lock()
        self._stale = _listed_files(output) if options.on_existing == "overwrite" else []
        self._list = None if self._stale else self._open_list()

    def protect(self, inputs: Iterable[str | Path]) -> None:
        """Refuse to fill a folder that is read.

        Raises:
            UsageError: The output lies in one of the inputs.
        """
        place = Path(os.path.realpath(self._output))
        for name in inputs:
            if name != "-" and Path(name).is_dir() and place.is_relative_to(os.path.realpath(name)):
                raise UsageError(
                    f"{self._output} lies in {name}, which is read; choose another --output"
                )

    def holds(self, item: Item) -> bool:
        """Whether the list has this image."""
        return item.image in self._begun()

    def write(self, item: Item, annotation: Annotation) -> None:
        """Put an image into its folder, and list it.

        Raises:
            ImageError: This image cannot be put there.
            OutputError: Nothing can.
        """
        listed = self._begun()
        asked = tuple(self._folders_of(item, annotation))
        folders = tuple(map(self._names.name_of, asked))
        path = place(item, self._output.joinpath(*folders), self._options, self._taken)
        record = annotation.to_json()
        row = {"image": record.pop("image"), "file": path.relative_to(self._output).as_posix()}
        if asked != folders:
            row["folder"] = list(asked)
        line = json.dumps({**row, **record}, ensure_ascii=False, allow_nan=False) + "\n"
        listed.append(item.image, line.encode("utf-8", "backslashreplace"))

    def close(self, *, complete: bool) -> None:
        """End the list."""
        if complete or self._list is not None:
            self._begun().close(complete=complete)

    def _begun(self) -> AppendingRecords:
        """The list; what an earlier run wrote goes when it is first asked for, and nothing speaks against it."""
        with self._lock:  # as it is asked for by two threads
            if self._list is None:
                _remove(self._output, self._stale)
                self._list = self._open_list()
            return self._list

    def _open_list(self) -> AppendingRecords:
        return AppendingRecords(self._output / LIST, _Listed(self._found))

    def _found(self, file: PurePosixPath, asked: Sequence[str]) -> None:
        """Remember an image of an earlier run."""
        self._taken.add(folded(os.fspath(self._output / file)))
        for text, name in zip(asked, file.parent.parts, strict=True):
            self._names.keep(text, name)


class _Listed:
    """The lines of the list.

    Args:
        found: Takes the file of each line, and its folders as they were asked for.
    """

    opening = b""
    between = b""
    closing = b""

    def __init__(self, found: Callable[[PurePosixPath, Sequence[str]], None]) -> None:
        self._found = found

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole line."""
        end = file.tell()
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            row = _row(line, f"line {number}")
            path = PurePosixPath(row["file"])
            self._found(path, row.get("folder", path.parent.parts))
            yield row["image"], end


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> FolderSink:
    """A sink that continues the folder."""
    if output is None:
        raise UsageError("--format folders needs --output FOLDER")
    return FolderSink(output, options, label_folders if "labels" in parts else _action_folders)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of every image of the list."""

    def image(line: bytes) -> TagsOfImage:
        row = _row(line, "it")
        labels = row.get("labels", ())
        return TagsOfImage(row["image"], tuple((one["name"], one["score"]) for one in labels))

    return read_lines(output / LIST, image)


def label_folders(item: Item, annotation: Annotation) -> tuple[str, ...]:  # noqa: ARG001
    """The best label; above it what a policy decided, if one did."""
    label = annotation.labels[0].name if annotation.labels else UNLABELLED
    return (annotation.decision.action, label) if annotation.decision else (label,)


def _action_folders(item: Item, annotation: Annotation) -> tuple[str, ...]:  # noqa: ARG001
    """What a policy decided, where there are no labels."""
    return (annotation.decision.action if annotation.decision else UNLABELLED,)


def _row(line: bytes, where: str) -> dict[str, Any]:
    """A line of the list.

    Raises:
        ValueError: It is something else.
    """
    try:
        row: dict[str, Any] = json.loads(line)
        image, path = row["image"], PurePosixPath(row["file"])
        folders = row.get("folder", path.parent.parts)
        is_ours = isinstance(image, str) and len(folders) == len(path.parent.parts)
        is_record = "width" in row and "height" in row
        is_below = not path.is_absolute() and ".." not in path.parts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} says of no image where it is") from error
    if not (is_ours and is_record and is_below and path.name):
        raise ValueError(f"{where} says of no image where it is")
    return row


def _listed_files(output: Path) -> list[PurePosixPath]:
    """The files of the list.

    Raises:
        OutputError: A line is no record of ours: then none of the files is for us to remove.
    """
    files: list[PurePosixPath] = []
    AppendingRecords(output / LIST, _Listed(lambda file, _: files.append(file)))
    if files:
        try:
            with (output / LIST).open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        record = json.loads(line)
                        del record["file"]
                        record.pop("folder", None)
                        Annotation.from_json(record)
        except OSError as error:
            raise OutputError(f"cannot read {output / LIST}: {error.strerror}") from error
        except ValueError as error:
            raise OutputError(f"{output / LIST} was not written by annotary: {error}") from error
    return files


def _remove(output: Path, files: Iterable[PurePosixPath]) -> None:
    """Remove files, the folders that are empty then, and the list.

    Raises:
        OutputError: They cannot be removed.
    """
    files = tuple(files)
    try:
        for file in files:
            (output / file).unlink(missing_ok=True)
        for folder in sorted({above for file in files for above in file.parents}, reverse=True):
            if folder.parts:
                with contextlib.suppress(OSError):
                    (output / folder).rmdir()
        (output / LIST).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove what is in {output}: {error.strerror}") from error
