"""Matching texts with half a million entries: the loop of MetaCLIP's code, pyahocorasick, and annotary.

pip install pyahocorasick psutil
python -m benchmarks.matching --work build/benchmarks

Entries and captions are made up: entries like those of MetaCLIP (names of WordNet, words, pairs of words), captions of
about twelve words that follow Zipf's law, with capitals, marks and words that are no entry.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from annotary.curation.entries import Entries, read_entries
from annotary.curation.entry_index import EntryIndex
from annotary.curation.match import english_entries

WORDS = 310_000
PAIRS = 103_346
MARKS = ",.;:?!`"
FREQUENT = (
    "the",
    "of",
    "and",
    "a",
    "in",
    "to",
    "with",
    "for",
    "on",
    "is",
    "by",
    "at",
    "photo",
    "image",
    "black",
)
NO_ENTRY = 0.4
"""Share of words that are no entry, so that a caption matches about seven, as those of MetaCLIP's pool that match do:
5.6 billion matches of half of 1.6 billion texts."""


def main() -> None:
    """Make the tables, run everything in turns, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--more", type=int, default=12_000_000, help="captions of the larger table")
    parser.add_argument(
        "--in-memory", type=int, default=100_000, help="captions of the comparison in memory"
    )
    parser.add_argument("--slow", type=int, default=60, help="captions for the loop")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = options.work / "matching"
    work.mkdir(parents=True, exist_ok=True)
    entries = entries_in(work / "entries.json")
    print(f"{len(entries):,} entries")
    compare_in_memory(entries, options.in_memory, options.slow, options.rounds)
    compare_tables(work, (options.captions, options.more), options.rounds)


def compare_in_memory(entries: Entries, count: int, slow: int, rounds: int) -> None:
    """The three ways on captions in memory, on one core, in turns; they must find the same."""
    import ahocorasick

    captions = captions_of(entries, count, seed=1)
    started = time.perf_counter()
    index = EntryIndex.build(entries)
    print(f"index: built in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    automaton = ahocorasick.Automaton()
    for place, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", place)
    automaton.make_automaton()
    print(f"pyahocorasick: built in {time.perf_counter() - started:.1f} s")

    def by_automaton() -> list[list[int]]:
        return [sorted({one for _, one in automaton.iter(spaced(text))}) for text in captions]

    data = "".join(captions).encode()
    offsets = np.cumsum([0, *(len(text.encode()) for text in captions)])
    buffer = np.frombuffer(data, np.uint8)
    rates: dict[str, list[float]] = {"pyahocorasick": [], "annotary": []}
    for _ in range(rounds):
        seconds, expected = timed(by_automaton)
        rates["pyahocorasick"].append(count / seconds)
        seconds, found = timed(lambda: index.match_buffer(buffer, offsets))
        rates["annotary"].append(count / seconds)
    lists = np.split(found.entries, found.offsets[1:-1])
    assert [one.tolist() for one in lists] == expected, "the two find different entries"
    spaced_entries = [f" {entry} " for entry in entries]
    seconds, loop = timed(lambda: [by_loop(text, spaced_entries) for text in captions[:slow]])
    assert loop == expected[:slow], "the loop finds other entries"
    print(f"{count:,} captions, {found.offsets[-1] / count:.1f} matches each; all find the same")
    print("| in memory, one core | texts/s | against the loop |")
    print("|---|---|---|")
    base = slow / seconds
    print(f"| loop over entries | {base:,.0f} | 1 |")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"| {name} | {rate:,.0f} | {rate / base:,.0f} |")


def compare_tables(work: Path, counts: Sequence[int], rounds: int) -> None:
    """From Parquet to Parquet, by one worker and by two, in turns; and the largest memory of all processes."""
    print(
        "\n| captions | workers | matching, s | texts/s | whole command, s | largest memory, MB |"
    )
    print("|---|---|---|---|---|---|")
    told = []
    for count in counts:
        table = table_of(work, count)
        runs: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
        for _ in range(rounds):
            for workers in runs:
                runs[workers].append(run(work, table, workers))
        steps = {workers: [step for step, *_ in found] for workers, found in runs.items()}
        for workers, found in runs.items():
            step, whole = (statistics.median(one[place] for one in found) for place in (0, 1))
            largest = max(one[2] for one in found)
            rate = f"{count / step:,.0f} | {whole:.1f} | {largest:.0f}"
            print(f"| {count:,} | {workers} | {step:.1f} | {rate} |", flush=True)
        ratio = statistics.median(one / two for one, two in zip(steps[1], steps[2], strict=True))
        told.append(f"{count:,} captions: two workers are {ratio:.2f}x as fast as one")
    print("\n".join(("", *told)))
    small, large = (statistics.median([step for step, *_ in one]) for one in (runs[1], runs[2]))
    print(
        f"a billion pairs: {1e9 / count * small / 3600:.2f} hours of one core, {1e9 / count * large / 3600:.2f} of two"
    )


def run(work: Path, table: Path, workers: int) -> tuple[float, float, float]:
    """The command: seconds of the step, of all, and the largest memory in MB."""
    import psutil

    out = work / "matched"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "annotary",
        "curate",
        "match",
        str(table),
        "--output",
        str(out),
    ]
    command += ["--entries", str(work / "entries.json"), "--workers", str(workers)]
    started = time.perf_counter()
    process = psutil.Popen(command, stderr=subprocess.PIPE, text=True)
    largest = 0.0
    while process.poll() is None:
        largest = max(largest, memory_of(process))
        time.sleep(0.05)
    total = time.perf_counter() - started
    told = process.stderr.read()
    if process.returncode:
        raise SystemExit(told)
    step = float(told.split(" rows matched in ")[1].split(" s", 1)[0])
    return step, total, largest


def memory_of(process: Any) -> float:
    """Memory of a process and those that it started, in MB, without files that are mapped."""
    import psutil

    found = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            for line in Path(f"/proc/{one.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    found += int(line.split()[1]) * 1024 / 1e6
        except (OSError, psutil.Error):
            continue
    return found


def entries_in(path: Path) -> Entries:
    """500,000 entries, made once."""
    if not path.exists():
        generator = np.random.default_rng(0)
        known = dict.fromkeys(english_entries())
        words = [word for word in known if " " not in word]
        known.update(dict.fromkeys(FREQUENT))
        while len(known) < 500_000 - PAIRS:
            known[word_of(generator)] = None
        singles = [entry for entry in known if " " not in entry]
        while len(known) < 500_000:
            first = singles[int(len(singles) * generator.random() ** 3)]
            second = words[int(len(words) * generator.random() ** 2)]
            known[f"{first} {second}"] = None
        path.write_text(json.dumps(list(known)[:500_000]))
    return read_entries(path)


def word_of(generator: np.random.Generator) -> str:
    """A word of syllables, of which some begin with a capital."""
    syllables = generator.integers(0, len(_SYLLABLES), generator.integers(2, 5))
    word = "".join(_SYLLABLES[one] for one in syllables)
    return word.capitalize() if generator.random() < 0.4 else word


_SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s")]


def captions_of(entries: Entries, count: int, seed: int) -> list[str]:
    """Captions: words by Zipf's law; some are no entry, some are entries of several words, some have marks."""
    generator = np.random.default_rng(seed)
    pool = np.array(
        [*FREQUENT, *(entries[i] for i in np.random.default_rng(5).permutation(len(entries)))]
    )
    chance = 1 / np.arange(1, len(pool) + 1)
    chance /= chance.sum()
    cumulative = np.cumsum(chance)
    captions = []
    for start in range(0, count, 50_000):
        lengths = generator.poisson(10.5, min(50_000, count - start)) + 1
        places = np.searchsorted(cumulative, generator.random(lengths.sum())).clip(0, len(pool) - 1)
        words = pool[places].tolist()
        for place in np.flatnonzero(generator.random(len(words)) < NO_ENTRY):
            words[place] = f"{words[place]}x{place % 977}"
        for place in np.flatnonzero(generator.random(len(words)) < 0.06):
            words[place] += MARKS[place % 4]
        edges = np.cumsum([0, *lengths])
        captions += [" ".join(words[first:last]) for first, last in pairwise(edges)]
    return captions


def table_of(work: Path, count: int) -> Path:
    """A Parquet table of captions and addresses, made once."""
    import pyarrow as pa
    from pyarrow import parquet

    path = work / f"pairs-{count}.parquet"
    if not path.exists():
        entries = read_entries(work / "entries.json")
        schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
        partial = path.with_suffix(".part")
        with parquet.ParquetWriter(partial, schema) as writer:
            for start in range(0, count, 125_000):
                size = min(125_000, count - start)
                urls = [f"https://example.org/{start + i:09d}.jpg" for i in range(size)]
                captions = captions_of(entries, size, seed=100 + start)
                writer.write_table(pa.table([urls, captions], schema))
        partial.rename(path)
    return path


def spaced(text: str) -> str:
    """A text as the rule has it (`spacing` of MetaCLIP)."""
    text = f" {text} "
    for mark in MARKS:
        text = text.replace(mark, f" {mark} ")
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def by_loop(text: str, spaced_entries: Sequence[str]) -> list[int]:
    """The entries of a text as MetaCLIP's code finds them: each is looked for."""
    text = spaced(text)
    return [place for place, entry in enumerate(spaced_entries) if entry in text]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main()
