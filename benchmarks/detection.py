"""Open-vocabulary detection end to end from files: annotary against transformers' pipeline, for few and many labels.

python -m benchmarks.detection --photos ../shared/data/coco/images --work build/benchmarks

OWL-ViT ViT-B/32 at 768 pixels, in the published size with random weights (seeded): time does not depend on them. The
pipeline, `zero-shot-object-detection` with its defaults, prepares the image and runs both towers once for each label,
so that it is given few photos; what is told is seconds an image. All contenders are loaded in one process with the same
threads, search one photo to warm up, and take turns. A turn of annotary holds the way of the texts through the network,
too: nothing is remembered from an earlier one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.zero_shot import labels_of, tokenizer_of

PIPELINE = "transformers pipeline, fp32"
PIPELINE_BF16 = "transformers pipeline, bf16"
OURS: dict[str, dict[str, Any]] = {
    "annotary, bf16": {"precision": "bf16"},
    "annotary, fp32": {"precision": "fp32"},
}
"""Contender to how it runs."""

PLAN = ((1, 4, 3), (20, 1, 3), (100, 1, 1))
"""How many labels, photos that the pipeline gets a turn, and turns."""


class Spent(NamedTuple):
    """What one turn took, an image.

    Attributes:
        seconds: From the first image to the last.
        busy: Seconds of cores.
    """

    seconds: float
    busy: float


Detect = Callable[[Sequence[Path], Sequence[str]], None]


def make_model(folder: Path) -> None:
    """Write the checkpoint, unless it is there."""
    if (folder / "preprocessor_config.json").exists():
        return
    import torch
    from transformers import OwlViTConfig, OwlViTForObjectDetection
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    torch.manual_seed(0)
    config = OwlViTConfig(text_config={}, vision_config={})
    OwlViTForObjectDetection(config).save_pretrained(folder)
    tokenizer = tokenizer_of(labels_of(10_000))
    vocabulary = {**tokenizer.get_vocab(), "!": 0}
    tokenizer.pad_token = next(token for token, number in vocabulary.items() if number == 0)
    tokenizer.save_pretrained(folder)
    OwlViTImageProcessorPil().save_pretrained(folder)


def with_pipeline(folder: Path, dtype: str) -> Detect:
    """Transformers' pipeline as its documentation has it."""
    import torch
    from transformers import pipeline
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    pipe = pipeline(
        "zero-shot-object-detection",
        model=str(folder),
        image_processor=OwlViTImageProcessorPil.from_pretrained(folder),
        dtype=getattr(torch, dtype),
    )

    def detect(photos: Sequence[Path], labels: Sequence[str]) -> None:
        for photo in photos:
            pipe(str(photo), candidate_labels=list(labels), threshold=0.1)

    return detect


def with_annotary(folder: Path, options: dict[str, Any]) -> Detect:
    """annotary, from Python."""
    import annotary

    model = annotary.load(f"dir:{folder}", **options)
    print(model.choice, file=sys.stderr)

    def detect(photos: Sequence[Path], labels: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["ANNOTARY_CACHE"] = cache
            for record in model.detect(list(photos), list(labels)):
                if not isinstance(record, annotary.Annotation):
                    raise SystemExit(f"{record.image}: {record.message}")

    return detect


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model")
    parser.add_argument("--count", type=int, default=8, help="photos of annotary a turn")
    parser.add_argument("--labels", type=int, nargs="+", help="only these numbers of labels")
    parser.add_argument("--bf16", action="store_true", help="the pipeline in bf16, too")
    options = parser.parse_args()
    files = sorted(options.photos.glob("*.jpg"))[: options.count]
    folder = options.work / "owlvit-base-patch32-random"
    make_model(folder)
    contenders = {PIPELINE: with_pipeline(folder, "float32")}
    if options.bf16:
        contenders[PIPELINE_BF16] = with_pipeline(folder, "bfloat16")
    contenders |= {name: with_annotary(folder, told) for name, told in OURS.items()}
    for detect in contenders.values():
        detect(files[:1], ["warm up"])
    print(
        "| labels | | seconds an image | of the pipeline | core seconds an image | of the pipeline |"
    )
    print("|---|---|---|---|---|---|")
    for count, few, turns in PLAN:
        if options.labels and count not in options.labels:
            continue
        found: dict[str, list[Spent]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, detect in contenders.items():
                photos = files if name in OURS else files[:few]
                started, busy = time.perf_counter(), time.process_time()
                detect(photos, labels_of(count))
                seconds, busy = time.perf_counter() - started, time.process_time() - busy
                found[name].append(Spent(seconds / len(photos), busy / len(photos)))
                print(f"{count} labels: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        _tell(count, found)


def _tell(count: int, found: dict[str, list[Spent]]) -> None:
    """Print medians of the turns, and of their ratios, turn by turn.

    The seconds that the cores were busy hardly depend on what else the machine does.
    """
    for name, turns in found.items():
        pairs = list(zip(found[PIPELINE], turns, strict=True))
        ratio = statistics.median(theirs.seconds / ours.seconds for theirs, ours in pairs)
        busy = statistics.median(theirs.busy / ours.busy for theirs, ours in pairs)
        spent = [statistics.median(column) for column in zip(*turns, strict=True)]
        told = f"{spent[0]:.2f} | {ratio:.1f}× | {spent[1]:.2f} | {busy:.1f}×"
        print(f"| {count} | {name} | {told} |", flush=True)


if __name__ == "__main__":
    main()
