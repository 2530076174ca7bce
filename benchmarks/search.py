"""Searching a catalogue by its index: build time, memory, recall and time per query, against exact NumPy.

python -m benchmarks.search --work build/benchmarks --vectors 1000000 --dimensions 512

The vectors are made up (seeded), but shaped like those of image encoders:

    realistic   unit( offset + group + cluster + noise ): all share an offset, as encoders' vectors fill a cone; 5,000
                clusters of sizes as Zipf's law has them lie in groups of 50; centres and noise have variances that fall
                with the number of the direction (1 / k), as the spectra of such vectors do.
    hard        independent normal numbers, made unit vectors: without structure an index has nothing to go by. No
                encoder gives such vectors.

Queries are drawn in the same way and are not among the vectors. Every stage is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TOP = 10
AT_ONCE = 20_000
SETTINGS = ((10, 2), (20, 5), (40, 2), (40, 5), (40, 20), (160, 5), (1000, 5))
"""Parts of the index that are looked into, and how many times ten candidates are compared exactly."""


def drawn(kind: str, count: int, dimensions: int, seed: int) -> Floats:
    """Vectors float32[count, dimensions] of length 1."""
    generator = np.random.default_rng(seed)
    if kind == "hard":
        return _unit(generator.standard_normal((count, dimensions), np.float32))
    shape = np.random.default_rng(0)  # of the whole cloud, the same for vectors and queries
    clusters = 5_000
    spectrum = (1.0 / np.arange(1, dimensions + 1)).astype(np.float32) ** 0.5
    spectrum *= np.sqrt(dimensions / np.sum(spectrum**2))
    turn = np.linalg.qr(shape.standard_normal((dimensions, dimensions)))[0].astype(np.float32)
    offset = shape.standard_normal(dimensions).astype(np.float32)
    groups = shape.standard_normal((clusters // 50, dimensions), np.float32) * spectrum
    centres = np.repeat(groups, 50, axis=0) + 0.7 * spectrum * shape.standard_normal(
        (clusters, dimensions), np.float32
    )
    sizes = 1.0 / np.arange(1, clusters + 1) ** 0.7
    chosen = generator.choice(clusters, count, p=sizes / sizes.sum())
    noise = generator.standard_normal((count, dimensions), np.float32) * spectrum
    return _unit((centres[chosen] + 0.6 * noise) @ turn + offset)


def pieces(kind: str, count: int, dimensions: int) -> Iterator[tuple[int, Floats]]:
    """All vectors, some at a time."""
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        yield start, drawn(kind, size, dimensions, seed=1000 + start // AT_ONCE)


def _unit(rows: npt.NDArray[Any]) -> Floats:
    unit: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def write(path: Path, kind: str, count: int, dimensions: int) -> dict[str, float]:
    """Write the vectors into a catalogue, and as a matrix for NumPy."""
    import pyarrow as pa

    from annotary.catalog import Catalog, Note

    shutil.rmtree(path, ignore_errors=True)
    started = time.perf_counter()
    catalog = Catalog.create(path, Note({"embedding": {"model": kind}}), dimensions)
    schema = catalog.table.schema
    matrix = np.lib.format.open_memmap(
        path / "vectors.npy", "w+", np.dtype(np.float32), (count, dimensions)
    )
    for start, vectors in pieces(kind, count, dimensions):
        rows = range(start, start + len(vectors))
        columns = {
            "id": pa.array(rows, pa.int64()),
            "image": pa.array([f"photos/{i:08}.jpg" for i in rows]),
            "path": pa.array([f"/photos/{i:08}.jpg" for i in rows]),
            "width": pa.array([640 + i % 3000 for i in rows], pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimensions),
        }
        arrays = [columns.get(f.name, pa.nulls(len(vectors), f.type)) for f in schema]
        catalog.table.add(pa.Table.from_arrays(arrays, schema=schema))
        matrix[start : start + len(vectors)] = vectors
    matrix.flush()
    catalog.compact()
    return {"seconds": time.perf_counter() - started}


def build(path: Path) -> dict[str, float]:
    """Make the index."""
    from annotary.catalog import Catalog

    before = _bytes(path / "images.lance")
    catalog = Catalog.open(path)
    started = time.perf_counter()
    catalog.build_index()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "vectors_bytes": before,
        "index_bytes": _bytes(path / "images.lance") - before,
    }


def exact(path: Path, kind: str, queries: int) -> dict[str, Any]:
    """What NumPy finds with all vectors in memory, and its time for each query."""
    matrix = np.load(path / "vectors.npy")
    wanted = drawn(kind, queries, matrix.shape[1], seed=7)
    found, seconds = [], []
    for query in wanted:
        started = time.perf_counter()
        scores = matrix @ query
        best = np.argpartition(scores, -TOP)[-TOP:]
        best = best[np.argsort(-scores[best])]
        seconds.append(time.perf_counter() - started)
        found.append(best.tolist())
    np.save(path / "truth.npy", np.array(found))
    return {"ms": _percentiles(seconds)}


def streamed(path: Path, kind: str, queries: int) -> dict[str, Any]:
    """The catalogue's own exact search, which reads all vectors from the disk for each query."""
    from annotary.catalog import Catalog

    catalog = Catalog.open(path)
    assert catalog.dimensions is not None
    seconds, hits = [], 0
    truth = np.load(path / "truth.npy")
    for number, query in enumerate(drawn(kind, queries, catalog.dimensions, seed=7)[:5]):
        started = time.perf_counter()
        found = catalog.search(query, TOP, is_exact=True)
        seconds.append(time.perf_counter() - started)
        hits += len({one for one, _ in found} & {*truth[number].tolist()})
    return {"ms": _percentiles(seconds), "recall": hits / (TOP * len(seconds))}


def by_index(path: Path, kind: str, queries: int, nprobes: int, refine: int) -> dict[str, Any]:
    """Search by the index, with one setting."""
    from annotary.catalog import Catalog

    started = time.perf_counter()
    catalog = Catalog.open(path)
    assert catalog.dimensions is not None
    wanted = drawn(kind, queries, catalog.dimensions, seed=7)
    truth = np.load(path / "truth.npy")
    catalog.search(wanted[0], TOP, nprobes=nprobes, refine=refine)
    first = time.perf_counter() - started
    for query in drawn(kind, 50, catalog.dimensions, seed=8):  # others, so that none is known
        catalog.search(query, TOP, nprobes=nprobes, refine=refine)
    seconds, hits = [], 0
    for number, query in enumerate(wanted):
        started = time.perf_counter()
        found = catalog.search(query, TOP, nprobes=nprobes, refine=refine)
        seconds.append(time.perf_counter() - started)
        hits += len({one for one, _ in found} & {*truth[number].tolist()})
    recall = hits / (TOP * len(wanted))
    return {"ms": _percentiles(seconds), "recall": recall, "first_ms": 1000 * first}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    times = 1000 * np.array(seconds)
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def stage(options: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    """Run a stage as a process of its own."""
    told = [f"--{name}={getattr(options, name)}" for name in ("work", "vectors", "dimensions")]
    command = [sys.executable, "-m", "benchmarks.search", *told, f"--queries={options.queries}"]
    result = subprocess.run([*command, "--stage", *arguments], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def run_stage(options: argparse.Namespace) -> None:
    """Do what a process of its own does, and print it with the memory that it took."""
    name, kind, *numbers = options.stage
    path = options.work / f"search-{kind}-{options.vectors}.catalog"
    if name == "write":
        found: dict[str, Any] = write(path, kind, options.vectors, options.dimensions)
    elif name == "build":
        found = build(path)
    elif name == "exact":
        found = exact(path, kind, options.queries)
    elif name == "streamed":
        found = streamed(path, kind, options.queries)
    else:
        found = by_index(path, kind, options.queries, *map(int, numbers))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def measure(options: argparse.Namespace, kind: str) -> None:
    """Measure one kind of vectors, and print its tables."""
    print(f"\n{options.vectors:,} {kind} vectors of {options.dimensions}\n", flush=True)
    written = stage(options, "write", kind)
    built = stage(options, "build", kind)
    print("| | seconds | peak MB | on disk MB |\n|---|---|---|---|")
    rows = (
        ("writing and compacting", written, built["vectors_bytes"]),
        ("building the index", built, built["index_bytes"]),
    )
    for name, found, size in rows:
        print(f"| {name} | {found['seconds']:.0f} | {found['peak_mb']:,.0f} | {size / 1e6:,.0f} |")
    print(f"\n| {options.queries} queries | recall@10 | p50 ms | p99 ms | peak MB |")
    print("|---|---|---|---|---|", flush=True)
    found = stage(options, "exact", kind)
    _row("NumPy, all vectors in memory", found, 1.0)
    found = stage(options, "streamed", kind)
    _row("annotary `--exact`, from the disk (5 queries)", found, found["recall"])
    for nprobes, refine in SETTINGS:
        found = stage(options, "index", kind, str(nprobes), str(refine))
        _row(f"index, nprobes {nprobes}, refine {refine}", found, found["recall"])


def _row(name: str, found: dict[str, Any], recall: float) -> None:
    times = found["ms"]
    cells = f"{times['p50']:.1f} | {times['p99']:.1f} | {found['peak_mb']:,.0f}"
    print(f"| {name} | {recall:.3f} | {cells} |", flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=["realistic", "hard"])
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage:
        run_stage(options)
        return
    for kind in options.kinds:
        measure(options, kind)


if __name__ == "__main__":
    main()
