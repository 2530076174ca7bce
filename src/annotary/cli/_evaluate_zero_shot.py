"""`annotary evaluate zero-shot`: how well a model classifies images that somebody has labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
    templates_of,
)
from annotary.cli._options import SectionedCommand, made
from annotary.errors import NothingToDo, UsageError
from annotary.runtime import RuntimeOptions

if TYPE_CHECKING:
    from annotary.cards import Card
    from annotary.evaluation.labelled import Labelled
    from annotary.evaluation.protocols import Protocol
    from annotary.evaluation.zero_shot import Ranks, ZeroShotResult
    from annotary.records import Failure, Item
    from annotary.tasks.calibration import Calibration
    from annotary.tasks.label_sets import LabelClass

MOST_CLASSES = 10
"""Classes, and pairs that are confused, that are shown."""

TOP = 5
"""Classes of an image in a file of predictions."""

_NO_WORD = re.compile(r"n\d{8}|\d+")
"""Numbers, and those of WordNet, which say nothing to a model."""

_text_cache = click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)


@click.command("zero-shot", cls=SectionedCommand, short_help="Classify labelled images.")
@click.argument("dataset", type=FILE, metavar="DATASET")
@model_option
@click.option(
    "--classes",
    type=FILE,
    metavar="FILE",
    help="What classes are called: a list of names, or a table of classes and one or several names.",
)
@click.option(
    "--template",
    multiple=True,
    metavar="TEXT",
    help='What a name is put in, {} being its place: "a photo of a {}." May be given several times.',
)
@click.option(
    "--templates",
    metavar="imagenet|FILE",
    help="The 80 templates of ImageNet, or those of a file, one on each line.",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="Report what is usual on a dataset: imagenet, cifar10, pets, kinetics700, ...",
)
@click.option(
    "--classnorm",
    is_flag=True,
    help="Standardise vectors over the classes first, which some protocols do.",
)
@click.option(
    "--calibration",
    type=FILE,
    metavar="FILE",
    help="A file of `annotary calibrate`: how sure the model is with it.",
)
@image_column_option
@click.option("--label-column", metavar="NAME", help="Column of a table that holds the labels.")
@output_option
@click.option(
    "--save-predictions",
    type=FILE,
    metavar="FILE",
    help="Write the best classes of every image there, as JSON Lines.",
)
@_text_cache
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Classify the images of DATASET zero-shot and count how many are right.

    DATASET is a folder with a folder for each class, or a table (.csv, .tsv, .jsonl, .parquet) with an image and a
    label in each row. The protocol is that of CLIP: the vector of a class is the mean over all templates and names.
    """
    click.get_current_context().exit(_zero_shot(dataset, values))


def _zero_shot(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.evaluation.class_names import named_classes
    from annotary.evaluation.labelled import LabelledImages
    from annotary.evaluation.protocols import protocol_named
    from annotary.evaluation.zero_shot import ZeroShotClassifier, ZeroShotScore
    from annotary.tasks.class_vectors import class_vectors
    from annotary.tasks.encoding import dual_encoder

    check_replaceable(values["output"], "evaluate zero-shot")
    templates = templates_of(values)
    protocol = None if values["protocol"] is None else protocol_named(values["protocol"])
    images = LabelledImages(
        dataset, image_column=values["image_column"], label_column=values["label_column"]
    )
    classes, names = named_classes(images.classes, values["classes"], templates)
    _check_zero_shot(values, protocol, len(classes))
    if values["classes"] is None and all(_NO_WORD.fullmatch(name) for name in images.classes):
        tell(f"classes are called {images.classes[0]} and so on; say their names with --classes")
    if images.unlabelled:
        tell(f"images without a label, which are left out: {images.unlabelled:,}")
    found = loaded(values["model"], made(RuntimeOptions, values))
    model = dual_encoder(found.model)
    cache = found.text_cache() if values["text_cache"] else None
    of_classes = class_vectors(model, classes, cache)
    _tell_truncated(model.card.id, classes, of_classes.is_truncated)
    classifier = ZeroShotClassifier(
        model,
        of_classes.vectors,
        normalises_classes=values["classnorm"],
        calibration=_calibration(values["calibration"], model.card),
    )
    score, place = ZeroShotScore(len(classes)), {one.name: i for i, one in enumerate(classes)}
    work: ImageVectors[int] = ImageVectors(model, values)
    with ExitStack() as open_files:
        predictions = _open_predictions(values["save_predictions"], open_files)
        for block in work.blocks(_with_targets(images, place), images.count):
            scores, targets = classifier.scores(block.vectors), integers(block.known)
            ranks = score.update(scores, targets, classifier.confidences(scores))
            if predictions is not None:
                _write_predictions(predictions, block.images, targets, ranks, scores, classes)
        result = score.result()
        if not result.images:
            raise NothingToDo(
                f"no image of {dataset} could be classified{first_failure(work.failures)}"
            )
    report = {
        "command": "evaluate zero-shot",
        "dataset": str(dataset),
        "model": model.card.id,
        "weights": found.weights,
        "classnorm": values["classnorm"],
        "calibration": None if values["calibration"] is None else str(values["calibration"]),
        "templates": len(templates),
        "unlabelled": images.unlabelled,
        **_of_protocol(protocol, result, len(templates)),
        **_of_result(result, classes, names),
        "failures": [failure.to_json() for failure in work.failures],
    }
    give(report, values, lambda: _show_zero_shot(report, protocol))
    work.tell_failures()
    return 1 if work.failures else 0


def _check_zero_shot(values: Mapping[str, Any], protocol: Protocol | None, classes: int) -> None:
    """Refuse what could not be measured at the end.

    Raises:
        UsageError: Options do not go together, or there are not the right number of classes.
    """
    if values["classnorm"] and classes < 2:
        raise UsageError("--classnorm needs two or more classes")
    if values["classnorm"] and values["calibration"] is not None:
        raise UsageError("--classnorm gives no probabilities, so leave out --calibration")
    if protocol is not None and not protocol.suits(classes):
        raise UsageError(f"--protocol {protocol.name} cannot be of {classes} classes")
    if values["output"] is not None and values["output"] == values["save_predictions"]:
        raise UsageError("--output and --save-predictions need a file each")


def _calibration(path: Path | None, card: Card) -> Calibration | None:
    """The calibration of a file.

    Raises:
        UsageError: It cannot be read, or is of other scores.
    """
    from annotary.tasks.calibration import read_calibration

    found = None if path is None else read_calibration(path)
    if found is not None and not f"{found.model}@".startswith(f"{card.name}@"):
        raise UsageError(f"--calibration is of {found.model}, but the model is {card.id}")
    if found is not None and found.multi_label:
        raise UsageError("--calibration was made with --multi-label, but here labels compete")
    return found


def _with_targets(
    images: Iterator[Labelled] | Any, place: Mapping[str, int]
) -> Iterator[tuple[Item | Failure, int]]:
    for item, (label,) in images:
        yield item, place[label]


def _tell_truncated(model: str, classes: Sequence[LabelClass], is_truncated: Any) -> None:
    from annotary.cli._output import tell

    cut = [one.name for one, is_cut in zip(classes, is_truncated, strict=True) if is_cut]
    if cut:
        named = ", ".join(cut[:5]) + (", ..." if len(cut) > 5 else "")
        tell(f"longer than {model} reads, so the end is left out: {named}")


def _open_predictions(path: Path | None, open_files: ExitStack) -> BinaryIO | None:
    """A file that takes the place of an earlier one when all has gone well.

    Raises:
        UsageError: Something else is there.
    """
    from annotary.sinks._atomic import replacing

    if path is None:
        return None
    if path.exists() and not _holds_predictions(path):
        raise UsageError(f"{path} is there already and holds no predictions")
    return open_files.enter_context(replacing(path))


def _holds_predictions(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    return not line or b'"predictions": [' in line


def _write_predictions(
    file: BinaryIO,
    images: Sequence[str],
    targets: Any,
    ranks: Ranks,
    scores: Any,
    classes: Sequence[LabelClass],
) -> None:
    import numpy as np

    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    for i, image in enumerate(images):
        predictions = [
            {"class": classes[int(k)].name, "score": round(float(scores[i, k]), 6)} for k in best[i]
        ]
        told = {
            "image": image,
            "class": classes[int(targets[i])].name,
            "rank": int(ranks.rank[i]),
            "predictions": predictions,
        }
        line = json.dumps(told, ensure_ascii=False) + "\n"
        file.write(line.encode("utf-8", "backslashreplace"))


def _of_protocol(
    protocol: Protocol | None, result: ZeroShotResult, templates: int
) -> dict[str, Any]:
    """What is usual on a dataset, and whether it was done so."""
    from annotary.cli._output import tell

    if protocol is None:
        return {}
    for what, is_now, usual in (
        ("templates", templates, protocol.templates),
        ("classes", len(result.class_images), protocol.classes),
    ):
        if is_now != usual:
            tell(
                f"published numbers on {protocol.name} are of {usual} {what}; here there are {is_now}"
            )
    value = protocol.value(result)
    if value is None:
        raise UsageError(f"--protocol {protocol.name}: a class has no images")
    return {"protocol": {"name": protocol.name, "metric": protocol.metric, "value": value}}


def _of_result(
    result: ZeroShotResult, classes: Sequence[LabelClass], names: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    per_class = [
        {
            "class": one.name,
            "names": list(names[one.name]),
            "images": int(images),
            "right": int(right),
            "accuracy": int(right) / int(images) if images else None,
        }
        for one, images, right in zip(classes, result.class_images, result.class_right, strict=True)
    ]
    confusions = [
        {
            "class": classes[pair.true].name,
            "taken_for": classes[pair.taken_for].name,
            "images": pair.images,
            "share": pair.share,
        }
        for pair in result.confusions[:100]
    ]
    return {
        "classes": len(classes),
        "images": result.images,
        "top1": result.top1,
        "top1_interval": list(result.top1_interval),
        "top5": result.top5,
        "top1_and_top5": result.top1_and_top5,
        "mean_per_class": result.mean_per_class,
        "roc_auc": result.roc_auc,
        "mean_confidence": result.mean_confidence,
        "calibration_error": result.calibration_error,
        "per_class": per_class,
        "confusions": confusions,
    }


def _show_zero_shot(report: Mapping[str, Any], protocol: Protocol | None) -> None:
    from annotary.cli._output import one_line
    from annotary.evaluation.protocols import METRICS

    templates = report["templates"]
    click.echo(
        f"{one_line(report['dataset'])}: {report['images']:,} images of {report['classes']:,} classes,"
        f" {templates} template{'s' * (templates > 1)}, {report['model']}\n"
    )
    low, high = report["top1_interval"]
    rows = [("top-1", percent(report["top1"]), f"{low:.1%} to {high:.1%} with 95 % certainty")]
    for key in ("top5", "mean_per_class", "roc_auc", "mean_confidence", "calibration_error"):
        if report[key] is not None:
            name = {"roc_auc": "ROC-AUC", "top5": "top-5"}.get(key, key.replace("_", " "))
            rows.append((name, percent(report[key]), ""))
    if protocol is not None:
        told = f"what is reported on {protocol.name}: {METRICS[protocol.metric]}"
        rows.append((protocol.name, percent(report["protocol"]["value"]), told))
    click.echo(table(rows, numbers=[1]))
    _show_classes(report)


def _show_classes(report: Mapping[str, Any]) -> None:
    from annotary.cli._output import one_line

    seen = [one for one in report["per_class"] if one["images"]]
    worst = sorted(seen, key=lambda one: one["accuracy"])[:MOST_CLASSES]
    few = len(seen) <= MOST_CLASSES
    rows = [("class" if few else "worst classes", "images", "right")]
    for one in seen if few else worst:
        called = one_line(", ".join(one["names"]))
        name = one_line(one["class"])
        told = name if called == name.replace("_", " ") else f"{name} ({called})"
        rows.append((told, f"{one['images']:,}", percent(one["accuracy"])))
    click.echo("\n" + table(rows, numbers=[1, 2]))
    if report["confusions"]:
        rows = [("most confused", "images", "of the class")]
        for pair in report["confusions"][:MOST_CLASSES]:
            told = one_line(f"{pair['class']} taken for {pair['taken_for']}")
            rows.append((told, f"{pair['images']:,}", percent(pair["share"])))
        click.echo("\n" + table(rows, numbers=[1, 2]))
