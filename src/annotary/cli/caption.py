"""`annotary caption`: describe images in sentences."""

from __future__ import annotations

from typing import Any

import click

from annotary.cli._annotating import Annotating, loaded, model_option, running_options
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.tasks.captioning import CaptioningOptions


@click.command("caption", cls=SectionedCommand, short_help="Describe images in sentences.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_option
@click.option(
    "--matcher",
    metavar="NAME",
    help="Have this model judge every caption, such as blip-itm-base-coco; the best matching stands first.",
)
@options_of(CaptioningOptions)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Describe images in sentences.

    Without --format and --output, the captions are printed with how sure the model is of its words. A run that was
    stopped goes on when the same command is given again.
    """
    click.get_current_context().exit(_caption(paths, values))


def _caption(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.tasks.captioning import Captioning
    from annotary.tasks.writing import captioner, matcher

    annotating = Annotating(paths, values)
    annotating.check("captions")
    options = made(CaptioningOptions, values)
    if options.min_match is not None and values["matcher"] is None:
        raise UsageError("--min-match needs --matcher NAME, such as blip-itm-base-coco")
    found = loaded(values["model"], annotating.runtime)
    writer = captioner(found.model)
    judge = None if values["matcher"] is None else loaded(values["matcher"], annotating.runtime)
    task = Captioning(
        writer,
        options.decoding(),
        options.prompt,
        matcher=None if judge is None else matcher(judge.model),
        min_match=options.min_match,
    )
    settings = {
        "command": "caption",
        "model": task.source,
        "weights": found.weights,
        "matcher_weights": None if judge is None else judge.weights,
        **task.settings(),
    }
    return annotating.run([task], settings, ("captioning", "captioned"), as_line("captions"))
