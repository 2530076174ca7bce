"""`annotary evaluate retrieval`: how well a model finds images by captions, and captions by images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import loaded, model_option
from annotary.cli._evaluating import (
    FILE,
    first_failure,
    give,
    image_column_option,
    integers,
    output_option,
)
from annotary.cli._measuring import (
    ImageVectors,
    check_replaceable,
    measuring_options,
    percent,
    report_options,
    table,
)
from annotary.cli._options import SectionedCommand, made
from annotary.errors import NothingToDo
from annotary.runtime import RuntimeOptions

if TYPE_CHECKING:
    from annotary.evaluation.retrieval import Direction


@click.command("retrieval", cls=SectionedCommand, short_help="Look up images by captions.")
@click.argument("dataset", type=FILE, metavar="TABLE")
@model_option
@click.option(
    "--images",
    type=FILE,
    metavar="FOLDER",
    help="Where paths start; where the table is otherwise.",
)
@image_column_option
@click.option("--caption-column", metavar="NAME", help="Column of the table that holds captions.")
@click.option("--split", metavar="NAME", help="Take only rows whose column split says this.")
@output_option
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Look up every image by each of its captions, and the captions by the image.

    TABLE (.csv, .tsv, .jsonl, .parquet) has an image and a caption in each row, or an image and a list of captions.
    """
    click.get_current_context().exit(_retrieval(dataset, values))


def _retrieval(dataset: Path, values: dict[str, Any]) -> int:
    import numpy as np

    from annotary.evaluation.labelled import CaptionedImages
    from annotary.evaluation.retrieval import measure_retrieval
    from annotary.tasks.encoding import dual_encoder

    check_replaceable(values["output"], "evaluate retrieval")
    pairs = CaptionedImages(
        dataset,
        folder=values["images"],
        image_column=values["image_column"],
        caption_column=values["caption_column"],
        split=values["split"],
    )
    found = loaded(values["model"], made(RuntimeOptions, values))
    model = dual_encoder(found.model)
    work: ImageVectors[int] = ImageVectors(model, values)
    numbered = ((item, number) for number, item in enumerate(pairs.items()))
    blocks = list(work.blocks(numbered, lambda: pairs.images))
    if not blocks:
        raise NothingToDo(f"no image of {dataset} could be read{first_failure(work.failures)}")
    images = np.concatenate([block.vectors for block in blocks])
    # Captions of images that could not be read are left out; the others keep their order.
    kept = {number: i for i, number in enumerate(n for block in blocks for n in block.known)}
    captions = [
        text for text, owner in zip(pairs.captions, pairs.owners, strict=True) if owner in kept
    ]
    owners = integers([kept[owner] for owner in pairs.owners if owner in kept])
    texts = model.embed_texts(captions)
    result = measure_retrieval(images, texts.vectors, owners)
    report = {
        "command": "evaluate retrieval",
        "dataset": str(dataset),
        "model": model.card.id,
        "weights": found.weights,
        "images": len(images),
        "captions": len(captions),
        "captions_truncated": int(texts.is_truncated.sum()),
        "text_to_image": _of_direction(result.text_to_image),
        "image_to_text": _of_direction(result.image_to_text),
        "recall_sum": result.recall_sum,
        "failures": [failure.to_json() for failure in work.failures],
    }
    give(report, values, lambda: _show_retrieval(report))
    work.tell_failures()
    return 1 if work.failures else 0


def _of_direction(direction: Direction) -> dict[str, Any]:
    return {
        "queries": len(direction.ranks),
        "candidates": direction.candidates,
        **{f"recall_at_{depth}": value for depth, value in direction.recalls.items()},
        "recall_at_1_interval": list(direction.interval(1)),
        "median_rank": direction.median_rank,
        "mean_reciprocal_rank": direction.mean_reciprocal_rank,
    }


def _show_retrieval(report: Mapping[str, Any]) -> None:
    from annotary.cli._output import one_line

    click.echo(
        f"{one_line(report['dataset'])}: {report['images']:,} images, {report['captions']:,} captions,"
        f" {report['model']}\n"
    )
    rows = [("", "R@1", "R@5", "R@10", "median rank", "mean reciprocal rank")]
    for key, name in (
        ("text_to_image", "images by caption"),
        ("image_to_text", "captions by image"),
    ):
        one = report[key]
        first, five, ten = (percent(one[f"recall_at_{depth}"]) for depth in (1, 5, 10))
        rank = f"{one['median_rank']:g}", f"{one['mean_reciprocal_rank']:.3f}"
        rows.append((name, first, five, ten, *rank))
    click.echo(table(rows, numbers=[1, 2, 3, 4, 5]))
