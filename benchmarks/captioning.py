"""Captioning end to end from files: annotary against transformers' `generate`, one image at a time.

python -m benchmarks.captioning --photos ../shared/data/coco/images --work build/benchmarks

BLIP base for captions (ViT-B/16 at 384 pixels, 12 layers of text) with random weights (seeded): time does not depend on
them, but when a caption ends does. So both sides are told to write all 20 tokens, by three beams. The reference is what
the model's page shows: open the photo, `processor`, `generate(num_beams=3)`, `decode`. All contenders are loaded in one
process with the same threads, caption two photos to warm up, and take turns over the same photos; what is told are
medians of the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEAMS = 3
LENGTH = 20
WARM_UP = 2

REFERENCE = "transformers, one at a time"
THEIRS: dict[str, str] = {REFERENCE: "float32", "transformers, bf16": "bfloat16"}
"""Contender to what it computes in."""

OURS: dict[str, dict[str, Any]] = {
    "annotary": {},
    "annotary, fp32": {"precision": "fp32"},
}
"""Contender to how it runs."""

Caption = Callable[[Sequence[Path]], list[str]]


def make_model(folder: Path) -> None:
    """Write the checkpoint, unless it is there."""
    if (folder / "preprocessor_config.json").exists():
        return
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    # The defaults of the class have other heads than the published checkpoints.
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    model = transformers.BlipForConditionalGeneration(config)
    words = [f"word{number}" for number in range(30_522)]
    words[0] = "[PAD]"
    words[100:104] = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made: Any = transformers.BertTokenizer
    tokenizer = made(vocab={word: number for number, word in enumerate(words)})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil().save_pretrained(folder)


def with_transformers(folder: Path, numbers: str) -> Caption:
    """The loop of the model's page."""
    import torch
    import transformers
    from PIL import Image
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    dtype = getattr(torch, numbers)
    network: Any = transformers.BlipForConditionalGeneration
    model = network.from_pretrained(folder, dtype=dtype).eval()
    made: Any = transformers.BertTokenizer
    images, tokenizer = BlipImageProcessorPil.from_pretrained(folder), made.from_pretrained(folder)

    def caption(photos: Sequence[Path]) -> list[str]:
        found = []
        for path in photos:
            with Image.open(path) as image:
                inputs = images(image.convert("RGB"), return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(
                    inputs["pixel_values"].to(dtype),
                    num_beams=BEAMS,
                    do_sample=False,
                    min_length=LENGTH,
                    max_length=LENGTH,
                )
            assert ids.shape[1] == LENGTH
            found.append(str(tokenizer.decode(ids[0], skip_special_tokens=True)))
        return found

    return caption


def with_annotary(folder: Path, options: dict[str, Any], threads: int) -> Caption:
    """annotary, from Python."""
    import annotary

    model = annotary.load(f"dir:{folder}", runtime="torch", threads=threads, **options)
    print(model.choice, file=sys.stderr)

    def caption(photos: Sequence[Path]) -> list[str]:
        # What transformers does by default: nothing is guarded against.
        records = model.caption(
            list(photos), beams=BEAMS, min_length=LENGTH, max_length=LENGTH, no_repeat=0
        )
        found = []
        for record in records:
            if not isinstance(record, annotary.Annotation):
                raise SystemExit(f"{record.image}: {record.message}")
            found.append(record.captions[0].text if record.captions else "")
        return found

    return caption


def main() -> None:
    """Write the model, time the contenders by turns, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True, help="A folder of photographs.")
    parser.add_argument("--work", type=Path, required=True, help="A folder for the model.")
    parser.add_argument("--count", type=int, default=32, help="How many photographs.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each contender runs.")
    parser.add_argument("--threads", type=int, help="Of both sides; all cores without it.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="These contenders.")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from annotary.runtime import available_cores

    threads = arguments.threads or available_cores()
    torch.set_num_threads(threads)
    folder = arguments.work / "blip-base"
    make_model(folder)
    # Photographs of which none was seen before: an image's encoding is remembered.
    found = sorted(path for path in arguments.photos.iterdir() if path.suffix == ".jpg")
    warm, rest = found[:WARM_UP], found[WARM_UP:]
    contenders: dict[str, Caption] = {}
    for name in arguments.only or (*OURS, *THEIRS):
        is_ours = name in OURS
        contenders[name] = (
            with_annotary(folder, OURS[name], threads)
            if is_ours
            else with_transformers(folder, THEIRS[name])
        )
        contenders[name](warm)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    worked: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds):
        photos = rest[turn * arguments.count : (turn + 1) * arguments.count]
        if len(photos) < arguments.count:
            raise SystemExit(f"{arguments.photos} has too few photographs")
        texts = {}
        for name, caption in contenders.items():
            started, used = time.perf_counter(), time.process_time()
            texts[name] = caption(photos)
            taken[name].append(time.perf_counter() - started)
            worked[name].append(time.process_time() - used)
            print(
                f"{name}: {taken[name][-1]:.1f} s, {worked[name][-1]:.1f} core s", file=sys.stderr
            )
        if {REFERENCE, "annotary, fp32"} <= set(texts):
            same = sum(map(str.__eq__, texts[REFERENCE], texts["annotary, fp32"]))
            print(f"the same captions: {same} of {len(photos)}", file=sys.stderr)
    told(taken, worked, arguments.count)
    found_all = {"seconds": taken, "core seconds": worked}
    (arguments.work / "captioning.json").write_text(json.dumps(found_all, indent=1))


def told(taken: dict[str, list[float]], worked: dict[str, list[float]], count: int) -> None:
    """Print the table: medians, and how much less than the reference in the same turn."""
    print(
        f"| {count} photos | images/s | of the reference | core seconds an image | of the reference |"
    )
    print("|---|---|---|---|---|")
    for name, seconds in taken.items():
        row = f"| {name} | {count / statistics.median(seconds):.3f} | {_ratio(taken, name)} |"
        print(f"{row} {statistics.median(worked[name]) / count:.2f} | {_ratio(worked, name)} |")


def _ratio(taken: dict[str, list[float]], name: str) -> str:
    """How many times less a contender takes than the reference, in the median of the turns."""
    pairs = zip(taken.get(REFERENCE, taken[name]), taken[name], strict=True)
    return f"{statistics.median(one / other for one, other in pairs):.2f}×"


if __name__ == "__main__":
    main()
