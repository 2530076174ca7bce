"""Clusters among very many synthetic vectors: time, memory, and how well the planted ones are found.

python -m benchmarks.clusters --work build/benchmarks
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measured import Measured

DIMENSIONS = 256
CLOUDS = 40


def main() -> None:
    """Measure each in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.work)))
        return
    print("| method | vectors | clusters | in one with its cloud | s | CPU s | largest MB |")
    print("|---|---|---|---|---|---|---|")
    for count in options.vectors:
        for method in ("kmeans", "hdbscan"):
            command = [sys.executable, "-m", "benchmarks.clusters", "--work", str(options.work)]
            command += ["--one", method, str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(output)
            cells = f"{row['found']:,} | {row['share']:.1%} | {row['s']:.0f} | {row['CPU']:.0f} | {row['MB']:.0f}"
            print(f"| {method} | {count:,} | {cells} |", flush=True)


def vectors_of(count: int, work: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Unit vectors around some directions, in a file, and the direction of each."""
    generator = np.random.default_rng(0)
    clouds = generator.normal(size=(CLOUDS, DIMENSIONS)).astype(np.float32)
    own = generator.integers(0, CLOUDS, count)
    path = work / f"clouds-{count}"
    vectors = np.memmap(path, np.float32, "w+", shape=(count, DIMENSIONS))
    for start in range(0, count, 10_000):
        rows = clouds[own[start : start + 10_000]]
        rows = rows + 0.8 * generator.normal(size=rows.shape).astype(np.float32)
        vectors[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    vectors.flush()
    return np.memmap(path, np.float32, "r", shape=(count, DIMENSIONS)), own


def measure(method: str, count: int, work: Path) -> dict[str, float]:
    """One method on so many vectors; k-means is told how many clusters there are."""
    from annotary.catalog.clusters import ClusterOptions, find_clusters

    vectors, own = vectors_of(count, work)
    options = ClusterOptions("kmeans", CLOUDS) if method == "kmeans" else ClusterOptions("hdbscan")
    measured = Measured()
    found = find_clusters(vectors, options)
    told = measured.told()
    labels = found.labels
    table = np.zeros((len(found.sizes), CLOUDS), np.int64)
    np.add.at(table, (labels[labels >= 0], own[labels >= 0]), 1)
    return {
        "found": len(found.sizes),
        "share": float(table.max(axis=1).sum() / count),
        **told,
    }


if __name__ == "__main__":
    main()
