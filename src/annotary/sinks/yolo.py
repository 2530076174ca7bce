"""YOLO: the boxes of each image in a text file below `labels/`, and the names of the classes in `data.yaml`.

    OUTPUT/data.yaml            the classes, and where the images belong
    OUTPUT/labels/2024/dog.txt  a line a box: class, centre, width and height, 0..1 of the upright image
    OUTPUT/images/2024/dog.jpg  where trainers look for the image of that file; nothing is put there

An image without boxes has a file without lines, which tells trainers that it is background.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from annotary.errors import OutputError, UsageError
from annotary.records import Annotation, Item
from annotary.sinks._atomic import write_atomically
from annotary.sinks._classes import Classes, clipped
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._journaled import as_text
from annotary.sinks._reading import read_files, unscored
from annotary.sinks._sidecars import Sidecars

SUFFIXES = ()
PARTS = ("boxes",)

FILE, LABELS, IMAGES = "data.yaml", "labels", "images"
"""What is where, in the folder."""

_NOTE = f"# Written by annotary. Trainers look for the image of {LABELS}/a.txt in {IMAGES}/a.jpg.\n"
_REMEDY = "rename one, as YOLO finds labels by the image's name without its suffix"


class YoloContent:
    """A line for each box.

    Args:
        classes: The numbers of labels.
    """

    suffix = ".txt"
    has_full_names = False
    merges = False

    def __init__(self, classes: Classes) -> None:
        self._classes = classes

    def is_done(self, place: Path) -> bool:
        """Whether the file is left alone: always."""
        return True

    def new(self, annotation: Annotation) -> bytes:
        """The boxes that are in the picture."""
        return "".join(self._lines(annotation)).encode()

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """Nothing is merged."""
        raise NotImplementedError

    def _lines(self, annotation: Annotation) -> Iterator[str]:
        width, height = annotation.width, annotation.height
        for box in annotation.boxes:
            edges = clipped(box, width, height)
            if edges is not None:
                left, top, right, bottom = edges
                centre = (left + right) / 2 / width, (top + bottom) / 2 / height
                numbers = (*centre, (right - left) / width, (bottom - top) / height)
                label = self._classes.number(as_text(box.label))
                yield " ".join((str(label), *(f"{number:.6f}" for number in numbers))) + "\n"


class YoloSink:
    """Writes files of labels, and before the first that has a new class the list of classes.

    Classes that `data.yaml` has keep their numbers, also where files are written anew.

    Args:
        folder: Where.
        options: What happens to files that are there.

    Raises:
        OutputError: There is a `data.yaml` that names no classes, or there are boxes without one.
    """

    def __init__(self, folder: Path, options: SinkOptions) -> None:
        self._place = folder / FILE
        self._classes = Classes()
        self._classes.add(classes_in(self._place))
        self._written = len(self._classes) if self._place.exists() else -1
        if self._written < 0 and _has_boxes(folder / LABELS):
            raise OutputError(
                f"{folder / LABELS} has boxes, and no {FILE} says which classes they are; choose another --output"
            )
        content = YoloContent(self._classes)
        self._sidecars = Sidecars(folder / LABELS, options, content, remedy=_REMEDY)

    def name_classes(self, names: Sequence[str]) -> None:
        """Number the labels that the run asks for, in their order."""
        self._classes.add(map(as_text, names))

    def protect(self, inputs: Iterable[str | Path]) -> None:
        """Never write over these files."""
        self._sidecars.protect(inputs)

    def holds(self, item: Item) -> bool:
        """Whether the image has its file."""
        return self._sidecars.holds(item)

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write the file of an image.

        Raises:
            SidecarError: Another image has it.
            OutputError: It cannot be written.
        """
        self._classes.add(as_text(box.label) for box in annotation.boxes)
        self._name()
        self._sidecars.write(item, annotation)

    def close(self, *, complete: bool) -> None:
        """Write the list of classes where no image was written."""
        if complete:
            self._name()

    def _name(self) -> None:
        """Write the list of classes if it lacks one.

        Raises:
            OutputError: It is not ours to change, or cannot be written.
        """
        names = self._classes.names
        if len(names) == self._written:
            return
        if self._written >= 0 and not _is_as_written(self._place, names[: self._written]):
            raise OutputError(
                f"{self._place} lacks {', '.join(names[self._written :])}, and is not as annotary writes it;"
                " add that to its names, or choose another --output"
            )
        write_atomically(self._place, _text(names))
        self._written = len(names)


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> YoloSink:
    """A sink that continues the folder."""
    if output is None:
        raise UsageError("--format yolo needs --output FOLDER")
    return YoloSink(output, options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of every file, each once."""
    names = classes_in(output / FILE)

    def tags_of(content: bytes) -> tuple[tuple[str, float | None], ...]:
        numbers = (int(line.split()[0]) for line in content.decode().splitlines() if line.strip())
        try:
            return unscored(list(dict.fromkeys(names[number] for number in numbers)))
        except IndexError as error:
            raise ValueError(f"it has a class that {FILE} does not name") from error

    return read_files(output / LABELS, YoloContent.suffix, tags_of)


def classes_in(path: Path) -> list[str]:
    """The classes that a `data.yaml` names; none where there is no file.

    Raises:
        OutputError: It cannot be read, or names none.
    """
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
        names = value["names"]
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[number] for number in range(len(names))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{path} names no classes; choose another --output") from error
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise OutputError(f"{path} names no classes from 0 on, each once; choose another --output")
    return list(map(str, names))


def _in_yaml(name: str) -> str:
    """A name as YAML reads it back."""
    # Bare or in single quotes, PyYAML leaves some line breaks (U+0085) as they are, and reads blanks.
    style = None if name.isprintable() else '"'
    text = yaml.safe_dump(name, allow_unicode=True, default_style=style, width=math.inf)
    return text.removesuffix("...\n").rstrip("\n")


def _has_boxes(folder: Path) -> bool:
    """Whether there is a file of labels with a line in it; it would be of classes that nobody knows."""
    files = (Path(here, name) for here, _, names in os.walk(folder) for name in names)
    return any(file.suffix == YoloContent.suffix and file.stat().st_size for file in files)


def _text(names: Sequence[str]) -> str:
    """A `data.yaml` with the classes of these names."""
    lines = [f"train: {IMAGES}", f"val: {IMAGES}", f"nc: {len(names)}"]
    lines.append("names:" if names else "names: {}")
    lines += (f"  {number}: {_in_yaml(name)}" for number, name in enumerate(names))
    return _NOTE + "".join(f"{line}\n" for line in lines)


def _is_as_written(path: Path, names: Sequence[str]) -> bool:
    """Whether nobody has changed the file, such as to say where the images are, which would be lost."""
    return path.read_text("utf-8") == _text(names)
