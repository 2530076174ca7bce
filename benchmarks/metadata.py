"""How long a list of entries takes to make of counts as large as Wikipedia's, and of captions, and in how much memory.

python -m benchmarks.metadata --work build/benchmarks
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np


def main() -> None:
    """Make the files once, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="where the files go")
    parser.add_argument("--words", type=int, default=2_000_000, help="different words")
    parser.add_argument("--pairs", type=int, default=5_000_000, help="different pairs of words")
    parser.add_argument("--views", type=int, default=5_000_000, help="lines of hourly dumps")
    parser.add_argument("--captions", type=int, default=500_000)
    options = parser.parse_args()
    folder = options.work / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(options.words)
    files = {
        "unigrams": _made(folder / f"unigrams-{options.words}.tsv", _unigrams(names)),
        "bigrams": _made(folder / f"bigrams-{options.pairs}.tsv", _bigrams(names, options.pairs)),
        "titles": _made(folder / f"views-{options.views}.txt", _views(names, options.views)),
        "captions": _made(folder / f"{options.captions}.csv", _captions(names, options.captions)),
    }
    counts = [f"--{name}={files[name]}" for name in ("unigrams", "bigrams", "titles")]
    print("what | entries | s | CPU s | largest MB")
    for what, given in {
        "English WordNet alone": [],
        "words": counts[:1],
        "words and titles": [counts[0], counts[2]],
        "words, pairs and titles": [*counts, "--bigram-pmi=20"],
        "captions": [f"--captions={files['captions']}", "--bigram-pmi=10"],
    }.items():
        print(" | ".join((what, *_measured(given, folder / "entries.txt"))), flush=True)


def _measured(given: list[str], output: Path) -> tuple[str, ...]:
    """Entries, seconds, seconds of processors, and megabytes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.metadata", "--run", str(output), *given]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{int(told[0]):,}", f"{seconds:.1f}", f"{spent:.1f}", f"{int(told[1]) // 1024:,}"


def run(output: str, given: list[str]) -> None:
    """Make one list in this process, and print how many entries it has and how much memory it took, in KiB."""
    from annotary.cli import main as annotary

    try:
        annotary(["curate", "metadata", "--output", output, "--quiet", *given])
    except SystemExit as stopped:
        if stopped.code:
            raise
    with open(output, encoding="utf-8") as file:
        print(sum(1 for _ in file), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _made(path: Path, lines: Iterator[str]) -> Path:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.rename(path)
    return path


def _names(count: int) -> list[str]:
    """Words, the frequent ones short."""
    letters = "etaoinshrdlu"
    found = []
    for number in range(count):
        word, rest = "", number + 1
        while rest:
            rest, place = divmod(rest - 1, len(letters))
            word += letters[place]
        found.append(word)
    return found


def _unigrams(names: list[str]) -> Iterator[str]:
    """Counts by Zipf's law: the commonest word 300 million times, as in Wikipedia."""
    for rank, name in enumerate(names, 1):
        yield f"{name}\t{300_000_000 // rank}\n"


def _ranks(count: int, most: int, seed: int) -> Iterator[int]:
    """Ranks that are drawn by Zipf's law."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (np.exp(rng.random(count) * np.log(most)) - 1).astype(np.int64).tolist()


def _bigrams(names: list[str], count: int) -> Iterator[str]:
    seen: Iterable[tuple[int, int]] = zip(
        _ranks(100_000, len(names), 1), _ranks(100_000, len(names), 2), strict=False
    )
    for number, (first, second) in enumerate(islice(seen, count)):
        yield f"{names[first]}\t{names[second]}\t{1 + 1000 // (1 + number % 997)}\n"


def _views(names: list[str], count: int) -> Iterator[str]:
    for number, rank in enumerate(islice(_ranks(100_000, len(names), 3), count)):
        project = ("en", "en.m", "de", "fr")[number % 4]
        yield f"{project} {names[rank]}_{names[rank // 2]} {1 + number % 200} 0\n"


def _captions(names: list[str], count: int) -> Iterator[str]:
    ranks = _ranks(100_000, 300_000, 4)
    yield "caption\n"
    for number in range(count):
        words = " ".join(names[rank] for rank in islice(ranks, 4 + number % 16))
        yield f'"{words}, {names[number % 1000]}."\n'


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], sys.argv[3:])
    else:
        main()
