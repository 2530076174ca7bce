"""`annotary tag`: write the tags of images."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from annotary.cli._options import made, options_of
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sinks import SinkOptions
from annotary.sources import SourceOptions
from annotary.tasks.tagging import TaggingOptions


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
    "--format", "form", help="How tags are written: txt (beside each image), json, jsonl or csv."
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
    sys.exit(_tag(paths, values))


def _tag(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._output import counts, tell
    from annotary.cli._progress import progress_bar
    from annotary.models import load_model
    from annotary.pipeline import Run
    from annotary.sources import Reader, open_sources
    from annotary.tasks.tagging import Tagging, tagger

    options = made(TaggingOptions, values)
    form = _format(values)
    source_options = made(SourceOptions, values)
    decode_options = made(DecodeOptions, values)
    items = open_sources(paths, source_options)
    model = tagger(load_model(values["model"], made(RuntimeOptions, values)))
    task = Tagging(model, options)
    output = _output(form, values, _settings(model.card, options, decode_options))
    started = time.monotonic()
    run = Run(
        items, [task], output, Reader(source_options), decode_options, made(PipelineOptions, values)
    )
    # Lines that are printed on the same terminal are progress enough.
    quiet = values["quiet"] or (form is None and sys.stdout.isatty())
    count = None if "-" in paths else lambda: sum(1 for _ in open_sources(paths, source_options))
    with run, progress_bar("tagging", count, quiet=quiet) as bar:
        for _ in run:
            bar.update(run.outcome)
    if not values["quiet"]:
        seconds = time.monotonic() - started
        tell(counts(run.outcome, "tagged", seconds, output.failed_before, output.failures_path))
    return 1 if run.outcome.failed + output.failed_before else 0


def _format(values: dict[str, Any]) -> str | None:
    """The format's name; None prints."""
    from annotary import registry
    from annotary.sinks import format_of, formats, writes_one_file

    form, output = values["form"], values["output"]
    if values["as_json"] and (form or output):
        raise UsageError("--json prints, so it goes neither with --format nor with --output")
    if form is None:
        return None if output is None else format_of(output)
    if form not in formats():
        registry.load("sinks", form)
    if output is None and writes_one_file(form):
        raise UsageError(f"--format {form} needs --output FILE; --json prints JSON Lines")
    return str(form)


def _output(form: str | None, values: dict[str, Any], settings: dict[str, Any]) -> Any:
    from annotary.cli._output import Printed, as_json, as_tags
    from annotary.pipeline.run import FileOutput

    if form is None:
        return Printed(as_json if values["as_json"] else as_tags)
    sink_options = made(SinkOptions, values)
    settings |= {"separator": sink_options.separator, "full_names": sink_options.full_names}
    return FileOutput(
        form, values["output"], sink_options, settings, retry_failed=values["retry_failed"]
    )


def _settings(card: Any, options: TaggingOptions, decode_options: DecodeOptions) -> dict[str, Any]:
    """What the tags depend on: two runs that agree in these may continue each other."""
    return {
        "command": "tag",
        "model": card.id,
        "weights": card.fingerprint,
        "threshold": options.threshold,
        "preset": options.preset,
        "top": options.top,
        "exclude": list(options.exclude),
        "reduce": decode_options.reduce,
        "max_pixels": decode_options.max_pixels,
    }
