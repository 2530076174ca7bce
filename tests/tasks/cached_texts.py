"""Texts in a cache, the same in every process: what tests put in, and whether it comes back bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from annotary.tasks.encoding import Texts
from annotary.tasks.text_cache import TextCache, key_of


def texts_of(seeds: Sequence[int], size: int = 16) -> Texts:
    """A unit vector for each seed, always the same."""
    vectors = np.stack([np.random.default_rng(seed).normal(size=size) for seed in seeds])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Texts(vectors.astype(np.float32), np.array([seed % 3 == 0 for seed in seeds]))


def keys_of(seeds: Sequence[int]) -> list[bytes]:
    return [key_of([f"text {seed}"]) for seed in seeds]


def put(cache: TextCache, seeds: Sequence[int], size: int = 16) -> None:
    cache.put(keys_of(seeds), texts_of(seeds, size))


def right_of(cache: TextCache, seeds: Sequence[int], size: int = 16) -> int:
    """How many of the texts the cache knows; each of them bit by bit."""
    known = cache.get(keys_of(seeds))
    expected = texts_of(seeds, size)
    for key, vector, truncated in zip(keys_of(seeds), *expected, strict=True):
        if key in known:
            assert known[key][0].dtype == np.float32
            assert known[key][0].tobytes() == vector.tobytes()
            assert known[key][1] is bool(truncated)
    assert set(known) <= set(keys_of(seeds))
    return len(known)


def write_without_end(folder: Path) -> None:
    """Write until the process is killed; a line on standard output tells that it begins."""
    print("begun", flush=True)
    start = 0
    while True:
        put(TextCache("model", folder), range(start, start + 50))
        start += 50


def write_and_read(folder: Path, worker: int) -> None:
    """Write texts that other workers write as well, and read those of all."""
    cache = TextCache("model", folder)
    for start in range(0, 400, 40):
        put(cache, range(start + 10 * worker, start + 10 * worker + 50))
        right_of(TextCache("model", folder), range(450))
    assert right_of(cache, range(10 * worker, 400)) == 400 - 10 * worker


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_without_end(Path(sys.argv[1]))
    else:
        write_and_read(Path(sys.argv[1]), int(sys.argv[2]))
