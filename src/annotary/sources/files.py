"""One file, named by its path: an image whatever its suffix is, and whatever the patterns are."""

from __future__ import annotations

from collections.abc import Iterator

from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of

IS_LAST_RESORT = True
"""A file that another source knows how to open, such as a list, is that source's."""


def accepts(argument: str) -> bool:
    """Whether the argument is a regular file that exists."""
    return kind_of(argument) == "file"


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:  # noqa: ARG001 - the room's contract
    """The file, named exactly as given."""
    yield Item.from_path(argument)
