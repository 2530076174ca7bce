"""Time from the start of the process to the first tag, and to the end of `--help`.

python -m benchmarks.cold_start --photo examples/coffee.jpg
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def until_first_byte(command: list[str]) -> float:
    """Seconds from the start of a process to its first byte on standard output."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        taken = time.perf_counter() - started
        process.stdout.read()
    if not first:
        raise SystemExit(f"{' '.join(command)} printed nothing")
    return taken


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    annotary = [sys.executable, "-m", "annotary"]
    print("| from the start of the process | median s | least | most |\n|---|---|---|---|")
    for name, command in (
        ("to the first tag of one photo", [*annotary, "tag", str(options.photo)]),
        ("to the help text", [*annotary, "--help"]),
    ):
        until_first_byte(command)
        times = [until_first_byte(command) for _ in range(options.runs)]
        cells = (statistics.median(times), min(times), max(times))
        print(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
