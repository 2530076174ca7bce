"""What every format of datasets offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from annotary import registry
from annotary.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a dataset.

    Attributes:
        file: Where it is from the dataset's folder, with forward slashes; the address or name of what is no file.
        label: What it is; of unsure images the best guess, empty where there is none.
        score: Of the label, 0..1.
        part: Where it belongs ("train"), or "unsure".
        original: Where it came from, from the dataset's folder.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        sha256: Of its encoded bytes.
    """

    file: str
    label: str
    score: float
    part: str
    original: str
    width: int
    height: int
    sha256: str


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


def formats() -> tuple[str, ...]:
    """The names of all formats."""
    return registry.names("datasets")


def check_format(name: str) -> None:
    """Find out what can be wrong with a format before anything is done.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        MissingExtra: What it needs is not installed.
    """
    if name not in formats():
        raise UnknownName("format", name, formats())
    check = getattr(registry.load("datasets", name), "check", None)
    if check is not None:
        check()


def places_images(name: str) -> bool:
    """Whether a format puts images into the dataset."""
    return bool(registry.load("datasets", name).PLACES_IMAGES)


def open_tables(name: str, output: Path) -> Tables:
    """What a format writes beside the images."""
    return cast(Tables, registry.load("datasets", name).open(output))
