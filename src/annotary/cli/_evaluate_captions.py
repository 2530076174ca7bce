"""`annotary evaluate captions`: how near captions are to those of people, and how well they fit their images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from annotary.cli._annotating import loaded
from annotary.cli._evaluating import FILE, give, image_column_option, integers, output_option
from annotary.cli._measuring import (
    ImageVectors,
    check_replaceable,
    measuring_options,
    report_options,
    table,
)
from annotary.cli._measuring_records import annotated
from annotary.cli._options import SectionedCommand, given, made, options_of
from annotary.cli._output import one_line, tell
from annotary.errors import NothingToDo, UsageError
from annotary.runtime import RuntimeOptions
from annotary.tasks.captioning import CaptioningOptions

if TYPE_CHECKING:
    from annotary.evaluation.caption_files import References
    from annotary.evaluation.caption_pairs import CaptionPairs
    from annotary.evaluation.captions import CaptionResult
    from annotary.records import Failure

Floats = npt.NDArray[np.float64]

DEFAULT_SCORER = "starter"
"""The model that says how well captions fit, where the images are there."""

MOST_TOLD = 5
"""Failures that are told one by one."""

ROUNDS = 1000
"""Samples behind an interval."""

_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "cider": "CIDEr",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
    "mismatched_clip_score": "CLIPScore of another image",
}


@click.command("captions", cls=SectionedCommand, short_help="Compare captions with people's.")
@click.argument("dataset", type=FILE, metavar="TABLE")
@click.option(
    "--predictions",
    type=FILE,
    metavar="FILE",
    help="What was written: an output of annotary, COCO results or captions, or a table.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Write the captions now: a name of `annotary models`, hf:OWNER/NAME or dir:PATH.",
)
@click.option(
    "--images",
    type=FILE,
    metavar="FOLDER",
    help="Where paths start; where the table is otherwise.",
)
@image_column_option
@click.option("--caption-column", metavar="NAME", help="Column of the table that holds captions.")
@click.option("--split", metavar="NAME", help="Take only rows whose column split says this.")
@click.option(
    "--scorer",
    metavar="NAME|none",
    help="The model of images and texts that says how well captions fit; starter, where the images are there.",
)
@click.option(
    "--judgements",
    metavar="COLUMN",
    help="Column with what people think of each caption, in numbers: how far do the metrics agree?",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the samples behind the intervals, and of captions that are drawn.",
)
@options_of(CaptioningOptions, without=("captions", "seed", "min_match"))
@output_option
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Compare captions with those that people wrote of the images of TABLE.

    TABLE (.csv, .tsv, .jsonl, .parquet) has an image and a caption in each row, or an image and a list of captions; the
    JSON of COCO captions does, too. With --judgements alone, TABLE holds the captions that people judged.
    """
    click.get_current_context().exit(_captions(dataset, values))


def _captions(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.evaluation.captions import measure_captions

    check_replaceable(values["output"], "evaluate captions")
    if values["predictions"] is not None and values["model"] is not None:
        raise UsageError("--predictions and --model are two ways to the same captions; choose one")
    told = [flag for flag in given(values, CaptioningOptions) if flag != "--seed"]
    if values["model"] is None and told:
        raise UsageError(f"{', '.join(told)}: only with --model, which writes captions")
    pairs, written_by = _pairs(dataset, values)
    result = None
    if pairs.references:
        result = measure_captions(pairs.captions, pairs.owners, pairs.references)
    scorer = _scorer_of(pairs, values)
    if result is None and scorer is None:
        raise UsageError("without references there is only --scorer, which needs the images")
    scored = _Scored(pairs, scorer, values) if scorer is not None else None
    failures = [*written_by.failures, *(scored.failures if scored is not None else [])]
    failures = list({failure.image: failure for failure in failures}.values())
    report = {
        "command": "evaluate captions",
        "dataset": str(dataset),
        **written_by.told,
        "images": len(pairs.images),
        "captions": len(pairs.captions),
        "references": sum(map(len, pairs.references)),
        "without_caption": pairs.missing,
        "unknown_images": pairs.unknown,
        "metrics": _metrics(result, values["seed"]),
        "scorer": None if scored is None else scored.told,
        "judgements": _judgements(pairs, result, scored, values["judgements"]),
        "failures": [failure.to_json() for failure in failures],
    }
    give(report, values, lambda: _show(report))
    _tell(report, pairs)
    for failure in failures[:MOST_TOLD]:
        tell(f"{failure.image}: {failure.message}")
    if failures:
        tell(f"images that could not be read, of all: {len(failures):,}")
    return 1 if failures or pairs.missing else 0


class _Written:
    """Who wrote the captions.

    Attributes:
        told: What a report says of it.
        failures: Images that could not be read for it.
    """

    def __init__(self, told: Mapping[str, Any], failures: Sequence[Failure] = ()) -> None:
        self.told = dict(told)
        self.failures = list(failures)


def _pairs(dataset: Path, values: Mapping[str, Any]) -> tuple[CaptionPairs, _Written]:
    """Captions and references, as the options say.

    Raises:
        UsageError: Nothing says which captions are measured, or files make no sense.
    """
    from annotary.evaluation.caption_files import open_references, read_written
    from annotary.evaluation.caption_pairs import judged_captions, pair_captions

    column, predictions = values["judgements"], values["predictions"]
    folder = values["images"]
    if predictions is None and values["model"] is None:
        if column is None:
            raise UsageError("say which captions are measured: --predictions FILE or --model NAME")
        if values["split"] is not None:
            raise UsageError("--split is for references, and there are none")
        start = dataset.parent if folder is None else folder
        written = read_written(
            dataset,
            image_column=values["image_column"],
            caption_column=values["caption_column"],
            judgements=column,
        )
        return judged_captions(written, os.fspath(start)), _Written({"predictions": str(dataset)})
    references = open_references(
        dataset,
        folder=folder,
        image_column=values["image_column"],
        caption_column=values["caption_column"],
        split=values["split"],
    )
    if predictions is None:
        if column is not None:
            raise UsageError("--judgements are of captions in a table; leave out --model")
        return _written_now(references, values)
    written = read_written(predictions, judgements=column)
    pairs = pair_captions(references, written, are_judged=column is not None)
    return pairs, _Written({"predictions": str(predictions)})


def _written_now(
    references: References, values: Mapping[str, Any]
) -> tuple[CaptionPairs, _Written]:
    """Captions that a model writes now, beside the references.

    Raises:
        NothingToDo: No image could be read.
        UsageError: The model writes no captions.
    """
    from annotary.evaluation.caption_files import WrittenCaption
    from annotary.evaluation.caption_pairs import pair_captions
    from annotary.tasks.captioning import Captioning
    from annotary.tasks.writing import captioner

    options = made(CaptioningOptions, values)
    found = loaded(values["model"], made(RuntimeOptions, values))
    task = Captioning(captioner(found.model), options.decoding(), options.prompt)
    items, count = references.items(), references.images
    records, failures = annotated(items, count, task, "captioning", values)
    if not records:
        raise NothingToDo(f"no image could be read; {failures[0].image}: {failures[0].message}")
    written = [
        WrittenCaption(record.image, record.captions[0].text if record.captions else "")
        for record in records
    ]
    told = {"model": task.source, "weights": found.weights, "settings": task.settings()}
    pairs = pair_captions(references, written)
    failed = {failure.image for failure in failures}
    missing = [name for name in pairs.missing if name not in failed]
    return replace(pairs, missing=missing), _Written(told, failures)


def _scorer_of(pairs: CaptionPairs, values: Mapping[str, Any]) -> str | None:
    """The name of the model that says how well captions fit; None for none."""
    from annotary.records import Item

    name: str | None = values["scorer"]
    if name is not None:
        return None if name == "none" else name
    first = pairs.images[0]
    is_there = isinstance(first, Item) and (first.path is None or first.path.is_file())
    if not is_there:
        where = "" if values["images"] is not None else "; --images says where they start"
        tell(f"{first.image} is not there, so no model says how well captions fit{where}")
    return DEFAULT_SCORER if is_there else None


class _Scored:
    """How well captions fit their images, by a model.

    Args:
        pairs: The captions.
        name: Of the model.
        values: The values of the options.

    Attributes:
        failures: Images that could not be read.
        values: Name of a metric to float64[captions]; not a number where the image could not be read.
        told: What a report says of it.
    """

    def __init__(self, pairs: CaptionPairs, name: str, values: Mapping[str, Any]) -> None:
        from annotary.evaluation.reference_free import (
            PROMPT,
            clip_scores,
            mismatched_scores,
            ref_clip_scores,
        )
        from annotary.tasks.encoding import dual_encoder

        found = loaded(name, made(RuntimeOptions, values))
        model = dual_encoder(found.model)
        work: ImageVectors[int] = ImageVectors(model, values)
        numbered = ((item, number) for number, item in enumerate(pairs.images))
        blocks = list(work.blocks(numbered, lambda: len(pairs.images)))
        self.failures = work.failures
        if not blocks:
            first = self.failures[0]
            raise NothingToDo(f"no image could be read; {first.image}: {first.message}")
        images = np.concatenate([block.vectors for block in blocks])
        row = {number: i for i, number in enumerate(n for block in blocks for n in block.known)}
        places = [place for place, owner in enumerate(pairs.owners) if owner in row]
        owners = integers([pairs.owners[place] for place in places])
        of_images = images[[row[owner] for owner in owners]]
        texts = model.embed_texts([PROMPT + pairs.captions[place] for place in places])
        is_empty = np.array([not pairs.captions[place] for place in places])
        scores = np.where(is_empty, 0.0, clip_scores(of_images, texts.vectors))
        self.values = {"clip_score": self._spread(scores, places, len(pairs.captions))}
        if pairs.references:
            start = np.cumsum([0, *map(len, pairs.references)])
            said = model.embed_texts([PROMPT + one for own in pairs.references for one in own])
            owned = [range(start[owner], start[owner + 1]) for owner in owners]
            with_references = ref_clip_scores(scores, texts.vectors, said.vectors, owned)
            self.values["ref_clip_score"] = self._spread(
                with_references, places, len(pairs.captions)
            )
        mismatched = mismatched_scores(of_images, texts.vectors, owners)
        self.told: dict[str, Any] = {
            "model": model.card.id,
            "weights": found.weights,
            "captions": len(places),
            "captions_truncated": int(texts.is_truncated.sum()),
            **{
                key: _mean(value[places], owners, values["seed"])
                for key, value in self.values.items()
            },
            "mismatched_clip_score": _mean(mismatched, owners, values["seed"]),
        }

    @staticmethod
    def _spread(scores: Floats, places: Sequence[int], count: int) -> Floats:
        spread = np.full(count, np.nan)
        spread[list(places)] = scores
        return spread


def _mean(scores: Floats, owners: npt.NDArray[np.int64], seed: int) -> dict[str, Any] | None:
    """A mean, and where it lies; None of nothing."""
    from annotary.evaluation.resampling import interval, resampled_sums

    if not len(scores):
        return None
    columns = np.stack([scores, np.ones(len(scores))], axis=1)
    sums = resampled_sums(columns, owners, seed=seed, rounds=ROUNDS)
    return {"value": float(scores.mean()), "interval": list(interval(sums[:, 0] / sums[:, 1]))}


def _metrics(result: CaptionResult | None, seed: int) -> dict[str, Any] | None:
    if result is None:
        return None
    intervals = result.intervals(seed=seed, rounds=ROUNDS)
    found: dict[str, Any] = {}
    for name, value in result.metrics().items():
        around = intervals[name]
        found[name] = None
        if value is not None and around is not None:
            found[name] = {"value": value, "interval": list(around)}
    return found


def _judgements(
    pairs: CaptionPairs, result: CaptionResult | None, scored: _Scored | None, column: str | None
) -> dict[str, Any] | None:
    """How far each metric agrees with what people think; each judgement counts by itself."""
    from annotary.evaluation.resampling import correlation

    if column is None:
        return None
    judged = [(row, one) for row, own in enumerate(pairs.judgements) for one in own]
    if not judged:
        raise UsageError(f"--judgements: no row has a number in column {column!r}")
    rows = integers([row for row, _ in judged])
    numbers = np.array([one for _, one in judged], dtype=np.float64)
    metrics = dict(result.of_each()) if result is not None else {}
    found = {}
    for name, values in {**metrics, **(scored.values if scored is not None else {})}.items():
        is_known = ~np.isnan(values[rows])
        if is_known.any():
            found[name] = correlation(values[rows][is_known], numbers[is_known])._asdict()
    return {"column": column, "captions": len(pairs.captions), "correlations": found}


def _tell(report: Mapping[str, Any], pairs: CaptionPairs) -> None:
    """What was left out, on standard error."""
    missing = len(pairs.missing)
    if missing:
        tell(
            f"images without a caption, which count nowhere: {missing:,}, such as {pairs.missing[0]}"
        )
    if pairs.unknown:
        tell(f"captions of images that the references do not have, left out: {pairs.unknown:,}")
    if report["scorer"] is not None and report["scorer"]["captions_truncated"]:
        cut = report["scorer"]["captions_truncated"]
        tell(f"captions longer than {report['scorer']['model']} reads, to their end: {cut:,}")


def _show(report: Mapping[str, Any]) -> None:
    told = f"{report['images']:,} images, {report['captions']:,} captions"
    against = f", {report['references']:,} references" if report["references"] else ""
    by = report.get("model") or report["predictions"]
    click.echo(one_line(f"{report['dataset']}: {told}{against}, {by}") + "\n")
    rows = [("", "", "with 95 % certainty")]
    for name, one in (report["metrics"] or {}).items():
        rows.append(_row(name, one, "what papers call CIDEr" if name == "cider_d" else ""))
    scorer = report["scorer"] or {}
    rows += [
        _row(name, scorer[name], f"by {scorer['model']}")
        for name in ("clip_score", "ref_clip_score", "mismatched_clip_score")
        if scorer.get(name) is not None
    ]
    click.echo(table(rows, numbers=[1]))
    if report["judgements"] is not None:
        click.echo("\n" + _correlations(report["judgements"]))


def _row(name: str, one: Mapping[str, Any] | None, told: str) -> tuple[str, str, str]:
    name = _NAMES[name]
    if one is None:
        return name, "-", "is not defined for one image"
    low, high = one["interval"]
    return name, f"{one['value']:.3f}", f"{low:.3f} to {high:.3f}" + (f"; {told}" if told else "")


def _correlations(judgements: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = [
        (f"agreement with {judgements['column']}", "tau-b", "tau-c", "Spearman", "judgements")
    ]
    for name, one in judgements["correlations"].items():
        cells = [one[key] for key in ("kendall_b", "kendall_c", "spearman")]
        shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        rows.append((_NAMES[name], *shown, f"{one['pairs']:,}"))
    return table(rows, numbers=[1, 2, 3, 4])
