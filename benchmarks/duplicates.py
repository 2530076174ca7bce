"""Duplicates among very many synthetic hashes and vectors: time, memory, and how many planted pairs are found.

python -m benchmarks.duplicates --work build/benchmarks
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measured import Measured

DIMENSIONS = 256
SHARE = 10
"""Every so manieth image has a near copy."""


def main() -> None:
    """Measure each in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--hashes", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--vectors", type=int, nargs="*", default=[20_000, 100_000, 300_000])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        what, count = options.one
        print(json.dumps(MEASURED[what](int(count), options.work)))
        return
    print("| what | number | pairs or groups | planted ones found | s | CPU s | largest MB |")
    print("|---|---|---|---|---|---|---|")
    for what in MEASURED:
        for count in getattr(options, what.split()[0]):
            command = [sys.executable, "-m", "benchmarks.duplicates", "--work", str(options.work)]
            command += ["--one", what, str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(output)
            shares = f"{row['found']:,} | {row['recall']:.2%}"
            cells = f"{shares} | {row['s']:.0f} | {row['CPU']:.0f} | {row['MB']:.0f}"
            print(f"| {what} | {count:,} | {cells} |", flush=True)


def hashes_of(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Random hashes with half their bits set, as those of photos, and near copies of some: 2, 4 or 6 bits changed."""
    generator = np.random.default_rng(0)
    originals = count - count // SHARE
    made, copied = [], []
    for start in range(
        0, originals, 10_000
    ):  # in blocks, so that making them takes no memory that is measured
        size = min(10_000, originals - start)
        bits = generator.random((size, 64), np.float32).argsort(axis=1) < 32
        made.append(_packed(bits))
        flipped = bits[: max(0, min(size, count // SHARE - start))]
        for row, changes in enumerate(generator.integers(1, 4, len(flipped)).tolist()):
            ones, zeros = np.flatnonzero(flipped[row]), np.flatnonzero(~flipped[row])
            flipped[row, ones[:changes]] = False
            flipped[row, zeros[:changes]] = True
        copied.append(_packed(flipped))
    return np.concatenate(made), np.concatenate(copied)


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def vectors_of(count: int, work: Path) -> npt.NDArray[np.float32]:
    """Unit vectors in 200 clouds, in a file; the last tenth are near copies (cosine 0.97) of the first."""
    generator = np.random.default_rng(0)
    clouds = generator.normal(size=(200, DIMENSIONS)).astype(np.float32)
    path = work / f"vectors-{count}"
    vectors = np.memmap(path, np.float32, "w+", shape=(count, DIMENSIONS))
    copies = count // SHARE
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        rows = clouds[generator.integers(0, 200, size)]
        rows = rows + 1.2 * generator.normal(size=rows.shape).astype(np.float32)
        vectors[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for start in range(0, copies, 10_000):
        size = min(10_000, copies - start)
        noise = (
            generator.normal(size=(size, DIMENSIONS)).astype(np.float32) * 0.25 / DIMENSIONS**0.5
        )
        rows = vectors[start : start + size] + noise
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        vectors[count - copies + start : count - copies + start + size] = rows
    vectors.flush()
    return np.memmap(path, np.float32, "r", shape=(count, DIMENSIONS))


def measure_hashes(count: int, _: Path) -> dict[str, float]:
    """The search among hashes alone, within 6 bits."""
    from annotary.catalog.perceptual_hash import near_hashes

    originals, copies = hashes_of(count)
    planted = _pairs(originals[: len(copies)], copies)
    hashes = np.unique(np.concatenate([originals, copies]))
    measured, found = Measured(), set[tuple[int, int]]()
    for pairs in near_hashes(hashes, 6):
        found |= _pairs(pairs.first, pairs.second)
    return {"found": len(found), "recall": len(planted & found) / len(planted), **measured.told()}


def measure_vectors(count: int, work: Path) -> dict[str, float]:
    """The search among vectors alone, from a cosine of 0.95 on."""
    from annotary.catalog.duplicates_vectors import near_vectors

    vectors = vectors_of(count, work)
    copies = count // SHARE
    measured, found, planted = Measured(), 0, 0
    for pairs in near_vectors(vectors, 0.95):
        found += len(pairs.first)
        planted += int((pairs.second - pairs.first == count - copies).sum())
    return {"found": found, "recall": planted / copies, **measured.told()}


def measure_images(count: int, _: Path) -> dict[str, float]:
    """All of `find_duplicates`: exact copies and perceptual hashes, groups and suggestions."""
    from annotary.catalog.duplicates import Fingerprint, find_duplicates

    originals, copies = hashes_of(count)

    def images() -> Iterator[Fingerprint]:
        for i, value in enumerate(originals.tolist()):
            name = f"photos/{i // 1000:04}/{i:08}.jpg"
            yield Fingerprint(name, None, 100_000 + i, 640, 480, f"{i:064x}", value)
        for i, value in enumerate(copies.tolist()):
            digest = f"{i:064x}" if i % 2 else f"c{i:063x}"
            phash = originals[i].item() if i % 2 else value
            yield Fingerprint(f"copies/{i:08}.jpg", None, 50_000, 320, 240, digest, phash)

    measured, found, planted = Measured(), 0, 0
    for group in find_duplicates(images()):
        found += 1
        planted += sum(member.image.startswith("copies/") for member in group.others)
    return {"found": found, "recall": planted / len(copies), **measured.told()}


def _pairs(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    ordered = np.minimum(first, second).tolist(), np.maximum(first, second).tolist()
    return set(zip(*ordered, strict=True))


MEASURED = {"hashes": measure_hashes, "vectors": measure_vectors, "images": measure_images}


if __name__ == "__main__":
    main()
