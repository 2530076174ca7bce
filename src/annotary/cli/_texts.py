"""What commands that read and write texts about images share: tables of texts, and notes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Failure, Item

if TYPE_CHECKING:
    from annotary.tasks.own_texts import OwnTexts

_EXAMPLES = {"question": "how many dogs are there?", "text": "a red car"}


def with_unmet(
    items: Iterator[Item | Failure], own: OwnTexts[Any] | None, table: object
) -> Iterator[Item | Failure]:
    """The images of a run, and behind them a failure for every image of a table that is not among them.

    Args:
        items: The images.
        own: The table.
        table: Its name, for messages.
    """
    for item in items:
        if own is not None:
            if isinstance(item, Item):
                own.of(item)
            else:
                own.meet(item.image)
        yield item
    for name in own.unmet if own is not None else ():
        message = f"{table} says something of it, but no image of this name is among what was given"
        yield Failure.of(name, UnreachableImage(message))


def text_behind(paths: Sequence[str], what: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """An image and the texts behind it, of the arguments of a command without options that say texts.

    Args:
        paths: The arguments.
        what: They are, "question" or "text", for messages.

    Raises:
        UsageError: There are no texts, or one of them is a file.
    """
    if len(paths) < 2:
        raise UsageError(f'say a {what} behind the image, such as "{_EXAMPLES[what]}", or --{what}')
    image, *texts = paths
    for text in texts:
        if os.path.exists(text):  # noqa: PTH110 - never raises
            raise UsageError(f"{text!r} is a file or folder; with several images say --{what} TEXT")
    return (image,), tuple(texts)


def told_cut(texts: Sequence[str], source: str) -> str:
    """A note that texts are longer than a model reads."""
    from annotary.tasks.label_sets import shortened

    named = ", ".join(repr(shortened(text)) for text in texts[:5])
    return f"longer than {source} reads, so the end is left out: {named}" + (
        ", ..." if len(texts) > 5 else ""
    )
