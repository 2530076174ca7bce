"""`annotary detect`: find things in images, and where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import Annotating, Loaded, loaded, model_option, running_options
from annotary.cli._composing import check_compose, composed
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.tasks.composing import ComposeOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.queries import QueryOptions

if TYPE_CHECKING:
    from annotary.cards import Alpha
    from annotary.tasks import Task
    from annotary.tasks.detection import Detection
    from annotary.tasks.label_sets import LabelSet
    from annotary.tasks.queries import Example

MANY_PROMPTS = 500
"""From so many on it is told that they are embedded, as that takes a while."""

_WHOLE = "all"


@click.command("detect", cls=SectionedCommand, short_help="Find things in images, and where.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_option
@click.option(
    "--like",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="Find what this image shows; may be given several times.",
)
@click.option(
    "--box",
    multiple=True,
    metavar="X0,Y0,X1,Y1",
    help="Where in the image of --like the thing is, in pixels; one for each --like, or all for the whole image.",
)
@click.option(
    "--like-name",
    multiple=True,
    metavar="NAME",
    help="What is found by --like is called: one name for all, or one for each; else the file's name.",
)
@options_of(QueryOptions, DetectionOptions, ComposeOptions)
@click.option(
    "--draw",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a picture with its boxes for every image that is looked at, to this folder.",
)
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the queries of texts between runs.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Find things in images by words or by example, and where they are.

    Boxes are in pixels of the upright image. Without --format and --output, they are printed. A run that was stopped
    goes on when the same command is given again.
    """
    click.get_current_context().exit(_detect(paths, values))


def _detect(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.cli._output import tell

    # Whatever can be wrong is found before anything is written, and before a model is loaded.
    annotating = Annotating(paths, values)
    annotating.check("boxes")
    labels = _labels(values)
    if check_compose(values).compose and (labels is None or values["like"]):
        raise UsageError("--compose is for labels in words; --like says none")
    _check_drawing(values["draw"], paths)
    found = loaded(values["model"], annotating.runtime)
    task = detection(found, values, labels)
    if not values["quiet"]:
        for note in _notes(task):
            tell(note)
    asked: Task = task
    told = task.settings()
    if values["compose"]:
        asked, told = composed(task, values, loaded)
        told = {**told, "compose_threshold": values["compose_threshold"]}
    settings = {
        "command": "detect",
        "model": asked.source,
        "weights": found.weights,
        **told,
    }
    if values["draw"] is not None:
        from annotary.drawing import Drawn

        asked = Drawn(asked, values["draw"], task.names)
    verbs = ("detecting", "searched")
    return annotating.run([asked], settings, verbs, as_line("boxes"), classes=task.names)


def _check_drawing(folder: Path | None, paths: Sequence[str]) -> None:
    """Check that pictures can be drawn, before a model is loaded.

    Raises:
        UsageError: Where they would go is a file, or among the images, where the next run would take them for some.
        MissingExtra: What draws them is not installed.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--draw {folder} is a file; say a folder")
    own = Path(os.path.realpath(folder))
    for path in paths:
        if os.path.isdir(path) and own.is_relative_to(os.path.realpath(path)):  # noqa: PTH112
            raise UsageError(f"--draw {folder} is in {path}, whose images are read; say another")
    from annotary.drawing import check_installed

    check_installed()


def _labels(values: Mapping[str, Any]) -> LabelSet | None:
    """What is looked for in words; None for examples alone.

    Raises:
        UsageError: Nothing is looked for, or what is makes no sense.
    """
    from annotary.tasks.queries import read_queries

    options = made(QueryOptions, values)
    if not options.has_labels and values["like"]:
        if options.template or options.templates:
            raise UsageError("--template and --templates are for labels; --like has none")
        return None
    if not options.has_labels:
        raise UsageError(
            "say what to look for: --labels, --labels-file or --ontology for words, --like for an example image"
        )
    return read_queries(options)


def detection(found: Loaded, values: Mapping[str, Any], labels: LabelSet | None) -> Detection:
    """The task that options tell.

    Raises:
        UsageError: They make no sense, or the model finds no boxes.
        ImageError: An example cannot be read.
    """
    from annotary.cli._output import tell
    from annotary.tasks.detection import Detection
    from annotary.tasks.locating import detector
    from annotary.tasks.zero_shot import read_thresholds

    options = made(DetectionOptions, values)
    model = detector(found.model)
    examples = _examples(model.card.preprocess.alpha, values)
    prompts = 0 if labels is None else sum(len(label.prompts) for label in labels.classes)
    if prompts > MANY_PROMPTS and not values["quiet"]:
        tell(f"embedding {prompts:,} texts, unless they are remembered from an earlier run")
    cuts = options.label_thresholds
    return Detection(
        model,
        labels,
        options,
        examples=examples,
        thresholds=None if cuts is None else read_thresholds(cuts),
        cache=found.text_cache() if values["text_cache"] else None,
    )


def _examples(alpha: Alpha, values: Mapping[str, Any]) -> list[Example]:
    """The images of --like, with their boxes and names."""
    from annotary.images import DecodeOptions
    from annotary.inputs import pixels_of
    from annotary.sources import SourceOptions
    from annotary.tasks.queries import Example, read_box

    images, boxes, names = values["like"], values["box"], values["like_name"]
    if len(boxes) not in (0, len(images)):
        raise UsageError(
            f"say one --box for each --like, or none; got {len(images)} --like and {len(boxes)} --box"
        )
    if len(names) not in (0, 1, len(images)) or (names and not images):
        raise UsageError(
            f"say one --like-name for all --like, or one for each; got {len(names)} for {len(images)} --like"
        )
    sources, decoding = made(SourceOptions, values), made(DecodeOptions, values)
    found = []
    for number, path in enumerate(images):
        name = names[number % len(names)] if names else path.stem
        box = None if not boxes or boxes[number] == _WHOLE else read_box(boxes[number])
        pixels = pixels_of(os.fspath(path), alpha, sources, decoding)
        found.append(Example(name, pixels, box))
    return found


def _notes(task: Detection) -> Iterator[str]:
    """What a user may not have meant."""
    if task.truncated:
        yield f"longer than {task.source} reads, so the end is left out: {_listed(task.truncated)}"


def _listed(names: Sequence[str]) -> str:
    """The first five names."""
    from annotary.tasks.label_sets import shortened

    return ", ".join(map(shortened, names[:5])) + (", ..." if len(names) > 5 else "")
