"""What every sink offers, and how a format's name finds its sink."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

from annotary import registry
from annotary.errors import UsageError
from annotary.records import Annotation, Item

OnExisting = Literal["skip", "append", "overwrite"]


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """How annotations are written."""

    on_existing: OnExisting = "skip"
    """What happens where a result exists: skip the image (so that a stopped run continues), append to its sidecar, or
    overwrite."""

    separator: str = ", "
    """What stands between two tags in text formats."""

    full_names: bool = False
    """Name sidecars a.jpg.txt instead of a.txt, so that a.jpg and a.png cannot collide."""

    def __post_init__(self) -> None:
        if (
            not self.separator
            or self.separator.encode("utf-8", "replace").decode() != self.separator
        ):
            raise ValueError(
                f"separator must not be empty or undecodable, but got {self.separator!r}"
            )


class Sink(Protocol):
    """A place that annotations are written to."""

    def holds(self, item: Item) -> bool:
        """Whether the output has this image already, so that it need not be done again.

        It is asked for every image of a run, in their order and in one thread, which need not be the one that writes.
        """

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write one annotation; when this returns, a killed process loses nothing of it.

        Raises:
            OutputError: It cannot be written. What was written before stays whole.
            SidecarError: This image alone cannot be written.
        """

    def close(self, *, complete: bool) -> None:
        """Finish the output.

        Args:
            complete: Whether the run came to its end. One that did not makes no file where there is none.

        Raises:
            OutputError: The end cannot be written.
        """


def formats() -> tuple[str, ...]:
    """The names of all formats."""
    return registry.names("sinks")


def format_of(output: Path) -> str:
    """The format that a file name asks for by its suffix.

    Raises:
        UsageError: No format or more than one claims the suffix.
    """
    suffix = output.suffix.lower()
    claimed = {name: registry.load("sinks", name).SUFFIXES for name in formats()}
    found = [name for name, suffixes in claimed.items() if suffix in suffixes]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({suffix for suffixes in claimed.values() for suffix in suffixes}))
    what = f"the suffix of {output.name!r}" if suffix else f"{output.name!r} has no suffix and"
    raise UsageError(f"{what} names no format: use one of {known}, or say --format")


def writes_one_file(name: str) -> bool:
    """Whether a format collects all images in one file, rather than writing a file for each.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
    """
    return bool(registry.load("sinks", name).SUFFIXES)


def open_sink(name: str, output: Path | None, options: SinkOptions) -> Sink:
    """Open a sink by its format's name.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        OutputError: The output cannot be written or does not hold what this format writes.
    """
    return cast(Sink, registry.load("sinks", name).open(output, options))
