"""`annotary tag`: write the tags of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import (
    DEFAULT_MODEL,
    Annotating,
    loaded,
    model_option,
    policy_option,
    running_options,
    tag_policy,
)
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.runtime import RuntimeOptions
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    from annotary.tasks.tagging import Scorer, Tagger


@click.command("tag", cls=SectionedCommand, short_help="Write the tags of images.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_option
@click.option(
    "--ensemble",
    metavar="NAME,NAME",
    help="Ask several models: the mean of those that know a tag. Takes the place of --model.",
)
@options_of(TaggingOptions, TagRules)
@writing_options
@policy_option
@click.option(
    "--save-scores",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the scores of all tags there, too, for `annotary tags apply`.",
)
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Write the tags of images: files, folders, lists, archives, tables, URLs, or - for standard input.

    Without --format and --output, the tags are printed. A run that was stopped goes on when the same command is given
    again. Images that cannot be read are listed in failures.jsonl.
    """
    click.get_current_context().exit(_tag(paths, values))


def _tag(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.pipeline import ScoreWriter
    from annotary.tasks.tagging import Tagging

    # Whatever can be wrong is found before anything is written.
    annotating = Annotating(paths, values)
    annotating.check("tags")
    tagging_options, rules = made(TaggingOptions, values), made(TagRules, values)
    scorer, weights = _scorer(values, annotating.runtime)
    folder = values["save_scores"]
    if folder is not None and values["output"] is not None and folder == values["output"]:
        raise UsageError("--save-scores and --output need a place each")
    judge = tag_policy(values["policy"], scorer.vocabulary.names)
    task = Tagging(scorer, tagging_options, rules, keeps_scores=folder is not None, judge=judge)
    scored = {"model": scorer.source, "weights": weights}

    def open_scores() -> ScoreWriter | None:
        settings = {**scored, **annotating.decoding}
        overwrite = annotating.writing.overwrites
        return folder and ScoreWriter(
            folder, scorer.source, scorer.vocabulary, settings, overwrite=overwrite
        )

    settings = {"command": "tag", **scored, **task.settings()}
    return annotating.run([task], settings, ("tagging", "tagged"), as_line("tags"), open_scores)


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
    from annotary.tasks.tagging import tagger

    found = loaded(name, options)
    return tagger(found.model), found.weights
