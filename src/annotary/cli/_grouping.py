"""What commands that look at all images together share: reading them under a bar, and writing a table."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from annotary.cli._options import made
from annotary.cli._writing import without_sidecars
from annotary.errors import OutputError, UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.pipeline.state import is_list_of_failures
from annotary.sources import SourceOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from annotary.pipeline import Outcome
    from annotary.pipeline.local import Result
    from annotary.records import Failure, Item
    from annotary.sources import Reader
    from annotary.tasks import Task

Function = TypeVar("Function", bound=Callable[..., Any])

SUFFIXES = (".jsonl", ".csv")

_LONGEST_LINE = 1 << 20
"""Bytes of a line of a table; only what is longer than a million names of links would be."""


def table_options(function: Function) -> Function:
    """Give a command the options that say where its table goes."""
    decorators = (
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"Write a table: {' or '.join(SUFFIXES)}. An old one is replaced when the new one is whole.",
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print JSON Lines on standard output."
        ),
        click.option("--quiet", is_flag=True, help="No progress bar and no counts."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


class Reading:
    """Images of a command that are read, under a bar; what cannot be read is told, counted and listed.

    Args:
        values: The values of the options.

    Attributes:
        outcome: The counts.
        failures: What could not be read.

    Raises:
        UsageError: An option makes no sense.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        from annotary.pipeline import Outcome

        self.outcome: Outcome = Outcome()
        self.failures: list[Failure] = []
        self._source_options = made(SourceOptions, values)
        self._decode_options = made(DecodeOptions, values)
        self._pipeline_options = made(PipelineOptions, values)
        self._is_quiet = bool(values["quiet"])
        self._started = time.monotonic()
        if self._source_options.shard is not None:
            raise UsageError("--shard would compare only a part of the images with each other")

    def open(self, paths: Sequence[str]) -> Iterator[Item | Failure]:
        """The images that arguments name.

        Raises:
            UsageError: An argument is nobody's.
        """
        from annotary.sources import open_sources

        return open_sources(without_sidecars(paths), self._source_options)

    def reader(self) -> Reader:
        """What reads the bytes; the caller closes it."""
        from annotary.sources import Reader

        return Reader(self._source_options)

    def counter(self, paths: Sequence[str]) -> Callable[[], int] | None:
        """Tells how many images there are, if going through their names once more is cheap."""
        from annotary.sources import can_be_counted

        if not can_be_counted(without_sidecars(paths)):
            return None
        return lambda: sum(1 for _ in self.open(paths))

    def results(
        self,
        paths: Sequence[str],
        tasks: Sequence[Task],
        verb: str,
        choose: Callable[[Iterator[Item | Failure]], Iterator[Item | Failure]] = iter,
        failed: Callable[[Item], None] = lambda _: None,
    ) -> Iterator[Result]:
        """What tasks make of the images that can be read, with the sha256 of each.

        Args:
            paths: The command's arguments.
            tasks: What is asked of each image.
            verb: What is done ("embedding").
            choose: Leaves images out.
            failed: Hears of every image that cannot be read.
        """
        from annotary.pipeline import annotate

        items = choose(self.open(paths))
        with (
            self.bar(verb, self.counter(paths)) as show,
            self.reader() as reader,
            closing(
                annotate(
                    items,
                    tasks,
                    reader,
                    self._decode_options,
                    self._pipeline_options,
                    keeps_digest=True,
                )
            ) as results,
        ):
            for result in results:
                if result.record.ok:
                    self.outcome.done += 1
                    yield result
                else:
                    self.fail(result.record)
                    if result.item is not None:
                        failed(result.item)
                show()

    @contextmanager
    def bar(self, verb: str, count: Callable[[], int] | None) -> Iterator[Callable[[], None]]:
        """A progress bar; calling what it gives shows the counts."""
        from annotary.cli._progress import progress_bar

        with progress_bar(verb, count, quiet=self._is_quiet) as bar:
            yield lambda: bar.update(self.outcome)

    def fail(self, failure: Any) -> None:
        """Note an image that cannot be read."""
        from annotary.cli._output import tell

        self.outcome.failed += 1
        self.failures.append(failure)
        tell(f"{failure.image}: {failure.message}")

    def end(self, output: Path | None, told: str) -> int:
        """List the failures beside the output, and tell the counts.

        Returns:
            The exit code.
        """
        from annotary.cli._output import tell
        from annotary.records import to_line
        from annotary.sinks import write_atomically

        listed = ""
        if self.failures and output is not None:
            path = _failures_beside(output)
            write_atomically(path, "".join(to_line(failure) + "\n" for failure in self.failures))
            listed = f"; see {path}"
        if not self._is_quiet:
            failed = f"; {self.outcome.failed:,} failed{listed}" if self.outcome.failed else ""
            tell(f"{told} in {time.monotonic() - self._started:.1f} s{failed}")
        return 1 if self.outcome.failed else 0


def until_nobody_reads(work: Callable[[], int]) -> int:
    """The exit code of work that prints; whoever reads it may have enough before its end.

    Raises:
        Stopped: A person stopped it.
    """
    from annotary.cli import Stopped

    try:
        return work()
    except KeyboardInterrupt as error:
        raise Stopped("stopped; nothing was written") from error
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def check_table(
    values: Mapping[str, Any],
    inputs: Iterable[str | Path | None],
    columns: Sequence[str],
    *,
    can_print: bool = False,
) -> None:
    """Refuse an output that is no table, or that would replace anything but an earlier table of the same command.

    Args:
        values: The values of the options.
        inputs: What is read.
        columns: Of the table; the first four are in every row.
        can_print: Whether something else is printed while a table is written.

    Raises:
        UsageError: The message says what to do.
    """
    output: Path | None = values["output"]
    if output is None:
        return
    if values["as_json"] and not can_print:
        raise UsageError("--json prints, so it does not go with --output")
    if output.suffix.lower() not in SUFFIXES or output.is_dir():
        raise UsageError(f"--output {output} must be a file ending in {' or '.join(SUFFIXES)}")
    for path in inputs:
        if path is not None and output.is_file() and Path(path).is_file() and output.samefile(path):
            raise UsageError(f"{path} is read and cannot be written; choose another --output")
    if output.exists() and not _is_table(output, columns):
        name = click.get_current_context().info_name
        raise UsageError(
            f"--output {output} is there already and is no table of annotary {name}; name another file"
        )
    failures = _failures_beside(output)
    if failures.exists() and not is_list_of_failures(failures):
        raise UsageError(
            f"{failures} is there already and is no list of failures; name another --output"
        )


def _failures_beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.failures.jsonl")


def _is_table(path: Path, columns: Sequence[str]) -> bool:
    """Whether a file begins as a table with such columns does; an empty one has nothing to lose."""
    if not path.is_file():  # reading a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_LINE).rstrip(b"\r\n")
            is_empty = not line and not file.read(1)
    except OSError:
        return False
    if is_empty or path.suffix.lower() == ".csv":
        return is_empty or line == ",".join(columns).encode()
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and {*columns[:4]} <= row.keys() <= {*columns}


def pictures(
    wanted: Iterable[tuple[str, str | None]], reading: Reading, paths: Sequence[str]
) -> dict[str, npt.NDArray[np.uint8] | None]:
    """Thumbnails by name: of files as they are now, of members of archives by going through the sources once more.

    Args:
        wanted: Names and files.
        reading: Reads them.
        paths: The command's arguments.

    Returns:
        None for what cannot be read; what cannot be found is not there.
    """
    from annotary.catalog.contact_sheet import thumbnail
    from annotary.errors import AnnotaryError, ImageError
    from annotary.records import Item

    found: dict[str, npt.NDArray[np.uint8] | None] = {}
    with reading.reader() as reader:

        def show(item: Item) -> None:
            try:
                found[item.image] = thumbnail(reader.read(item))
            except ImageError:
                found[item.image] = None

        others = set()
        for image, path in sorted(wanted, key=lambda entry: entry[0]):
            if path is not None:
                show(Item(image, path=Path(path)))
            elif image.startswith(("http://", "https://")):
                show(Item(image, url=image))
            else:
                others.add(image)
        if others and paths and "-" not in paths:  # standard input is not there twice
            try:
                for item in reading.open(paths):
                    if isinstance(item, Item) and item.image in others:
                        show(item)
                        others.discard(item.image)
                    if not others:
                        break
            except AnnotaryError:
                return found
    return found


def counted(count: int, what: str) -> str:
    """A number and what it is of: "1 image", "2,000 images"."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


@contextmanager
def table_writer(
    output: Path, columns: Sequence[str]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A table that takes the place of the file when it is whole.

    Args:
        output: The file; its suffix says which format.
        columns: Of a CSV file; a JSON line has what a row has.

    Raises:
        OutputError: It cannot be written; the old file, if any, is as it was.
    """
    from annotary.sinks._atomic import replacing

    is_csv = output.suffix.lower() == ".csv"
    try:
        with replacing(output) as file:
            if is_csv:
                file.write((",".join(columns) + "\n").encode())

            def write(row: Mapping[str, Any]) -> None:
                line = _csv_line([row.get(name) for name in columns]) if is_csv else json_line(row)
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")

            yield write
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def print_line(text: str) -> None:
    """One line on standard output; a name that is no valid Unicode is written with escapes."""
    click.echo(text.encode("utf-8", "backslashreplace"))


def _csv_line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    told = ("" if c is None else _cell(c) for c in cells)
    csv.writer(text, lineterminator="\r\n").writerow(
        list(told)
    )  # so that it quotes both characters
    return text.getvalue().removesuffix("\r\n")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else value
