"""`annotary tag`: write the tags of images."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import Writing, without_sidecars, writing_options
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    from annotary.tasks.tagging import Scorer, Tagger

DEFAULT_MODEL = "starter"


@click.command("tag", cls=SectionedCommand, short_help="Write the tags of images.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="A name of `annotary models`, hf:OWNER/NAME or dir:PATH.",
)
@click.option(
    "--ensemble",
    metavar="NAME,NAME",
    help="Ask several models: the mean of those that know a tag. Takes the place of --model.",
)
@options_of(TaggingOptions, TagRules)
@writing_options
@click.option(
    "--save-scores",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the scores of all tags there, too, for `annotary tags apply`.",
)
@options_of(SourceOptions, DecodeOptions, PipelineOptions, RuntimeOptions)
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Write the tags of images: files, folders, lists, archives, tables, URLs, or - for standard input.

    Without --format and --output, the tags are printed. A run that was stopped goes on when the same command is given
    again. Images that cannot be read are listed in failures.jsonl.
    """
    click.get_current_context().exit(_tag(paths, values))


def _tag(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.pipeline import Run, ScoreWriter
    from annotary.sources import Reader, can_be_counted, open_sources
    from annotary.tasks.tagging import Tagging

    # Whatever can be wrong is found before anything is written.
    paths = without_sidecars(paths)
    writing = Writing(values, paths)
    tagging_options, rules = made(TaggingOptions, values), made(TagRules, values)
    source_options = made(SourceOptions, values)
    decode_options = made(DecodeOptions, values)
    pipeline_options = made(PipelineOptions, values)
    runtime_options = made(RuntimeOptions, values)
    items = open_sources(paths, source_options)
    scorer, weights = _scorer(values, runtime_options)
    folder = values["save_scores"]
    if folder is not None and values["output"] is not None and folder == values["output"]:
        raise UsageError("--save-scores and --output need a place each")
    task = Tagging(scorer, tagging_options, rules, keeps_scores=folder is not None)
    items = chain(list(islice(items, 1)), items)  # a shard may be empty
    scored = {
        "model": scorer.source,
        "weights": weights,
        "reduce": decode_options.reduce,
        "max_pixels": decode_options.max_pixels,
    }
    with ExitStack() as open_files:
        output = writing.open({"command": "tag", **scored, **task.settings()})
        reader = open_files.enter_context(Reader(source_options))
        try:
            scores = folder and ScoreWriter(
                folder, scorer.source, scorer.vocabulary, scored, overwrite=writing.overwrites
            )
        except BaseException:
            output.close(complete=False)
            raise
        run = open_files.enter_context(
            Run(items, [task], output, reader, decode_options, pipeline_options, scores)
        )
        count = (
            (lambda: sum(1 for _ in open_sources(paths, source_options)))
            if can_be_counted(paths)
            else None
        )
        return writing.watch(run, output, ("tagging", "tagged"), count)


def _scorer(values: dict[str, Any], options: RuntimeOptions) -> tuple[Scorer, str]:
    """The model or models, and what changes with any of their files."""
    from annotary.tasks.ensemble import Ensemble
    from annotary.tasks.tagging import SingleTagger

    if values["ensemble"] is None:
        model, weights = _loaded(values["model"], options)
        return SingleTagger(model), weights
    if values["model"] != DEFAULT_MODEL:
        raise UsageError("--ensemble takes the place of --model; give one of them")
    names = [name.strip() for name in values["ensemble"].split(",")]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(
            f"--ensemble needs two or more different models, but got {', '.join(names)}"
        )
    models, weights_of_all = zip(*(_loaded(name, options) for name in names), strict=True)
    return Ensemble(models), "+".join(weights_of_all)


def _loaded(name: str, options: RuntimeOptions) -> tuple[Tagger, str]:
    """A tagger, and a text that changes with its files and with arithmetic that rounds differently."""
    from annotary.models import find, load_model
    from annotary.tasks.tagging import tagger

    found = find(name, options)
    model, weights = load_model(found, options), found.fingerprint()
    # Eight bits are a matter of the files.
    rounded = model.choice.precision in ("bf16", "fp16")
    return tagger(model), f"{weights}-{model.choice.precision}" if rounded else weights
