"""`annotary tag`: write the tags of images."""

from __future__ import annotations

import os
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._options import made, options_of
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sinks import SinkOptions
from annotary.sources import SourceOptions
from annotary.tasks.tagging import TaggingOptions

if TYPE_CHECKING:
    from annotary.pipeline import Output, Run


@click.command("tag", short_help="Write the tags of images.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    default="starter",
    show_default=True,
    help="A name of `annotary models`, or dir:PATH.",
)
@options_of(TaggingOptions)
@click.option(
    "--format", "form", help="How tags are written: txt (a file an image), json, jsonl or csv."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file, or for txt the folder, to write."
)
@options_of(SinkOptions)
@click.option(
    "--json", "as_json", is_flag=True, help="Print records as JSON Lines on standard output."
)
@click.option("--retry-failed", is_flag=True, help="Try the images again that failed before.")
@click.option("--quiet", is_flag=True, help="No progress bar and no counts.")
@options_of(SourceOptions, DecodeOptions, PipelineOptions, RuntimeOptions)
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Write the tags of images: files, folders, lists of paths, URLs, or - for standard input.

    Without --format and --output, the tags are printed. A run that was stopped goes on when the same command is given
    again. Images that cannot be read are listed in failures.jsonl.
    """
    click.get_current_context().exit(_tag(paths, values))


def _tag(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cards import fingerprint
    from annotary.models import find, load_model
    from annotary.pipeline import Run
    from annotary.sources import Reader, open_sources
    from annotary.tasks.tagging import Tagging, tagger

    # Whatever can be wrong is found before anything is written.
    form = _format(values)
    tagging_options = made(TaggingOptions, values)
    source_options = made(SourceOptions, values)
    decode_options = made(DecodeOptions, values)
    sink_options = made(SinkOptions, values)
    pipeline_options = made(PipelineOptions, values)
    runtime_options = made(RuntimeOptions, values)
    _check_combination(form, values)
    _check_inputs(paths, values["output"], overwrites=values["on_existing"] == "overwrite")
    items = open_sources(paths, source_options)
    task = Tagging(tagger(load_model(values["model"], runtime_options)), tagging_options)
    items = chain((next(items),), items)
    settings = {
        "command": "tag",
        "model": task.source,
        "weights": fingerprint(find(values["model"])),
        **task.settings(),
        "reduce": decode_options.reduce,
        "max_pixels": decode_options.max_pixels,
    }
    output = _output(form, values, sink_options, settings)
    reader = Reader(source_options)
    with reader, Run(items, [task], output, reader, decode_options, pipeline_options) as run:
        count = (
            None if "-" in paths else lambda: sum(1 for _ in open_sources(paths, source_options))
        )
        return _watch(run, output, count, values["quiet"])


def _watch(run: Run, output: Output, count: Any, quiet: bool) -> int:
    """Let a run go on under a bar, and tell its counts; gives the exit code."""
    from annotary.cli import Stopped
    from annotary.cli._output import counts, tell
    from annotary.cli._progress import progress_bar

    started = time.monotonic()
    # Lines that are printed on the same terminal are progress enough.
    has_bar = not quiet and (output.can_continue or not sys.stdout.isatty())
    try:
        with progress_bar("tagging", count, quiet=not has_bar) as bar:
            for _ in run:
                bar.update(run.outcome)
    except KeyboardInterrupt as error:
        goes_on = "; the same command goes on where it stopped" if output.can_continue else ""
        raise Stopped(f"stopped{goes_on}") from error
    except BrokenPipeError:
        # Whoever reads our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if not quiet:
        bar.update(run.outcome)
        tell(counts(run.outcome, "tagged", time.monotonic() - started, output.failures_path))
    return 1 if run.outcome.failed + run.outcome.failed_before else 0


def _format(values: dict[str, Any]) -> str | None:
    """The format's name; None prints."""
    from annotary.sinks import format_of, writes_one_file

    form, output = values["form"], values["output"]
    if values["as_json"] and (form or output):
        raise UsageError("--json prints, so it goes neither with --format nor with --output")
    if output is not None and not output.name and (form is None or writes_one_file(form)):
        raise UsageError(f"--output {os.fspath(output)!r} is no file; name one, such as tags.jsonl")
    if form is None:
        return None if output is None else format_of(output)
    if output is None and writes_one_file(form):
        raise UsageError(f"--format {form} needs --output FILE; --json prints JSON Lines")
    return str(form)


def _check_combination(form: str | None, values: dict[str, Any]) -> None:
    """Refuse options that would be without effect."""
    from annotary.sinks import writes_one_file

    if form is None and (values["retry_failed"] or values["on_existing"] != "skip"):
        raise UsageError("--retry-failed and --on-existing need --output or --format txt")
    is_one_file = form is None or writes_one_file(form)
    if is_one_file and (values["on_existing"] == "append" or values["full_names"]):
        raise UsageError("--on-existing append and --full-names are for --format txt")


def _check_inputs(paths: tuple[str, ...], output: Path | None, *, overwrites: bool) -> None:
    """Refuse to write over an input, and to throw away a list of failures that is one."""
    if output is None:
        return
    lists = [output.parent / name for name in ("failures.jsonl", f"{output.name}.failures.jsonl")]
    taken = [path for path in (output, *(lists if overwrites else ())) if path.is_file()]
    for path in paths:
        if os.path.isfile(path) and any(os.path.samefile(path, other) for other in taken):  # noqa: PTH113, PTH121
            raise UsageError(f"{path} is read and cannot be written; choose another --output")


def _output(
    form: str | None, values: dict[str, Any], options: SinkOptions, settings: dict[str, Any]
) -> Output:
    from annotary.cli._output import Printed, as_json, as_tags
    from annotary.pipeline import FileOutput

    if form is None:
        return Printed(as_json if values["as_json"] else as_tags)
    if form in ("txt", "csv"):
        settings = {**settings, "separator": options.separator, "full_names": options.full_names}
    return FileOutput(
        form, values["output"], options, settings, retry_failed=values["retry_failed"]
    )
