"""De-duplication of very many synthetic rows: rows a second, memory, and how many planted copies go.

python -m benchmarks.dedup --work build/benchmarks
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PART_ROWS = 250_000
WORDS = 20_000
COPIED_TEXTS, COPIED_URLS, COPIED_IMAGES = 10, 20, 10
"""Every so manieth row has the text, the address or nearly the image of one before."""


def main() -> None:
    """Measure each in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 4_000_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--hashes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        what, count, workers = options.one
        print(json.dumps(MEASURED[what](int(count), options.work, int(workers))))
        return
    print(
        "| what | number | processes | go | planted ones | s | CPU s | a second and core | largest MB | disk MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    cases = [("text,url", n, w) for n in options.rows for w in options.workers]
    cases += [("phash", n, 1) for n in options.hashes]
    for what, count, workers in cases:
        command = [sys.executable, "-m", "benchmarks.dedup", "--work", str(options.work)]
        command += ["--one", what, str(count), str(workers)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(output)
        cells = [what, f"{count:,}", str(workers), f"{row['go']:,}", f"{row['planted']:.2%}"]
        cells += [f"{row['s']:.1f}", f"{row['CPU']:.1f}", f"{count / row['CPU']:,.0f}"]
        cells += [f"{row['MB']:.0f}", f"{row['disk']:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def tables_of(count: int, work: Path) -> Path:
    """Parquet files of addresses and texts of 4 to 20 words; some are copies of rows anywhere before."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = work / f"rows-{count}"
    if (folder / "_whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = np.random.default_rng(0)
    letters = generator.integers(97, 123, (WORDS, 9), dtype=np.uint8)
    words = [bytes(row[: 2 + i % 8]).decode() for i, row in enumerate(letters)]
    for start in range(0, count, PART_ROWS):
        rows = np.arange(start, min(start + PART_ROWS, count))
        texts = [_text(words, row) for row in _sources(rows, COPIED_TEXTS, 1).tolist()]
        urls = [
            f"https://example.org/{row % 977}/{row:x}.jpg"
            for row in _sources(rows, COPIED_URLS, 2).tolist()
        ]
        table = pa.table({"url": urls, "text": texts, "width": pa.array(rows % 1999, pa.int32())})
        parquet.write_table(table, folder / f"{start // PART_ROWS:05d}.parquet", compression="zstd")
    (folder / "_whole").touch()
    return folder


def _sources(rows: npt.NDArray[np.int64], every: int, seed: int) -> npt.NDArray[np.int64]:
    """The rows that rows take something from: mostly themselves, some one before that takes its own."""
    generator = np.random.default_rng([seed, int(rows[0])])
    before = (generator.random(len(rows)) * rows).astype(np.int64)
    before -= before % COPIED_URLS  # which takes nothing from any
    return np.where(rows % every == every // 2, before, rows)


def _text(words: list[str], row: int) -> str:
    """A text that no other row has."""
    state = row * 2654435761 % 2**32
    chosen = []
    for _ in range(4 + row % 17):
        state = (state * 1664525 + 1013904223) % 2**32
        chosen.append(words[(state >> 8) % WORDS])
    return f"{' '.join(chosen)} {row:x}"


def measure_rows(count: int, work: Path, workers: int) -> dict[str, float]:
    """All of `dedup` by text and address: from Parquet to Parquet."""
    from annotary.curation.dedup import DedupOptions, dedup
    from annotary.curation.steps import StepOptions

    tables = tables_of(count, work)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        measured = Measured(Path(folder))
        options = DedupOptions(by="text,url")
        result = dedup([tables], Path(folder) / "out", options, StepOptions(workers=workers))
        told = measured.told()
    planted = count // COPIED_TEXTS + count // COPIED_URLS
    go = sum(result.total.dropped.values())
    return {"go": go, "planted": go / planted, **told}


def measure_hashes(count: int, work: Path, _: int) -> dict[str, float]:
    """Perceptual hashes within 6 bits, from what was measured of pictures to the rows that go."""
    from annotary.curation._dedup_found import FoundFiles, Standing
    from annotary.curation._dedup_images import image_files, near_images, settle_images
    from annotary.curation._dedup_plan import PlannedPart

    looks = looks_of(count, work)
    parts = [
        PlannedPart(path.stem, str(path), None, min(PART_ROWS, count - first), first, 0)
        for first, path in zip(
            range(0, count, PART_ROWS), sorted(looks.glob("*.parquet")), strict=True
        )
    ]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        place = Path(folder)
        measured = Measured(place)
        files = image_files(looks, parts, count, place)
        standing = Standing(place / "standing", count)
        near = near_images(files.phash, count, standing, 6, place)
        found = FoundFiles(place)
        settle_images([(0, near)], files.pixels, standing, found)
        told = measured.told()
        go = found.between(0, count)
    copies = count // COPIED_IMAGES
    planted = int((go.rows >= count - copies).sum())
    return {"go": len(go.rows), "planted": planted / copies, **told}


def looks_of(count: int, work: Path) -> Path:
    """Measures of pictures; the last tenth have hashes 2, 4 or 6 bits from those of the first, and fewer pixels."""
    import pyarrow as pa
    from pyarrow import parquet

    from annotary.curation.looks import looks_schema

    folder = work / f"looks-{count}"
    if (folder / "_whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copies = count // COPIED_IMAGES
    for start in range(0, count, PART_ROWS):
        rows = np.arange(start, min(start + PART_ROWS, count))
        is_copy = rows >= count - copies
        hashes = _hashes(np.where(is_copy, rows - (count - copies), rows))
        hashes[is_copy] ^= _changes(rows[is_copy])
        size = np.where(is_copy, 200, 400)
        known = {
            "phash": hashes,
            "chroma": np.full(len(rows), 200, np.uint8),
            "width": size,
            "height": size,
        }
        columns = [
            pa.array(known[field.name], field.type)
            if field.name in known
            else pa.nulls(len(rows), field.type)
            for field in looks_schema()
        ]
        table = pa.table(columns, looks_schema())
        parquet.write_table(table, folder / f"{start // PART_ROWS:05d}.parquet")
    (folder / "_whole").touch()
    return folder


def _hashes(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A hash for each row, as of photos: nearly half of the bits are set. SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def _changes(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """2, 4 or 6 bits of each row."""
    generator = np.random.default_rng([7, int(rows[0]) if len(rows) else 0])
    changes = np.zeros(len(rows), np.uint64)
    for number in range(6):
        bit = np.uint64(1) << generator.integers(
            number * 10, number * 10 + 10, len(rows), dtype=np.uint64
        )
        changes |= np.where(number < 2 + rows % 3 * 2, bit, np.uint64(0))
    return changes


class Measured:
    """Measures this process and those that it starts, from when it is made until it is asked.

    Args:
        folder: What is written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = time.perf_counter(), _cpu_seconds()
        self._largest = self._disk = 0.0
        self._is_over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def told(self) -> dict[str, float]:
        """Seconds (`s`), seconds of all cores (`CPU`), the most memory (`MB`), the most that was on disk (`disk`).

        Memory is that of all processes together, without files that are mapped.
        """
        passed = time.perf_counter() - self._started[0], _cpu_seconds() - self._started[1]
        self._is_over.set()
        self._sampler.join()
        return {"s": passed[0], "CPU": passed[1], "MB": self._largest, "disk": self._disk}

    def _sample(self) -> None:
        while True:
            self._largest = max(self._largest, sum(map(_own_megabytes, _family())))
            sizes = (_size(path) for path in self._folder.rglob("*"))
            self._disk = max(self._disk, sum(sizes) / 1e6)
            if self._is_over.wait(0.2):
                return


def _cpu_seconds() -> float:
    import resource

    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _family() -> list[str]:
    """The numbers of this process and of those that it has started."""
    children = Path("/proc/self/task").glob("*/children")
    return ["self", *(number for path in children for number in path.read_text().split())]


def _own_megabytes(process: str) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0  # it has ended meanwhile
    told: list[Any] = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(told[0]) * 1024 / 1e6 if told else 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


MEASURED = {"text,url": measure_rows, "phash": measure_hashes}


if __name__ == "__main__":
    main()
