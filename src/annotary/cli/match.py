"""`annotary match`: say how well texts fit images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from annotary.cli._annotating import Annotating, loaded, model_option, running_options
from annotary.cli._options import SectionedCommand
from annotary.cli._writing import writing_options
from annotary.errors import UsageError


@click.command("match", cls=SectionedCommand, short_help="Say how well texts fit images.")
@click.argument("paths", nargs=-1, metavar="PATH... [TEXT...]")
@model_option
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="Compare every image with this; may be given several times.",
)
@click.option(
    "--texts-from",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="A .csv, .jsonl or .parquet with the columns image and text: pairs to judge.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Say how probably texts belong to images, such as `annotary match photo.jpg "a red car"`.

    With --text or --texts-from all arguments are images; without arguments those of the table are taken. Without
    --format and --output, the scores are printed. A run that was stopped goes on when the same command is given again.
    """
    click.get_current_context().exit(_match(paths, values))


def _match(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.cli._output import tell
    from annotary.cli._texts import text_behind, told_cut, with_unmet
    from annotary.tasks.matching import Matching, read_texts
    from annotary.tasks.writing import matcher

    table, texts = values["texts_from"], values["texts"]
    if table is None and not texts:
        paths, texts = text_behind(paths, "text")
    if not paths and table is None:
        raise UsageError("name at least one image, folder, list of images or web address")
    own = None if table is None else read_texts(table)
    annotating = Annotating(paths or (str(table),), values)
    annotating.check("matches")
    annotating.pass_items(partial(with_unmet, own=own, table=table))
    found = loaded(values["model"], annotating.runtime)
    task = Matching(matcher(found.model), texts, of_image=own)
    if task.truncated and not values["quiet"]:
        tell(told_cut(task.truncated, task.source))
    settings = {
        "command": "match",
        "model": task.source,
        "weights": found.weights,
        **task.settings(),
    }
    code = annotating.run([task], settings, ("matching", "matched"), as_line("matches"))
    if task.untold and not values["quiet"]:
        tell(f"images that are not in {table} were compared with nothing: {task.untold:,}")
    return code
