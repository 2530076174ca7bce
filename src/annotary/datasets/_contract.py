"""What every format of datasets offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias, cast

from annotary import registry
from annotary.errors import UnknownName, UsageError
from annotary.records import Box

TaskName: TypeAlias = Literal["classify", "detect"]
"""What images are labelled with: one label each, or boxes."""

_HELD = {"classify": "a label for each image", "detect": "boxes"}


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a dataset.

    Attributes:
        file: Where it is from the dataset's folder, with forward slashes; the address or name of what is no file.
        label: What it is; of unsure images the best guess, empty where there is none, and where there are boxes.
        score: Of the label, 0..1.
        part: Where it belongs ("train"), or "unsure"; empty for images that are left out.
        original: Where it came from, from the dataset's folder.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        sha256: Of its encoded bytes; where the picture was turned upright, of the original's.
        boxes: What is in it, the best first, within the image and not empty; none where the task gives labels.
        is_turned: Whether the file is another than the original, as that is not upright.
    """

    file: str
    label: str
    score: float
    part: str
    original: str
    width: int
    height: int
    sha256: str
    boxes: tuple[Box, ...] = ()
    is_turned: bool = False


class Tables(Protocol):
    """What a format writes of all images. A context manager: files take their places when it ends without an error."""

    def add(self, row: Row) -> None:
        """Write an image; unsure ones come only where they are kept."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def formats(task: TaskName | None = None) -> tuple[str, ...]:
    """The names of all formats, or of those for a task."""
    names = registry.names("datasets")
    return names if task is None else tuple(name for name in names if task_of(name) == task)


def task_of(name: str) -> TaskName:
    """What images of a format are labelled with."""
    return cast(TaskName, getattr(registry.load("datasets", name), "TASK", "classify"))


def check_format(name: str, task: TaskName) -> None:
    """Find out what can be wrong with a format before anything is done.

    Args:
        name: Of the format.
        task: What images are labelled with.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        UsageError: It is for another task.
        MissingExtra: What it needs is not installed.
    """
    if name not in formats():
        raise UnknownName("format", name, formats(task))
    if task_of(name) != task:
        holds = _HELD[task_of(name)]
        raise UsageError(
            f"--format {name} holds {holds}, and --task {task} gives {_HELD[task]};"
            f" say --task {task_of(name)}, or one of {', '.join(formats(task))}"
        )
    check = getattr(registry.load("datasets", name), "check", None)
    if check is not None:
        check()


def places_images(name: str) -> bool:
    """Whether a format puts images into the dataset."""
    return bool(registry.load("datasets", name).PLACES_IMAGES)


def folders_of(name: str, part: str) -> tuple[str, ...]:
    """The folders of a part in a format of boxes, with forward slashes; that of the images first."""
    return tuple(folder.format(part=part) for folder in registry.load("datasets", name).FOLDERS)


def has_plain_names(name: str) -> bool:
    """Whether readers of a format stumble over spaces in names."""
    return bool(getattr(registry.load("datasets", name), "PLAIN_NAMES", False))


def has_files_beside(name: str) -> bool:
    """Whether a format has a file of its own for each image."""
    return hasattr(registry.load("datasets", name), "beside")


def beside(name: str, row: Row, classes: Sequence[str]) -> tuple[str, bytes]:
    """The file that a format has for an image: where, from the dataset's folder, and what is in it."""
    return cast(tuple[str, bytes], registry.load("datasets", name).beside(row, classes))


def open_tables(name: str, output: Path, classes: Sequence[str], parts: Sequence[str]) -> Tables:
    """What a format writes beside the images.

    Args:
        name: Of the format.
        output: The dataset's folder.
        classes: All labels, in their order.
        parts: All parts, in their order.
    """
    module = registry.load("datasets", name)
    if task_of(name) == "classify":
        return cast(Tables, module.open(output))
    return cast(Tables, module.open(output, classes, parts))
