"""What commands that write records share: which format, what goes together, and a run under its bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from annotary.cli._options import made, options_of
from annotary.errors import UsageError
from annotary.sinks import SinkOptions, format_named, format_of, formats
from annotary.sources._braces import expand
from annotary.sources.folder import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annotary.pipeline import Outcome, Output
    from annotary.records import Record

Function = TypeVar("Function", bound=Callable[..., Any])

ARCHIVE_SUFFIXES = (".zip", ".cbz", ".tar", ".tgz", ".tar.gz")
SIDECAR_SUFFIXES = (".txt", ".caption", ".xmp", ".json")

_MOST_SHARDS = 100_000


class Work(Protocol):
    """Something that writes records one by one."""

    outcome: Outcome

    def __iter__(self) -> Iterator[Record]:
        """Write, and yield what was written."""


def writing_options(function: Function) -> Function:
    """Give a command the options that say what is written, and where."""
    decorators = (
        click.option(
            "--format",
            "form",
            metavar="NAME",
            help=f"How tags are written: {', '.join(formats())}. The suffix of --output chooses where it can.",
        ),
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            help="The file to write; for formats with a file for each image the folder, without it beside the images.",
        ),
        options_of(SinkOptions),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print records as JSON Lines on standard output.",
        ),
        click.option(
            "--retry-failed", is_flag=True, help="Try the images again that failed before."
        ),
        click.option("--quiet", is_flag=True, help="No progress bar and no counts."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


class Writing:
    """What a command was told about its output, checked before anything is written.

    Args:
        values: The values of the options.
        inputs: What is read, and must not be written over.

    Attributes:
        form: The format; None prints.
        options: How annotations are written.

    Raises:
        UsageError: Options do not go together, or an input would be written over.
    """

    def __init__(self, values: Mapping[str, Any], inputs: Iterable[str | Path]) -> None:
        self._values = values
        self.form = _format(values)
        self.options = made(SinkOptions, values)
        _check_combination(
            self.form,
            self.options,
            retries=values["retry_failed"],
            has_catalog=values.get("catalog") is not None,
        )
        # A range in braces may be of any length; the output is one of a reasonable number of shards, or of none.
        self._inputs = tuple(
            name for told in inputs for name in islice(expand(os.fspath(told)), _MOST_SHARDS)
        )
        _check_inputs(self._inputs, values["output"], overwrites=self.overwrites)
        output = values["output"]
        if self.form is not None and output is None:
            _check_places(self._inputs)
        if output is not None and (output / "scores.json").is_file():
            raise UsageError(f"{output} holds saved scores; choose another --output")

    @property
    def overwrites(self) -> bool:
        """Whether earlier results are thrown away."""
        return self.options.on_existing == "overwrite"

    @property
    def retries(self) -> bool:
        """Whether images are tried again that failed before."""
        return bool(self._values["retry_failed"])

    @property
    def is_quiet(self) -> bool:
        """Whether there is neither a bar nor counts."""
        return bool(self._values["quiet"])

    def open(
        self,
        settings: Mapping[str, Any],
        line: Callable[[Record], str | None] | None = None,
        parts: Iterable[str] = ("tags",),
        classes: Sequence[str] = (),
    ) -> Output:
        """The output of a run.

        Args:
            settings: What the records depend on.
            line: What is printed for a record where nothing is written; its tags when nothing is said.
            parts: The parts of a record that the run finds.
            classes: What boxes may be labelled with, in their order.

        Raises:
            UsageError: The format cannot hold one of the parts.
            OutputError: It belongs to another run or cannot be written.
        """
        from annotary.cli._lines import as_line
        from annotary.cli._output import Printed, as_json
        from annotary.pipeline import FileOutput

        if self.form is None:
            return Printed(as_json if self._values["as_json"] else line or as_line("tags"))
        written = {name: getattr(self.options, name) for name in format_named(self.form).options}
        return FileOutput(
            self.form,
            self._values["output"],
            self.options,
            {**settings, **written},
            retry_failed=self._values["retry_failed"],
            inputs=self._inputs,
            parts=parts,
            classes=classes,
        )

    def watch(self, work: Work, output: Output, verbs: tuple[str, str], count: Any = None) -> int:
        """Let a run go on under a bar, and tell its counts.

        Args:
            work: The run.
            output: Where it writes.
            verbs: What it does and has done ("tagging", "tagged").
            count: Tells how many images there are; None when nobody can know.

        Returns:
            The exit code.
        """
        from annotary.cli import Stopped
        from annotary.cli._output import counts, tell
        from annotary.cli._progress import progress_bar

        started = time.monotonic()
        quiet = self._values["quiet"]
        # Lines that are printed on the same terminal are progress enough.
        has_bar = not quiet and (output.can_continue or not sys.stdout.isatty())
        try:
            with progress_bar(verbs[0], count, quiet=not has_bar) as bar:
                for _ in work:
                    bar.update(work.outcome)
        except KeyboardInterrupt as error:
            goes_on = "; the same command goes on where it stopped" if output.can_continue else ""
            raise Stopped(f"stopped{goes_on}") from error
        except BrokenPipeError:
            # Whoever reads our output has enough. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if not quiet:
            bar.update(work.outcome)
            seconds = time.monotonic() - started
            is_beside = self.form is not None and self._values["output"] is None
            failures = output.failures_path
            tell(counts(work.outcome, verbs[1], seconds, failures, is_beside=is_beside))
        return 1 if work.outcome.failed + work.outcome.failed_before else 0


def _format(values: Mapping[str, Any]) -> str | None:
    """The format's name; None prints."""
    form, output = values["form"], values["output"]
    if values["as_json"] and (form or output):
        raise UsageError("--json prints, so it goes neither with --format nor with --output")
    is_one_file = form is None or format_named(form).is_one_file
    if output is not None and not output.name and is_one_file:
        raise UsageError(f"--output {os.fspath(output)!r} is no file; name one, such as tags.jsonl")
    if form is None:
        return None if output is None else format_of(output)
    if output is None and is_one_file:
        raise UsageError(f"--format {form} needs --output FILE; --json prints JSON Lines")
    return str(form)


def _check_combination(
    form: str | None, options: SinkOptions, *, retries: bool, has_catalog: bool
) -> None:
    """Refuse options that would be without effect."""
    if form is None and not has_catalog and (retries or options.on_existing != "skip"):
        raise UsageError("--retry-failed and --on-existing need --output or --format txt")
    if options.on_existing == "append" and not (form and format_named(form).can_append):
        able = ", ".join(name for name in formats() if format_named(name).can_append)
        raise UsageError(f"--on-existing append is for --format {able}")
    known = () if form is None else format_named(form).options
    for entry in fields(SinkOptions):
        is_said = getattr(options, entry.name) != entry.default
        if is_said and entry.name != "on_existing" and entry.name not in known:
            able = ", ".join(name for name in formats() if entry.name in format_named(name).options)
            raise UsageError(f"--{entry.name.replace('_', '-')} is for --format {able}")


def _check_places(inputs: Iterable[str]) -> None:
    """Refuse sidecars beside what are no files, before all of them fail."""
    for name in inputs:
        if name.lower().endswith(ARCHIVE_SUFFIXES):
            raise UsageError(
                f"the images of {name} are no files to put sidecars beside; say --output FOLDER"
            )


def without_sidecars(paths: Sequence[str]) -> tuple[str, ...]:
    """Arguments without the sidecars that a shell has put among the images: `photos/*` names both.

    A text file whose name is that of an image among the arguments is its caption, and no list of images.
    """
    images = {
        stem
        for path in paths
        for stem in (path, os.path.splitext(path)[0])  # noqa: PTH122
        if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
    }
    kept = []
    for path in paths:
        stem, suffix = os.path.splitext(path)  # noqa: PTH122
        if not (suffix.lower() in SIDECAR_SUFFIXES and stem in images):
            kept.append(path)
    return tuple(kept)


def _check_inputs(inputs: Iterable[str], output: Path | None, *, overwrites: bool) -> None:
    """Refuse to write over an input, and to throw away a list of failures that is one."""
    if output is None:
        return
    lists = [output.parent / name for name in ("failures.jsonl", f"{output.name}.failures.jsonl")]
    taken = [path for path in (output, *(lists if overwrites else ())) if path.is_file()]
    for path in inputs:
        if os.path.isfile(path) and any(os.path.samefile(path, other) for other in taken):  # noqa: PTH113, PTH121
            raise UsageError(f"{path} is read and cannot be written; choose another --output")
