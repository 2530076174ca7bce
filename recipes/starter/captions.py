"""Trains a decoder of captions on the starter's image vectors, and measures it beside what chance and names give.

``python -m recipes.starter.captions --data ../shared/data --work build/starter``. The starter does not ship it: what it
writes of photos unlike those that it was trained on is seldom right (see the page). All that it makes is in the folder
`captions` of the work folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from annotary.cards import read_card
from annotary.evaluation.captions import measure_captions
from annotary.models import starter
from annotary.models._generation import Decoding
from annotary.runtime import RuntimeOptions
from annotary.training.captioner import (
    CaptionDecoder,
    CaptionerOptions,
    CaptionTable,
    Words,
    mean_loss,
    split_words,
    train_captioner,
)
from recipes.starter import caption_export, caption_inputs, features
from recipes.starter.caption_inputs import Photo
from recipes.starter.caption_writer import CaptionWriter

Floats = npt.NDArray[np.float32]
Say = Callable[[str], None]

INPUT = "image_embeds"
"""What the decoder sees; see the page for what else was tried."""

LEAST = 3
"""A word is known when the training's captions have it so often."""

OPTIONS = CaptionerOptions(
    width=128,
    heads=4,
    longest=20,
    dropout=0.15,
    input_dropout=0.3,
    word_dropout=0.05,
    steps=1200,
    batch_size=64,
    learning_rate=2e-3,
)
"""Chosen on Flickr8k dev, see the page."""

DECODING = Decoding(beams=5)
"""How captions are written when they are measured."""

SHIPPED = Path("src/annotary/weights/starter")

_SEED = 0
_TAGS = 3

_PLAIN = frozenset(
    [
        *(
            "a",
            "an",
            "the",
            "of",
            "in",
            "on",
            "at",
            "to",
            "and",
            "with",
            "is",
            "are",
            "be",
            "being",
            "been",
        ),
        *(
            "that",
            "this",
            "it",
            "its",
            "his",
            "her",
            "their",
            "there",
            "while",
            "as",
            "by",
            "for",
            "from",
        ),
        *(
            "into",
            "onto",
            "up",
            "down",
            "out",
            "over",
            "under",
            "near",
            "next",
            "front",
            "behind",
            "off",
        ),
        *(
            "through",
            "across",
            "along",
            "who",
            "which",
            "has",
            "have",
            "having",
            "other",
            "another",
            "each",
        ),
        *(
            "some",
            "one",
            "two",
            "three",
            "four",
            "five",
            "very",
            "he",
            "she",
            "they",
            "them",
            "him",
        ),
    ]
)
"""Words that say nothing of what is seen, and numbers, which the starter cannot count."""


@dataclass(frozen=True)
class Captioner:
    """The decoder, and what it was made from."""

    decoder: CaptionDecoder
    words: Words
    standard: tuple[Tensor, float]
    """What is subtracted from an image's vector ``[d]``, and what it is divided by."""

    loss: float
    """Mean negative log-probability of a word of Flickr8k dev."""


def make(
    photos: Sequence[Photo], seen: dict[str, dict[str, Floats]], work: Path, say: Say
) -> Captioner:
    """Train the decoder; an interrupted run goes on.

    Args:
        photos: All photos with captions.
        seen: View to tensor to its numbers, of all photos.
        work: Folder for the run.
        say: Called with a line of text.
    """
    words = Words.of((text for p in photos if not p.is_held_aside for text in p.captions), LEAST)
    known = torch.from_numpy(seen["whole"][INPUT][[not photo.is_held_aside for photo in photos]])
    mean = known.mean(0)
    standard = (mean, float((known - mean).std()))
    table = _table(photos, seen, words, standard, lambda photo: not photo.is_held_aside)
    dev = _table(photos, seen, words, standard, lambda p: p.is_held_aside and p.source == "flickr")
    run = hashlib.sha256(json.dumps(asdict(OPTIONS), sort_keys=True).encode()).hexdigest()[:12]
    say(f"captions: {len(table.captions):,} photos, {len(words.names):,} words")
    checkpoint = work / f"run_{run}.pt"

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            say(f"step {step} of {OPTIONS.steps}: loss {loss:.3f}")

    decoder = train_captioner(table, words, OPTIONS, checkpoint, report)
    return Captioner(decoder, words, standard, mean_loss(decoder, dev))


def _table(
    photos: Sequence[Photo],
    seen: dict[str, dict[str, Floats]],
    words: Words,
    standard: tuple[Tensor, float],
    is_wanted: Callable[[Photo], bool],
) -> CaptionTable:
    mean, scale = standard
    rows = [row for row, photo in enumerate(photos) if is_wanted(photo)]
    images = torch.from_numpy(np.stack([seen[view][INPUT][rows] for view in features.VIEWS]))
    images = ((images - mean) / scale).half()
    captions = [
        [words.encode(text, OPTIONS.longest) for text in photos[row].captions] for row in rows
    ]
    return CaptionTable(images[:, :, None], captions)


def measure(
    folder: Path, model: Path, photos: Sequence[Photo], seen: dict[str, dict[str, Floats]]
) -> dict[str, Any]:
    """Measure the decoder as ONNX beside chance, the nearest photo's caption, and tags, on photos held aside.

    Args:
        folder: Of the decoder.
        model: Folder of the starter.
        photos: All photos with captions.
        seen: As for `make`.
    """
    options = RuntimeOptions(threads=1, runtime="onnxruntime")
    writer = CaptionWriter(
        folder / caption_export.CAPTION_FILE, folder / caption_export.WORDS_FILE, options
    )
    judge = starter.load(read_card(model), model, options)
    known = [n for n, p in enumerate(photos) if not p.is_held_aside]
    vectors = seen["whole"][INPUT]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    random = np.random.default_rng(_SEED)
    every = [text for n in known for text in photos[n].captions]
    found: dict[str, Any] = {}
    for source in ("flickr", "coco"):
        rows = [n for n, p in enumerate(photos) if p.is_held_aside and p.source == source]
        nearest = (vectors[rows] @ vectors[known].T).argmax(1)
        drawn = random.integers(len(every), size=len(rows))
        start = time.perf_counter()
        written = write(writer, vectors[rows])
        milliseconds = (time.perf_counter() - start) / len(rows) * 1000
        texts = {
            "caption of another photo, drawn": [every[n] for n in drawn],
            "`a photo of` the three likeliest tags": _of_tags(model, seen["whole"]["scores"][rows]),
            "first caption of the nearest photo": [photos[known[n]].captions[0] for n in nearest],
            "decoder": written,
        }
        found[source] = {
            "milliseconds": milliseconds,
            "written": {photos[n].path.name: text for n, text in zip(rows, written, strict=True)},
        }
        for name, own in texts.items():
            cosines = (judge.embed_texts(own).vectors * vectors[rows]).sum(1)
            of_text = scores(own, [photos[n] for n in rows])
            found[source][name] = of_text | {"cosine": float(cosines.mean())}
    return found


def write(writer: CaptionWriter, vectors: Floats, decoding: Decoding = DECODING) -> list[str]:
    """The best caption of each image."""
    texts: list[str] = []
    for start in range(0, len(vectors), 16):
        some = vectors[start : start + 16]
        found = writer.write(
            some, [writer.beginning("", decoding)] * len(some), decoding, [b""] * len(some)
        )
        texts += [own[0].text for own in found]
    return texts


def scores(captions: Sequence[str], photos: Sequence[Photo]) -> dict[str, float]:
    """BLEU-4, ROUGE-L, CIDEr-D, and how many of the words that say something are people's words, too."""
    result = measure_captions(
        captions, list(range(len(photos))), [list(p.captions) for p in photos]
    )
    numbers = result.metrics()
    precision, recall = [], []
    for caption, photo in zip(captions, photos, strict=True):
        own = _content(caption)
        others = [_content(text) for text in photo.captions]
        said = set().union(*others)
        agreed = {word for word in said if sum(word in other for other in others) >= 2}
        if own:
            precision.append(len(own & said) / len(own))
        if agreed:
            recall.append(len(own & agreed) / len(agreed))
    return {
        **{name: float(numbers[name] or 0) for name in ("bleu_4", "rouge_l", "cider_d")},
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "different": len(set(captions)),
    }


def _content(text: str) -> set[str]:
    return set(split_words(text)) - _PLAIN


def _of_tags(folder: Path, scored: Floats) -> list[str]:
    with (folder / "tags.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [n for n, row in enumerate(rows) if row["category"] != "style"]
    texts = []
    for row in scored:
        best = sorted(places, key=lambda n: -row[n])[:_TAGS]
        names = [rows[n]["name"] for n in best]
        texts.append(f"a photo of {', '.join(names[:-1])} and {names[-1]}")
    return texts


def tables(numbers: dict[str, Any]) -> str:
    """The numbers as markdown."""
    shown = ("bleu_4", "rouge_l", "cider_d", "precision", "recall", "cosine")
    lines = []
    for source, title in (("flickr", "Flickr8k dev, 210 photos"), ("coco", "COCO, 20 photos")):
        lines += [
            f"| {title} | {' | '.join(shown)} | different |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in numbers[source].items():
            if isinstance(row, dict) and "bleu_4" in row:
                values = " | ".join(f"{row[key]:.3f}" for key in shown)
                lines.append(f"| {name} | {values} | {row['different']} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Train, write and measure."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.captions")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k and coco")
    parser.add_argument("--work", type=Path, default=Path("build/starter"), help="work folder")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the starter")
    arguments = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(features.THREADS)
    run(
        arguments.data,
        arguments.work,
        arguments.model,
        lambda line: print(f"[{time.perf_counter() - start:5.0f} s] {line}", flush=True),
    )
    return 0


def run(data: Path, work: Path, model: Path, say: Say) -> dict[str, Any]:
    """Make the decoder, and measure it.

    Args:
        data: Folder with flickr8k and coco.
        work: Folder for everything on the way.
        model: Folder of the starter.
        say: Called with a line of text.
    """
    folder = work / "captions"
    photos = caption_inputs.read_photos(data)
    seen = caption_inputs.compute(photos, model / "model.onnx", folder / "features", say)
    made = make(photos, seen, folder, say)
    caption_export.write(made.decoder, made.standard, made.words, folder)
    numbers = measure(folder, model, photos, seen) | {"loss": made.loss}
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    milliseconds = numbers["flickr"]["milliseconds"]
    say(f"loss {made.loss:.3f}, {milliseconds:.0f} ms a caption\n{tables(numbers)}")
    return numbers


if __name__ == "__main__":
    raise SystemExit(main())
