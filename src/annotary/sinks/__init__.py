"""Where annotations go: one file each, and the folder is the registry.

A sink is a module; a new one is a new file (or a plugin, see `annotary.registry`):

    SUFFIXES: tuple[str, ...]
        File suffixes that `--output` chooses the format by; empty for formats that have to be named.

    def open(output: Path | None, options: SinkOptions) -> Sink
        A sink that continues what is there. `output` is a file, or for one file an image a folder (None: beside the
        image).

It may also have, each false or empty when it is not there:

    IS_ONE_FILE: bool
        All images go to one file, rather than each to its own. Without it: whether there are suffixes.

    OPTIONS: tuple[str, ...]
        The fields of `SinkOptions` that what it writes depends on; others are refused on the command line.

    CAN_APPEND: bool
        It can keep what a person wrote for an image and add to it (`--on-existing append`).

    NEEDS_BYTES: bool
        The output holds the images: items come with their encoded bytes, as `Item.data`. Where that depends on the
        options, the sink has an attribute `needs_bytes`, which counts.

    PARTS: tuple[str, ...]
        The parts of a record that it can hold ("tags", "labels", "embedding", ...); a run that finds others is refused.
        A module with it is opened with those that the run finds, in the order of a record: `open(output, options,
        parts)`. Without it: tags alone.

    def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]
        What such an output holds, in bounded memory; raises OutputError where it is something else.

A sink may have, beside the methods of `Sink`:

    def protect(inputs: Iterable[str | Path]) -> None
        Never write over these files; an image whose own file would be one of them is a SidecarError. Called once,
        before anything else.

    def name_classes(names: Sequence[str]) -> None
        The labels that the run asks for, in their order: the numbers of classes follow it. Called once, before the
        first image is written. Labels that were not named get the next numbers as they come, and what the output has
        already keeps its own, so that a run that goes on numbers as it did before.

Files whose names begin with an underscore are the room's machinery.
"""

from __future__ import annotations

from annotary.sinks._atomic import write_atomically
from annotary.sinks._contract import (
    Format,
    Sink,
    SinkOptions,
    TagsOfImage,
    check_parts,
    format_named,
    format_of,
    formats,
    open_sink,
    read_tags,
    writes_one_file,
)
from annotary.sinks._names import NameSet
from annotary.sinks._parts import in_order
from annotary.sinks._placing import FolderNames, place, safe_name

__all__ = [
    "FolderNames",
    "Format",
    "NameSet",
    "Sink",
    "SinkOptions",
    "TagsOfImage",
    "check_parts",
    "format_named",
    "format_of",
    "formats",
    "in_order",
    "open_sink",
    "place",
    "read_tags",
    "safe_name",
    "write_atomically",
    "writes_one_file",
]
