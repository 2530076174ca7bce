"""Measures the finished model on held-aside images, and writes the numbers into the model's page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.evaluation.tagging import (
    TagCounts,
    average_precision,
    calibration_error,
    five_tag_protocol,
)
from recipes.starter import features
from recipes.starter.heads import Labels
from recipes.starter.tables import Example, Vocabulary

Floats = npt.NDArray[np.float64]

SOURCES = {
    "Corel5k": ("corel",),
    "Flickr8k": ("flickr",),
    "COCO": ("coco",),
    "drawings": ("emoji", "clipart"),
}
BEGIN, END = "<!-- numbers: written by the recipe -->", "<!-- end of numbers -->"
_RUNS = 40


def measure(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    labels: Labels,
    scores: Floats,
    thresholds: dict[str, Floats],
) -> dict[str, Any]:
    """Return the numbers of the card, all on held-aside images.

    Args:
        examples: All images.
        vocabulary: The tags.
        labels: Of all images.
        scores: ``[n, tags]`` of all images.
        thresholds: Preset name to thresholds ``[tags]``.
    """
    held = np.array([example.is_held_aside for example in examples])
    plain = held & np.array([example.treatment == "none" for example in examples])
    source = np.array([example.source for example in examples])
    words = corel_words(vocabulary)
    corel = plain & (source == "corel")
    numbers: dict[str, Any] = {
        "tags": len(vocabulary.names),
        "learned_tags": int(vocabulary.is_learned().sum()),
        "training_images": int((~held).sum()),
        "held_aside_images": int(held.sum()),
        "corel5k": corel_protocol(scores[corel][:, words], labels.targets[corel][:, words]),
    }
    is_style = np.array([name in vocabulary.styles for name in vocabulary.names])
    groups = {name: plain & np.isin(source, kinds) for name, kinds in SOURCES.items()}
    groups = {"all, without styles": plain, **groups}
    numbers["sources"] = {
        name: _quality(scores, labels, thresholds, rows, ~is_style) for name, rows in groups.items()
    }
    numbers["sources"]["styles"] = _quality(scores, labels, thresholds, held, is_style)
    return numbers


def corel_words(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """Numbers of the tags that are words of Corel5k, verbatim."""
    number = {name: index for index, name in enumerate(vocabulary.names)}
    return np.array(sorted(number[word] for word in vocabulary.words["corel"] if word in number))


def corel_protocol(scores: Floats, targets: npt.NDArray[Any]) -> dict[str, Any]:
    """Five tags per image; mean per-word precision and recall over the words that occur."""
    result = five_tag_protocol(scores, targets > 0)
    occurs = (targets > 0).any(0)
    precisions = average_precision(scores[:, occurs], targets[:, occurs] > 0)
    return {
        "precision": result.precision,
        "recall": result.recall,
        "f1": result.f1,
        "words_recalled": result.words_recalled,
        "words": result.words,
        "share_recalled": result.words_recalled / max(1, result.words),
        "mean_average_precision": float(np.mean(precisions)),
    }


def check_model(folder: Path, examples: Sequence[Example], scores: Floats) -> dict[str, Any]:
    """Run the shipped file: the largest difference to the scores computed here, its size and its speed."""
    start = time.perf_counter()
    session = features.open_session(folder / "model.onnx")
    load_seconds = time.perf_counter() - start
    worst = 0.0
    pixels = np.zeros((features.SIZE, features.SIZE, 3), np.uint8)
    for row in np.linspace(0, len(examples) - 1, 64).astype(int):
        example = examples[row]
        pixels = features.view(
            features.treat(features.load(example.path), example.treatment), features.VIEWS["whole"]
        )
        found = session.run(["scores"], {"image": pixels[None]})[0][0]
        worst = max(worst, float(np.abs(found - scores[row]).max()))
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        session.run(["scores"], {"image": pixels[None]})
        times.append(time.perf_counter() - start)
    return {
        "largest_difference": worst,
        "megabytes": round((folder / "model.onnx").stat().st_size / 1e6, 2),
        "load_seconds": round(load_seconds, 3),
        "milliseconds_one_thread": round(float(np.median(times)) * 1000, 1),
    }


def write_page(page: Path, numbers: dict[str, Any]) -> None:
    """Replace the tagger's part of the page."""
    replace_part(page, BEGIN, END, tables(numbers))


def replace_part(page: Path, begin: str, end: str, content: str) -> None:
    """Replace the part of a page between two marks; a page without them is left alone."""
    if not page.is_file():
        return
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        return
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    page.write_text(f"{before}{begin}\n\n{content}\n{end}{after}", encoding="utf-8")


def tables(numbers: dict[str, Any]) -> str:
    """The numbers as markdown."""
    corel = numbers["corel5k"]
    lines = [
        "| Corel5k, held aside, five tags per image | |",
        "|---|---|",
        f"| mean per-word precision | {corel['precision']:.3f} |",
        f"| mean per-word recall | {corel['recall']:.3f} |",
        f"| F1 of the two means | {corel['f1']:.3f} |",
        f"| words recalled (N+) | {corel['words_recalled']} of {corel['words']} ({corel['share_recalled']:.3f}) |",
        f"| mAP | {corel['mean_average_precision']:.3f} |",
        "",
        (
            "| held aside | images | tags | mAP | macro F1 | micro F1 | precision | recall | tags given "
            "| calibration error |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in numbers["sources"].items():
        best = row["balanced"]
        lines.append(
            f"| {name} | {row['images']:,} | {row['tags']} | {row['mean_average_precision']:.3f} "
            f"| {best['macro_f1']:.3f} | {best['micro_f1']:.3f} | {best['precision']:.3f} "
            f"| {best['recall']:.3f} | {best['tags_given']:.1f} | {row['calibration_error']:.4f} |"
        )
    total = numbers["sources"]["all, without styles"]
    lines += [
        "",
        "| preset | macro F1 | micro F1 | micro precision | micro recall | tags given |",
        "|---|---|---|---|---|---|",
    ]
    for preset in ("precise", "balanced", "broad"):
        row = total[preset]
        lines.append(
            f"| {preset} | {row['macro_f1']:.3f} | {row['micro_f1']:.3f} | {row['precision']:.3f} "
            f"| {row['recall']:.3f} | {row['tags_given']:.1f} |"
        )
    lines += [
        "",
        "| file | |",
        "|---|---|",
        f"| size of `model.onnx` | {numbers['megabytes']:.1f} MB |",
        f"| time per image, one thread | {numbers['milliseconds_one_thread']:.1f} ms |",
        f"| time to load | {numbers['load_seconds']:.2f} s |",
        f"| tags | {numbers['tags']:,}, of which {numbers['learned_tags']} have a learned head |",
        f"| images | {numbers['training_images']:,} to train, {numbers['held_aside_images']:,} held aside |",
        f"| the whole recipe | {numbers['seconds'] / 60:.0f} minutes |",
        "",
    ]
    return "\n".join(lines)


def _quality(
    scores: Floats,
    labels: Labels,
    thresholds: dict[str, Floats],
    rows: npt.NDArray[np.bool_],
    columns: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """Ranking, calibration and the presets on some images and tags, over the tags that occur there."""
    truth, known = (labels.targets[rows] > 0), labels.known[rows]
    occurs = columns & (truth & known).any(0)
    truth, known, values = truth[:, occurs], known[:, occurs], scores[rows][:, occurs]
    found: dict[str, Any] = {
        "images": int(rows.sum()),
        "tags": int(occurs.sum()),
        "mean_average_precision": float(np.mean(average_precision(values, truth, known))),
        "calibration_error": float(calibration_error(values, truth, known)),
    }
    for preset, limits in thresholds.items():
        counts = TagCounts(int(occurs.sum()))
        counts.update(values >= limits[occurs], truth, known)
        micro = counts.micro()
        found[preset] = {
            "macro_f1": float(counts.macro().f1),
            "micro_f1": float(micro.f1),
            "precision": float(micro.precision),
            "recall": float(micro.recall),
            "tags_given": float((scores[rows][:, columns] >= limits[columns]).sum(1).mean()),
        }
    return found
