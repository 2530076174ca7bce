"""What commands that measure share: vectors of images whose labels are known, and reports."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import click
import numpy as np
import numpy.typing as npt

from annotary.cli._options import made, options_of
from annotary.cli._output_places import check_place
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.records import Failure, Item
from annotary.runtime import RuntimeOptions
from annotary.tasks.asking import AsksOneModel

if TYPE_CHECKING:
    from annotary.tasks import Picture
    from annotary.tasks.encoding import ImageEncoder

Function = TypeVar("Function", bound=Callable[..., Any])
Known = TypeVar("Known")
Vectors = npt.NDArray[np.float32]

_AT_ONCE = 256
"""Images whose scores are worked out together."""

_MOST_TOLD = 5
"""Failures that are told one by one."""

measuring_options = options_of(DecodeOptions, PipelineOptions, RuntimeOptions)
"""Options of every command that measures."""


def report_options(function: Function) -> Function:
    """Give a command the options that say where its report goes."""
    decorators = (
        click.option(
            "--json", "as_json", is_flag=True, help="Print the report as one JSON object."
        ),
        click.option("--quiet", is_flag=True, help="No progress bar."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


class Block(NamedTuple, Generic[Known]):
    """Some images that became vectors.

    Attributes:
        images: Their names.
        known: What is known of each.
        vectors: float32[b, d], unit length.
    """

    images: list[str]
    known: list[Known]
    vectors: Vectors


class ImageVectors(Generic[Known]):
    """Images on their way to vectors; an image that cannot be had does not end the run.

    Args:
        model: Embeds images.
        values: The values of the options.

    Attributes:
        failures: What could not be had, and why; complete when all blocks have been taken.
    """

    def __init__(self, model: ImageEncoder, values: Mapping[str, Any]) -> None:
        self._task = _Vectors(model)
        self._decode_options = made(DecodeOptions, values)
        self._pipeline_options = made(PipelineOptions, values)
        self._quiet: bool = values["quiet"]
        self.failures: list[Failure] = []

    def blocks(
        self, images: Iterable[tuple[Item | Failure, Known]], count: Callable[[], int] | None
    ) -> Iterator[Block[Known]]:
        """Embed images.

        Args:
            images: Each with what is known of it; they are taken in a thread of their own.
            count: Tells how many there are.
        """
        from annotary.cli._progress import progress_bar
        from annotary.pipeline import Outcome
        from annotary.pipeline.local import annotate
        from annotary.sources import Reader, SourceOptions

        waiting: deque[Known] = deque()

        def items() -> Iterator[Item | Failure]:
            for item, known in images:
                waiting.append(known)  # results come in the order of the items
                yield item

        outcome, block = Outcome(), Block[Known]([], [], np.zeros((0, 0), np.float32))
        rows: list[Vectors] = []
        with (
            Reader(SourceOptions()) as reader,
            progress_bar("embedding", count, quiet=self._quiet) as bar,
        ):
            options = self._decode_options, self._pipeline_options
            for result in annotate(items(), [self._task], reader, *options):
                known = waiting.popleft()
                if isinstance(result.record, Failure) or result.item is None:
                    assert isinstance(result.record, Failure)
                    self.failures.append(result.record)
                    outcome.failed += 1
                else:
                    block.images.append(result.item.image)
                    block.known.append(known)
                    rows.append(result.beside["vector"])
                    outcome.done += 1
                bar.update(outcome)
                if len(rows) == _AT_ONCE:
                    yield block._replace(vectors=np.stack(rows))
                    block, rows = Block([], [], block.vectors), []
        if rows:
            yield block._replace(vectors=np.stack(rows))

    def tell_failures(self) -> None:
        """Some failures on standard error, and how many there are."""
        from annotary.cli._output import tell

        for failure in self.failures[:_MOST_TOLD]:
            tell(f"{failure.image}: {failure.message}")
        if self.failures:
            count = len(self.failures)
            more = f"; {count - _MOST_TOLD:,} more in the report" if count > _MOST_TOLD else ""
            told = "1 image" if count == 1 else f"{count:,} images"
            tell(
                f"{told} could not be read and {'counts' if count == 1 else 'count'} nowhere{more}"
            )


class _Vectors(AsksOneModel["ImageEncoder"]):
    """The task of embedding for arithmetic: vectors stay arrays, beside the record."""

    part = ""

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        (batch,) = batches
        return [{"vector": vector} for vector in self._model.embed_images(batch)]


def templates_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What names of classes are put in, by --template and --templates.

    Raises:
        UsageError: One has no place for the name, or both ways are told.
    """
    from annotary.tasks.label_sets import DEFAULT_TEMPLATE, LabelOptions, read_templates

    told = {entry.name: entry.default for entry in fields(LabelOptions)}
    options = made(
        LabelOptions,
        {**told, "template": values["template"], "templates": values["templates"]},
    )
    if options.templates is None:
        return options.template or (DEFAULT_TEMPLATE,)
    try:
        return read_templates(options.templates)
    except OSError as error:
        raise UsageError(f"--templates {options.templates}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--templates: {error}") from error


def check_replaceable(path: Path | None, command: str) -> None:
    """Refuse to write a report over anything but an earlier one.

    Args:
        path: Of the report; None when none is written.
        command: What reports say that they are of.

    Raises:
        UsageError: Something else is there.
        OutputError: Nothing can be written there.
    """
    if path is None:
        return
    check_place(path, "--output")
    if not path.exists():
        return
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("command") != command:
        raise UsageError(f"{path} is there already and no report of `annotary {command}`")


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    from annotary.sinks import write_atomically

    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    # Names of files that are not UTF-8 become escapes of JSON, as in records.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def print_report(report: Mapping[str, Any]) -> None:
    """A report on standard output as one line of JSON."""
    text = json.dumps(report, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode("utf-8", "backslashreplace"))


def percent(share: float | None) -> str:
    """A share for people."""
    return "-" if share is None else f"{share:.1%}"


def table(rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """Rows as aligned columns for people.

    Args:
        rows: The first is the head.
        numbers: Which columns are aligned to the right.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
