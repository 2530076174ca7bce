"""Zero-shot classification end to end from files: annotary against transformers' pipeline, for few and many labels.

python -m benchmarks.zero_shot --photos ../shared/data/coco/images --work build/benchmarks

CLIP ViT-B/16 at 224 pixels with random weights (seeded): time does not depend on them. The labels are words of the
starter's vocabulary, and the tokenizer is trained on them, so that a label is as many tokens as with CLIP's own. Every
contender is a process of its own, which loads the model, classifies two photos with other labels to warm up, and then
is timed over all photos, the texts' way through the network included; they take turns. What is remembered of texts
between runs is kept in a folder that goes away, but for the contender that had the same labels before.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

COUNTS = (3, 50, 1000)
"""How many labels."""

WARM_UP = 2
BATCH = 8
TEMPLATE = "This is a photo of {}."

PIPELINE = "transformers pipeline, batch_size 8"
PIPELINE_BF16 = "transformers pipeline, batch_size 8, bf16"
REMEMBERED = "annotary, texts remembered"
OURS: dict[str, dict[str, Any]] = {
    "annotary": {},
    REMEMBERED: {},
    "annotary, torch bf16": {"runtime": "torch", "precision": "bf16"},
    "annotary, torch fp32": {"runtime": "torch", "precision": "fp32"},
}
"""Contender to how it runs."""

Classify = Callable[[Sequence[Path], Sequence[str]], None]


def labels_of(count: int) -> list[str]:
    """Words of the starter's vocabulary, always the same."""
    from annotary import weights

    with (weights.known()["starter"] / "tags.csv").open(encoding="utf-8", newline="") as file:
        names = [row["name"].replace("_", " ") for row in csv.DictReader(file)]
    return names[:count]


def make_model(folder: Path) -> None:
    """Write the checkpoint, unless it is there."""
    if (folder / "preprocessor_config.json").exists():
        return
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={"hidden_size": 512, "num_attention_heads": 8, "eos_token_id": 2},
        vision_config={"patch_size": 16},
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer_of([TEMPLATE.format(label) for label in labels_of(10_000)]).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def tokenizer_of(texts: Iterable[str]) -> Any:
    """A CLIP tokenizer whose byte pairs are learned from texts until their words are whole."""
    import transformers
    from tokenizers import trainers

    made: Any = transformers.CLIPTokenizer
    learning = made().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=0,
        show_progress=False,
        end_of_word_suffix="</w>",
    )
    learning.train_from_iterator(texts, trainer)
    model = json.loads(learning.to_str())["model"]
    kept = {token: number for token, number in model["vocab"].items() if "<|" not in token}
    ends = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return made(vocab={**kept, **ends}, merges=[tuple(pair) for pair in model["merges"]])


def with_pipeline(folder: Path, dtype: str) -> Classify:
    """Transformers' pipeline as its documentation has it, with batches."""
    import torch
    from transformers import pipeline
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pipe = pipeline(
        "zero-shot-image-classification",
        model=str(folder),
        image_processor=CLIPImageProcessorPil.from_pretrained(folder),
        dtype=getattr(torch, dtype),
    )

    def classify(photos: Sequence[Path], labels: Sequence[str]) -> None:
        found = pipe(
            [str(path) for path in photos],
            candidate_labels=list(labels),
            hypothesis_template=TEMPLATE,
            batch_size=BATCH,
        )
        assert len(found) == len(photos)

    return classify


def with_annotary(folder: Path, options: dict[str, Any]) -> Classify:
    """annotary, from Python."""
    import annotary

    model = annotary.load(f"dir:{folder}", **options)
    print(model.choice, file=sys.stderr)

    def classify(photos: Sequence[Path], labels: Sequence[str]) -> None:
        for record in model.classify(list(photos), list(labels), template=TEMPLATE):
            if not isinstance(record, annotary.Annotation):
                raise SystemExit(f"{record.image}: {record.message}")

    return classify


def run_one(name: str, count: int, folder: Path, photos: Sequence[Path]) -> None:
    """Time one contender in this process, and print what was found as JSON."""
    labels = labels_of(count)
    started = time.perf_counter()
    if name in OURS:
        classify = with_annotary(folder, OURS[name])
    else:
        classify = with_pipeline(folder, "bfloat16" if name == PIPELINE_BF16 else "float32")
    loaded = time.perf_counter() - started
    classify(photos[:WARM_UP], labels if name == REMEMBERED else ["warm", "up"])
    started, busy = time.perf_counter(), time.process_time()
    classify(photos, labels)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
    found = {"rate": len(photos) / seconds, "busy": busy / len(photos), "load": loaded}
    print(json.dumps({**found, "peak": peak}))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model")
    parser.add_argument("--count", type=int, default=64, help="photos a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=COUNTS, help="how many labels")
    parser.add_argument("--only", nargs="+", help="the contenders to measure, beside the pipeline")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(options.photos.glob("*.jpg"))
    files = [files[i % len(files)] for i in range(options.count)]
    folder = options.work / "clip-vit-b16-random"
    if options.one:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["ANNOTARY_CACHE"] = cache
            run_one(options.one[0], int(options.one[1]), folder, files)
        return
    make_model(folder)
    names = [PIPELINE, *(options.only or [PIPELINE_BF16, *OURS])]
    print(
        "| labels | | images/s | of the pipeline | core seconds an image | loads in s | peak MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in options.labels:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names:
                command = [sys.executable, "-m", "benchmarks.zero_shot", *sys.argv[1:]]
                command += ["--one", name, str(count)]
                result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                found[name].append(json.loads(result.stdout))
                told = f"round {number + 1}: {count} labels: {name}: {result.stdout.strip()}"
                print(told, file=sys.stderr, flush=True)
        _tell(count, found)


def _tell(count: int, found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians. The seconds that the cores were busy hardly depend on what else runs."""
    for name, rounds in found.items():
        rate, busy, load = (
            statistics.median(one[key] for one in rounds) for key in ("rate", "busy", "load")
        )
        pairs = zip(rounds, found[PIPELINE], strict=True)
        ratio = statistics.median(one["rate"] / other["rate"] for one, other in pairs)
        peak = max(one["peak"] for one in rounds)
        print(
            f"| {count:,} | {name} | {rate:.2f} | {ratio:.2f}× | {busy:.3f} | {load:.1f}"
            f" | {peak:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
