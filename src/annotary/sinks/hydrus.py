"""Text sidecars for the hydrus network: `photo.jpg.txt`, one tag a line, kinds of tags as namespaces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from annotary.records import Annotation, Tag
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import NAMES, names_in
from annotary.sinks._sidecars import Sidecars
from annotary.sinks._text_sidecars import TextContent, read_texts

SUFFIXES = ()
OPTIONS = ("prefix", "suffix")
CAN_APPEND = True
PARTS = NAMES

NAMESPACES = {"general": "", "copyright": "series", "artist": "creator"}
"""What hydrus calls a category, where it has another name for it; categories that are not here keep their own."""

_TWO_LETTERS = re.compile(r"[A-Za-z]{2}")


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> Sidecars:
    """A sink that writes into a folder, or beside the images."""
    options = replace(options, separator="\n", trailing_separator=False, escape=False)
    content = TextContent(".txt", options, has_full_names=True, names=_names)
    return Sidecars(output, options, content)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every file in a folder, whoever wrote it."""
    return read_texts(output, ".txt", replace(options, separator="\n"))


def _names(annotation: Annotation, options: SinkOptions) -> list[str]:
    names = (options.prefix, *map(hydrus_tag, names_in(annotation)), options.suffix)
    return [name for name in names if name]


def hydrus_tag(tag: Tag) -> str:
    """A tag as hydrus shows it: spaces for underscores (but `^_^` stays), a namespace for the category, one line."""
    is_face = tag.name.isascii() and not _TWO_LETTERS.search(tag.name)  # as `--spaces` has it
    name = tag.name if is_face else tag.name.replace("_", " ")
    name = " ".join(name.split()) or tag.name.strip()
    namespace = NAMESPACES.get(tag.category, tag.category)
    return f"{namespace}:{name}" if namespace and name else name
