"""All scores of a run, kept compactly, so that tags can be chosen again without the networks.

A folder of three files, each of which can be read by itself:

    scores.npy     float16[n, t]: probabilities, a row an image and a column a tag; within 0.0005 of the network's
    tags.csv       name, category and thresholds of each column
    images.jsonl   image, width, height, relative path and kind ("path", "url", or "data" for one in memory) of each row
    scores.json    which models, and for how many tags

A row goes to the disk before the line that names its image. So a killed process leaves at most a row without a line,
or a broken line, and the next run cuts both off.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from annotary.cards import TAGS_FILE, Vocabulary, read_vocabulary
from annotary.errors import OutputError, UsageError
from annotary.pipeline.state import RunState
from annotary.records import Annotation, Item
from annotary.sinks import NameSet, write_atomically

SCORES_FILE = "scores.npy"
IMAGES_FILE = "images.jsonl"
ABOUT_FILE = "scores.json"

_HEADER_BYTES = 128
"""Room for the head of the .npy file, whatever the number of rows."""

_ROWS_AT_ONCE = 256


class ScoreWriter:
    """Adds the scores of images to a folder, and knows whose it holds.

    Args:
        folder: Where; made when it is not there.
        source: The ids of the models.
        vocabulary: Of the columns.
        settings: What the scores depend on.
        overwrite: Whether scores of other settings may be thrown away.

    Raises:
        OutputError: The folder holds scores of other settings or something else, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        vocabulary: Vocabulary,
        settings: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        self.folder = folder
        self._columns = len(vocabulary)
        about = {"source": source, "tags": self._columns, "settings": dict(settings)}
        _check_folder(folder)
        try:
            self._state = RunState(folder, settings, is_folder=True, overwrite=overwrite)
        except OutputError as error:
            raise OutputError(str(error).replace("--output", "--save-scores")) from error
        self._names = NameSet()
        self._files: list[BinaryIO] = []
        if not overwrite and (folder / ABOUT_FILE).is_file() and _read_about(folder) != about:
            self._state.abandon()  # its settings file is gone or empty, or it would have told
            raise OutputError(
                f"{folder} holds scores of other models or settings; name another folder with"
                " --save-scores, or say --on-existing overwrite"
            )
        try:
            if overwrite and not self._state.continues:
                for name in (SCORES_FILE, IMAGES_FILE):
                    (folder / name).unlink(missing_ok=True)
            write_atomically(folder / TAGS_FILE, _table(vocabulary))
            write_atomically(folder / ABOUT_FILE, json.dumps(about, indent=1) + "\n")
            self._open()
        except BaseException as error:
            self._release(complete=False)
            if isinstance(error, OSError):
                raise OutputError(f"cannot write {folder}: {error.strerror}") from error
            raise

    def holds(self, image: str) -> bool:
        """Whether the folder has the scores of an image."""
        return image in self._names

    def write(self, item: Item, annotation: Annotation, scores: npt.NDArray[np.float16]) -> None:
        """Add one image; one that is there already is passed over.

        Args:
            item: The image.
            annotation: Its record.
            scores: float16[t].

        Raises:
            OutputError: It cannot be written; the files hold what came before.
        """
        if not self._names.add(annotation.image):
            return
        rows, images = self._files
        entry = {
            "image": annotation.image,
            "width": annotation.width,
            "height": annotation.height,
            "relative": item.relative,
            "kind": "path" if item.path is not None else "url" if item.url is not None else "data",
        }
        text = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            rows.write(scores.astype("<f2", copy=False).tobytes())
            rows.flush()
            images.write(text + b"\n")
            images.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}") from error
        self._count += 1

    def close(self, *, complete: bool) -> None:
        """Write the number of rows where readers of .npy files look for it.

        Args:
            complete: Whether the run came to its end.

        Raises:
            OutputError: It cannot be written.
        """
        is_closed = False
        try:
            rows, images = self._files
            rows.flush()
            _write_head(rows, self._count, self._columns)
            for file in (rows, images):
                file.flush()
                os.fsync(file.fileno())
            is_closed = True
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}") from error
        finally:
            self._release(complete=complete and is_closed)

    def _open(self) -> None:
        rows = _opened(self.folder / SCORES_FILE)
        self._files.append(rows)
        images = _opened(self.folder / IMAGES_FILE)
        self._files.append(images)
        rows.seek(0, os.SEEK_END)
        width = 2 * self._columns
        whole_rows = max(0, rows.tell() - _HEADER_BYTES) // width
        end = 0
        self._count = 0
        for entry, line_end in _lines(images, self.folder / IMAGES_FILE):
            if self._count == whole_rows:
                break
            self._names.add(entry["image"])
            self._count += 1
            end = line_end
        images.truncate(end)
        images.seek(end)
        rows.truncate(_HEADER_BYTES + self._count * width)
        _write_head(rows, self._count, self._columns)
        rows.seek(0, os.SEEK_END)

    def _release(self, *, complete: bool) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # what is left to write was complained of before
                file.close()
        self._state.release(complete=complete)


class SavedScores:
    """The scores that a folder holds.

    Args:
        folder: Made by `ScoreWriter`.

    Attributes:
        source: The ids of the models.
        vocabulary: Of the columns.
        settings: What the scores depend on.

    Raises:
        UsageError: It holds no scores, or they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = _read_about(folder)
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} holds no saved scores; annotary tag --save-scores makes them"
            ) from error
        self.source: str = about["source"]
        self.settings: dict[str, Any] = about["settings"]
        self._columns: int = about["tags"]
        self.vocabulary = read_vocabulary(folder)
        if len(self.vocabulary) != self._columns:
            raise UsageError(f"{folder} is damaged: {self._columns} columns are not its tags")

    def __iter__(self) -> Iterator[tuple[Item, Annotation, npt.NDArray[np.float32]]]:
        """Every image, a record of it without tags, and its scores float32[t].

        Raises:
            UsageError: A file cannot be read.
        """
        try:
            with (
                (self.folder / SCORES_FILE).open("rb") as rows,
                (self.folder / IMAGES_FILE).open("rb") as images,
            ):
                rows.seek(_HEADER_BYTES)
                entries = (entry for entry, _ in _lines(images, self.folder / IMAGES_FILE))
                while data := rows.read(2 * self._columns * _ROWS_AT_ONCE):
                    whole = len(data) // (2 * self._columns)
                    table = np.frombuffer(data, "<f2", whole * self._columns)
                    table = table.reshape(whole, self._columns)
                    for row, entry in zip(table, entries, strict=False):
                        yield _item(entry), _record(entry), row.astype(np.float32)
                if next(entries, None) is not None:
                    raise UsageError(f"{self.folder} is damaged: it has fewer rows than images")
        except OSError as error:
            raise UsageError(f"cannot read {self.folder}: {error.strerror}") from error


def _item(entry: Mapping[str, Any]) -> Item:
    """The image of a row. The bytes of one that was in memory, or in an archive, are gone: they are empty."""
    name, relative = entry["image"], entry["relative"]
    match entry["kind"]:
        case "path":
            return Item(name, path=Path(name), relative=relative)
        case "url":
            return Item(name, url=name, relative=relative)
    return Item(name, data=b"", relative=relative)


def _record(entry: Mapping[str, Any]) -> Annotation:
    return Annotation(entry["image"], entry["width"], entry["height"])


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Every whole line, and where it ends. A last line without its end is passed over."""
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            entry = json.loads(line)
            complete = {"image", "width", "height", "relative", "kind"} <= entry.keys()
        except (ValueError, AttributeError):
            complete = False
        if not complete:
            raise UsageError(f"{path}, line {number}: no image of saved scores")
        yield entry, end


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, and scores need a folder")
    others = [
        path.name for path in folder.iterdir() if not path.name.startswith(("annotary.", "."))
    ]
    if not others:
        return
    try:
        _read_about(folder)
        with (folder / IMAGES_FILE).open("rb") as images:
            next(_lines(images, folder / IMAGES_FILE), None)
    except FileNotFoundError as error:
        if error.filename is not None and error.filename.endswith(IMAGES_FILE):
            return  # a run was stopped before it began
        raise OutputError(
            f"{folder} holds something else ({others[0]}); name a new folder"
        ) from error
    except (OSError, UsageError) as error:
        raise OutputError(f"{folder} holds something else: {error}; name a new folder") from error


def _read_about(folder: Path) -> dict[str, Any]:
    """What the scores of a folder are of.

    Raises:
        FileNotFoundError: It has none.
        UsageError: What it has is not what annotary writes.
    """
    path = folder / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {
            "source": str(about["source"]),
            "tags": int(about["tags"]),
            "settings": dict(about["settings"]),
        }
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def _opened(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _write_head(file: BinaryIO, rows: int, columns: int) -> None:
    """The head of version 1.0 of the .npy format, padded to a fixed length."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    magic = b"\x93NUMPY\x01\x00"
    room = _HEADER_BYTES - len(magic) - 2
    head = magic + struct.pack("<H", room) + text.ljust(room - 1).encode() + b"\n"
    file.seek(0)
    file.write(head)
    file.seek(0, os.SEEK_END)


def _table(vocabulary: Vocabulary) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "category", *vocabulary.thresholds))
    columns = (vocabulary.names, vocabulary.categories, *vocabulary.thresholds.values())
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()
