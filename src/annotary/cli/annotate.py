"""`annotary annotate`: several tasks for each image that is decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._annotate_tasks import (
    BOX,
    PARTS,
    TASKS,
    AnnotateOptions,
    AskOptions,
    LabelScoring,
    Models,
    answering,
    captioning,
    check_options,
    classifying,
    detecting,
    embedding,
    tagging,
)
from annotary.cli._annotating import (
    Annotating,
    loaded,
    model_option,
    policy_option,
    running_options,
)
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.tasks.captioning import CaptioningOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.label_sets import LabelOptions
from annotary.tasks.queries import QueryOptions
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions


@click.command("annotate", cls=SectionedCommand, short_help="Do several tasks for each image.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@options_of(AnnotateOptions)
@model_option
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the results in this catalogue, for `annotary search`; only new and changed files are annotated.",
)
@click.option(
    "--replace-part",
    is_flag=True,
    help="Throw away what all images of the catalogue have of these tasks where it was made with other settings.",
)
@policy_option
@options_of(TaggingOptions, TagRules, LabelOptions, LabelScoring, CaptioningOptions, AskOptions)
@options_of(QueryOptions, DetectionOptions, prefix=BOX)
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Do several tasks for each image, which is read and decoded once for all of them.

    A record has a part for each task, and says which model said what. A run that was stopped goes on when the same
    command is given again.
    """
    click.get_current_context().exit(_annotate(paths, values))


def _annotate(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line

    # Whatever can be wrong is found before anything is written.
    annotating = Annotating(paths, values)
    options = made(AnnotateOptions, values)
    if values["catalog"] is not None and (annotating.writing.form or values["as_json"]):
        raise UsageError("--catalog goes neither with --output, nor with --format, nor with --json")
    if values["replace_part"] and values["catalog"] is None:
        raise UsageError("--replace-part is for --catalog")
    check_options(options.named, values)
    annotating.check(*(PARTS[name] for name in options.named))
    models = Models(values["model"], options, annotating.runtime, loaded)
    make = {
        "tag": lambda: tagging(models, values, options.named),
        "classify": lambda: classifying(models, values, annotating.writing.form),
        "caption": lambda: captioning(models, values),
        "ask": lambda: answering(models, values),
        "detect": lambda: detecting(models, values),
        "embed": lambda: embedding(models),
    }
    asked = [make[name]() for name in TASKS if name in options.named]
    tasks = [one.task for one in asked]
    verbs = ("annotating", "annotated")
    if values["catalog"] is not None:
        by_part = {one.task.part: one.settings for one in asked}
        replaces = values["replace_part"]
        return annotating.fill(values["catalog"], tasks, by_part, verbs, replaces=replaces)
    settings: dict[str, Any] = {"command": "annotate"}
    for one in asked:
        told = {"model": one.task.source, **one.settings}
        settings |= {f"{one.task.part}.{name}": value for name, value in told.items()}
    classes = next((one.classes for one in asked if one.classes), ())
    line = as_line(*(task.part for task in tasks))
    return annotating.run(tasks, settings, verbs, line, classes=classes)
