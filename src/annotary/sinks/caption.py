"""Text sidecars with the suffix `.caption`, which kohya's scripts look for unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annotary.sinks import _text
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import TEXTS
from annotary.sinks._sidecars import Sidecars
from annotary.sinks._text_sidecars import TextContent, read_texts

SUFFIXES = ()
OPTIONS = ("full_names", *_text.OPTIONS)
CAN_APPEND = True
PARTS = TEXTS


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> Sidecars:
    """A sink that writes into a folder, or beside the images."""
    content = TextContent(".caption", options, has_full_names=options.full_names)
    return Sidecars(output, options, content)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every file in a folder, whoever wrote it."""
    return read_texts(output, ".caption", options)
