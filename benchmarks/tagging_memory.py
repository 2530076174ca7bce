"""Memory of measuring a tagger while images go by, with made-up scores.

python -m benchmarks.tagging_memory --images 1000000 --tags 6000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import psutil

from annotary.evaluation.tagging_streams import TaggingStream

BATCH = 256
_DRAWN = 16
"""Batches that are drawn; each is used again and again, moved by some tags."""


def main() -> None:
    """Measure, and print a line for each tenth."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--tags", type=int, default=6000)
    parser.add_argument("--fit", action="store_true", help="keep halves apart, as --fit does")
    values = parser.parse_args()
    random = np.random.default_rng(0)
    shape = (BATCH, values.tags)
    batches = []
    for _ in range(_DRAWN):
        targets = random.random(shape) < 0.005
        logits = random.normal(-5, 2, shape).astype(np.float32) + 6 * targets
        batches.append(((1 / (1 + np.exp(-logits))).astype(np.float32), targets))
    process = psutil.Process()
    before = process.memory_info().rss / 1e6
    stream = TaggingStream({"0.4": np.full(values.tags, 0.4, np.float32)}, halves=values.fit)
    print("| images | MB above the start | seconds |\n|---|---|---|")
    started, told = time.perf_counter(), 0
    while stream.images < values.images:
        number = stream.images // BATCH
        scores, targets = batches[number % _DRAWN]
        stream.update(np.roll(scores, number, axis=1), np.roll(targets, number, axis=1))
        if stream.images * 10 >= (told + 1) * values.images:
            told += 1
            used = process.memory_info().rss / 1e6 - before
            seconds = time.perf_counter() - started
            print(f"| {stream.images:,} | {used:.0f} | {seconds:.0f} |", flush=True)
    found, is_exact = stream.average_precision()
    kind = "exact" if is_exact else "of binned scores"
    print(f"mAP {np.nanmean(found.value):.4f}, {kind}")


if __name__ == "__main__":
    main()
