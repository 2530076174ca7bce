"""Resident memory of a run over 1,000 and over 20,000 images.

python -m benchmarks.memory --photos ../shared/data/coco/images --work build/benchmarks
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.photos import many_names


def sampled(command: list[str]) -> tuple[list[float], float]:
    """Resident memory in MB every fifth of a second while a command runs, and its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    watched = psutil.Process(process.pid)
    samples = []
    while process.poll() is None:
        try:
            samples.append(watched.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return samples, time.perf_counter() - started


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000])
    options = parser.parse_args()
    print(
        "| images | median MB | largest MB | last tenth, median MB | images/s |\n|---|---|---|---|---|"
    )
    for count in options.counts:
        folder = many_names(options.photos, options.work / f"many-{count}", count)
        output = options.work / f"many-{count}.jsonl"
        command = [sys.executable, "-m", "annotary", "tag", str(folder), "--output", str(output)]
        samples, seconds = sampled([*command, "--on-existing", "overwrite", "--quiet"])
        lines = sum(1 for _ in output.open("rb"))
        if lines != count:
            raise SystemExit(f"{lines} lines for {count} images")
        late = statistics.median(samples[-max(1, len(samples) // 10) :])
        cells = (statistics.median(samples), max(samples), late)
        print(
            f"| {count:,} | {' | '.join(f'{cell:.0f}' for cell in cells)} | {count / seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
