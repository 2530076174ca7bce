"""What commands that read and write texts about images share: lines for people, and tables of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Annotation, Failure, Item, Record

if TYPE_CHECKING:
    from annotary.tasks.own_texts import OwnTexts


def as_captions(record: Record) -> str | None:
    """An image's captions as a line for people; failures are told on standard error."""
    from annotary.cli._output import one_line, tell

    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    told = "; ".join(
        caption.text
        + ("" if caption.score is None else f" {caption.score:.2f}")
        + ("" if caption.match is None else f", match {caption.match:.2f}")
        for caption in record.captions
    )
    return one_line(f"{record.image}: {told or '(no captions)'}")


def as_answers(record: Record) -> str | None:
    """An image's answers as a line for people, each question once; failures are told on standard error."""
    from annotary.cli._output import one_line, tell

    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    told: dict[str, list[str]] = {}
    for answer in record.answers:
        score = "" if answer.score is None else f" {answer.score:.2g}"
        told.setdefault(answer.question, []).append(f"{answer.text or '(no words)'}{score}")
    lines = "; ".join(f"{question} {', '.join(some)}" for question, some in told.items())
    return one_line(f"{record.image}: {lines or '(no questions)'}")


def as_matches(record: Record) -> str | None:
    """How well texts fit an image as a line for people; failures are told on standard error."""
    from annotary.cli._output import one_line, tell

    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    told = "; ".join(
        f"{match.text} {match.score:.2f}"
        + ("" if match.cosine is None else f" (cosine {match.cosine:.2f})")
        for match in record.matches
    )
    return one_line(f"{record.image}: {told or '(no texts)'}")


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
        what: They are ("question"), for messages.

    Raises:
        UsageError: There are no texts, or one of them is a file.
    """
    if len(paths) < 2:
        raise UsageError(f'say a {what} behind the image, such as "a red car", or --{what}')
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
