"""What every sink offers, and how a format's name finds its sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, cast, get_args

from annotary import registry
from annotary.errors import UsageError
from annotary.records import Annotation, Item
from annotary.sinks._parts import called, in_order

OnExisting = Literal["skip", "append", "overwrite"]
Placing = Literal["copy", "hardlink", "symlink"]

TAGS = ("tags",)
"""The parts of a record that a run finds, and a format holds, unless something else is said."""


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """How annotations are written."""

    on_existing: OnExisting = "skip"
    """What happens where a result exists: skip the image (so that a stopped run continues), append to what a person
    wrote in its sidecar, or overwrite."""

    full_names: bool = False
    """Name sidecars a.jpg.txt instead of a.txt, so that a.jpg and a.png cannot collide."""

    separator: str = ", "
    """What stands between two tags in text formats."""

    trailing_separator: bool = False
    """Write the separator after the last tag, too."""

    escape: bool = False
    """Write \\( and \\) for parentheses in text formats, for prompts in which parentheses are weights."""

    prefix: str = ""
    """Text before the first tag of every image, as if it were a tag: a trigger word."""

    suffix: str = ""
    """Text after the last tag of every image, as if it were a tag."""

    embed: bool = False
    """Write into the image files themselves, without touching their pixels (xmp)."""

    placing: Placing = "copy"
    """How images come into folders of labels: as copies, or as links to the originals (folders)."""

    half: bool = False
    """Keep embeddings as float16, in half the space (npy)."""

    def __post_init__(self) -> None:
        if self.on_existing not in get_args(OnExisting):
            known = ", ".join(get_args(OnExisting))
            raise ValueError(f"on_existing must be one of {known}, but got {self.on_existing!r}")
        if self.placing not in get_args(Placing):
            known = ", ".join(get_args(Placing))
            raise ValueError(f"placing must be one of {known}, but got {self.placing!r}")
        if not self.separator:
            raise ValueError("separator must not be empty")
        for name in ("separator", "prefix", "suffix"):
            value = getattr(self, name)
            if value.encode("utf-8", "replace").decode() != value:
                raise ValueError(f"{name} must be text that can be written, but got {value!r}")


@dataclass(frozen=True, slots=True)
class Format:
    """What a format's module says of itself.

    Attributes:
        name: What users call it.
        suffixes: Of file names that `--output` chooses it by.
        is_one_file: Whether all images go to one file, rather than each to its own.
        options: The fields of `SinkOptions`, beside `on_existing`, that what it writes depends on.
        can_append: Whether it can keep what a person wrote for an image and add to it.
        needs_bytes: Whether an item must come with its encoded bytes (`Item.data`), as the output holds them.
        parts: The parts of a record that it can hold.
    """

    name: str
    suffixes: tuple[str, ...]
    is_one_file: bool
    options: tuple[str, ...]
    can_append: bool
    needs_bytes: bool
    parts: tuple[str, ...]


class TagsOfImage(NamedTuple):
    """What an output says of one image.

    Attributes:
        image: Its name.
        tags: Names and scores, of labels where the output holds no tags; a score is None where the format keeps none.
    """

    image: str
    tags: tuple[tuple[str, float | None], ...]


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


def format_named(name: str) -> Format:
    """What a format is like.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
    """
    module = registry.load("sinks", name)
    return Format(
        name,
        module.SUFFIXES,
        getattr(module, "IS_ONE_FILE", bool(module.SUFFIXES)),
        getattr(module, "OPTIONS", ()),
        getattr(module, "CAN_APPEND", False),
        getattr(module, "NEEDS_BYTES", False),
        getattr(module, "PARTS", TAGS),
    )


def writes_one_file(name: str) -> bool:
    """Whether a format collects all images in one file, rather than writing a file for each.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
    """
    return format_named(name).is_one_file


def check_parts(name: str, parts: Iterable[str]) -> None:
    """Refuse a format that cannot hold what a run finds, before anything is done.

    Args:
        name: The format.
        parts: The parts of a record that the run finds ("tags", "embedding").

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        UsageError: It cannot hold one of them; the message lists the formats that hold all.
        ValueError: A record has no such part.
    """
    asked = in_order(parts)
    lacking = [part for part in asked if part not in format_named(name).parts]
    if lacking:
        able = [form for form in formats() if set(asked) <= set(format_named(form).parts)]
        raise UsageError(f"--format {name} cannot hold {called(lacking)}; use {', '.join(able)}")


def open_sink(
    name: str, output: Path | None, options: SinkOptions, parts: Iterable[str] = TAGS
) -> Sink:
    """Open a sink by its format's name.

    Args:
        name: The format.
        output: The file; for one file an image the folder, or None: beside the images.
        options: How annotations are written.
        parts: The parts of a record that the run finds: what a table has columns for.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        UsageError: It cannot hold one of the parts.
        OutputError: The output cannot be written or does not hold what this format writes.
    """
    parts = in_order(parts)
    check_parts(name, parts)
    module = registry.load("sinks", name)
    if hasattr(module, "PARTS"):
        return cast(Sink, module.open(output, options, parts))
    return cast(Sink, module.open(output, options))


def read_tags(name: str, output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags that an output holds, or the labels of one without tags, image by image.

    Raises:
        UnknownName: There is no such format; the message lists the known ones.
        UsageError: Outputs of this format cannot be read back.
        OutputError: It cannot be read, or is something else.
    """
    module = registry.load("sinks", name)
    if not hasattr(module, "read"):
        able = ", ".join(
            form for form in formats() if hasattr(registry.load("sinks", form), "read")
        )
        raise UsageError(f"the format {name} cannot be read back; these can: {able}")
    return cast(Iterator[TagsOfImage], module.read(output, options))
