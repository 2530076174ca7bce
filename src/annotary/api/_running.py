"""Runs of tasks from Python: records as they come, and what is told of texts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TypeAlias

from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput, items_of
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Failure, Item, Record
from annotary.sources import Reader, SourceOptions
from annotary.tasks import Task

Records: TypeAlias = Generator[Record, None, None]
"""Records as they come. Closing it ends the work."""

_MOST_TOLD = 80
"""Characters of a text that a message cites."""


def run(
    images: ImageInput,
    task: Task,
    source_options: SourceOptions | None,
    decode_options: DecodeOptions | None,
) -> Records:
    """The records of a task; what makes no sense is raised at once, and not with the first record."""
    sources, decoding = source_options or SourceOptions(), decode_options or DecodeOptions()
    told = decoding.transparency
    alpha = task.inputs[0].alpha if told == "auto" else told
    return _records(items_of(images, sources, alpha), task, sources, decoding)


def _records(
    items: Iterator[Item | Failure],
    task: Task,
    source_options: SourceOptions,
    decode_options: DecodeOptions,
) -> Records:
    with (
        Reader(source_options) as reader,
        closing(annotate(items, [task], reader, decode_options, PipelineOptions())) as results,
    ):
        for result in results:
            yield result.record


def told_truncated(texts: Sequence[str]) -> str:
    """A warning that texts are longer than the model reads."""
    named = ", ".join(map(_beginning, texts[:3])) + (", ..." if len(texts) > 3 else "")
    return f"the model does not read all of {named}: the end is left out"


def _beginning(text: str) -> str:
    return repr(text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}...")


def words(texts: str | Iterable[str]) -> list[str]:
    """Texts that a model can read.

    Raises:
        UsageError: Something is no text.
    """
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise UsageError(f"texts are a text or a list of texts, but got {texts!r}")
    told = [texts] if isinstance(texts, str) else list(texts)
    for text in told:
        if not isinstance(text, str):
            raise UsageError(f"a text to embed must be text, but got {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"this is no text that a model can read: {_beginning(text)}"
            ) from error
    return told
