"""One image on the web, named by its http or https address."""

from __future__ import annotations

from collections.abc import Iterator

from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._rows import is_address

IS_LAST_RESORT = True
"""An address that another source knows how to open, such as a tar, is that source's."""


def accepts(argument: str) -> bool:
    """Whether the argument begins with http:// or https://."""
    return is_address(argument)


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:  # noqa: ARG001 - the room's contract
    """The address, named exactly as given."""
    yield Item(image=argument, url=argument)
