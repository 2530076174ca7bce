"""How often words, pairs of words and titles occur: files of counts read, summed in little memory, and PMI.

Files are text in UTF-8, may be compressed with gzip, and are read line by line. A line that says nothing is skipped and
told, with its number.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import io
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.sources._paths import reason

Counted = tuple[str, int]

BETWEEN = "\t"
"""What stands between the words of a pair where pairs are counted: nothing that a word can hold."""

MOST_COUNT = 2**63 - 1
"""The largest count, and the largest sum of counts of one text: what tables can hold."""

_MOST_TOLD = 100  # bad lines that are kept to be listed
_MOST_HELD = 2_000_000  # texts in memory, which take some 300 MB
_MOST_RUNS = 64  # files that are open at once
_LONGEST_LINE = 1024 * 1024  # bytes
_LOOKED_AT = 1000  # lines by which the columns of a file are told apart
_COUNT_NAMES = frozenset({"count", "counts", "frequency", "freq", "n", "views", "pageviews"})
_BUFFER = 256 * 1024
_HOURLY = 4  # cells of a line of an hourly dump: project, title, views, bytes


@dataclass
class Malformed:
    """Lines that say nothing: how many, and the first of them."""

    count: int = 0
    """How many there are."""

    told: list[str] = field(default_factory=list)
    """The first hundred: file, number of the line from 1, and what is wrong."""

    def add(self, path: Path, number: int, why: str) -> None:
        """One more."""
        self.count += 1
        if len(self.told) < _MOST_TOLD:
            self.told.append(f"{path}:{number}: {why}")


class Row(NamedTuple):
    """A line of a file of counts.

    Attributes:
        number: Of the line, from 1.
        texts: What is counted: a word or title, or the words of a pair.
        count: How often.
        project: Of an hourly dump of page views; None elsewhere.
    """

    number: int
    texts: tuple[str, ...]
    count: int  # type: ignore[assignment]
    project: str | None = None


class Counts:
    """Sums of counts of any number of texts, in a bounded amount of memory: what is too much goes to temporary files.

    Iterating gives each text with its sum, in the order of code points; it may be done again.

    Args:
        most_held: Texts that are kept in memory.
    """

    def __init__(self, most_held: int = _MOST_HELD) -> None:
        self._most = most_held
        self._held: dict[str, int] = {}
        self._runs: list[Path] = []
        self._made = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, text: str, count: int) -> None:
        """Count a text so many times more. It holds no line break."""
        held = self._held
        held[text] = held.get(text, 0) + count
        if len(held) >= self._most:
            self._spill()

    def __iter__(self) -> Iterator[Counted]:
        if not self._runs:
            yield from sorted(self._held.items())
            return
        with ExitStack() as stack:
            runs: list[Iterable[Counted]] = [_run(stack, path) for path in self._runs]
            yield from _summed([*runs, sorted(self._held.items())])

    def _spill(self) -> None:
        self._runs.append(self._written(sorted(self._held.items())))
        self._held = {}
        if len(self._runs) >= _MOST_RUNS:
            with ExitStack() as stack:
                merged = self._written(_summed([_run(stack, path) for path in self._runs]))
            for path in self._runs:
                path.unlink()
            self._runs = [merged]

    def _written(self, pairs: Iterable[Counted]) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="annotary-counts-")
        path = Path(self._folder.name, str(self._made))
        self._made += 1
        with path.open("wb") as file:
            file.writelines(f"{text}\t{count}\n".encode() for text, count in pairs)
        return path


def _run(stack: ExitStack, path: Path) -> Iterator[Counted]:
    for line in stack.enter_context(path.open("rb")):
        text, _, count = line.rpartition(b"\t")
        yield text.decode(), int(count)


def _summed(runs: Sequence[Iterable[Counted]]) -> Iterator[Counted]:
    for text, same in groupby(heapq.merge(*runs), key=itemgetter(0)):
        yield text, sum(count for _, count in same)


class WordCounts:
    """The counts of very many words, at 16 bytes a word: words are known by a hash of 64 bits.

    Of 20 million words, two have the same hash in one of 100,000 cases.

    Attributes:
        total: The sum of all counts.
        distinct: How many words there are.
    """

    def __init__(self) -> None:
        self.total = 0
        self.distinct = 0
        self._digests = bytearray()
        self._sums: list[npt.NDArray[np.int64]] = []
        self._waiting: list[int] = []
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, word: str | None, count: int) -> None:
        """Add a word that was not added yet; None for one that is never asked for."""
        self.total += count
        self.distinct += 1
        if word is None:
            return
        self._digests += _digest(word)
        self._waiting.append(count)
        if len(self._waiting) >= 65_536:
            self._pack()

    def freeze(self) -> None:
        """Say that all words were added."""
        self._pack()
        hashes = np.frombuffer(self._digests, np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._counts = np.concatenate([self._counts, *self._sums])[order]
        self._digests, self._sums = bytearray(), []

    def of(self, words: Sequence[str]) -> list[int]:
        """The count of each of some words; 0 for what was not added."""
        if not len(self._hashes):
            return [0] * len(words)
        wanted = np.frombuffer(b"".join(map(_digest, words)), np.uint64)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        found = np.where(self._hashes[places] == wanted, self._counts[places], 0)
        return cast(list[int], found.tolist())

    def _pack(self) -> None:
        self._sums.append(np.array(self._waiting, np.int64))
        self._waiting = []


def _digest(word: str) -> bytes:
    return blake2b(word.encode(), digest_size=8).digest()


def pointwise_mutual_information(together: int, first: int, second: int, total: int) -> float:
    """How much oftener two words follow each other than by chance, in bits: nltk's `BigramAssocMeasures.pmi`.

    Args:
        together: How often the one follows the other.
        first: How often the first word occurs.
        second: How often the second does.
        total: The sum of the counts of all words, as nltk's collocation finder takes it.
    """
    return math.log2(together * total) - math.log2(first * second)


def pairs_with_pmi(pairs: Iterable[Counted], words: WordCounts) -> Iterator[tuple[str, int, float]]:
    """Each pair with its count and PMI; a PMI of -inf where a word of it has no count.

    Args:
        pairs: Two words with `BETWEEN` between them, and their count.
        words: The counts of all words.
    """
    pairs = iter(pairs)
    while some := list(islice(pairs, 65_536)):
        both = [text.split(BETWEEN) for text, _ in some]
        firsts = words.of([first for first, _ in both])
        seconds = words.of([second for _, second in both])
        for (text, count), first, second in zip(some, firsts, seconds, strict=True):
            if first and second:
                score = pointwise_mutual_information(count, first, second, words.total)
                yield text, count, score
            else:
                yield text, count, -math.inf


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Files, each once, and all files of folders and those within; names that begin with "_" or "." are passed over.

    Raises:
        UsageError: A folder has none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = [
            one
            for one in sorted(path.rglob("*"))
            if one.is_file()
            and not any(part.startswith(("_", ".")) for part in one.relative_to(path).parts)
        ]
        if not below:
            raise UsageError(f"{path} is a folder without files")
        found += below
    return list(dict.fromkeys(found))


def read_unigrams(path: Path, malformed: Malformed) -> Iterator[Row]:
    """Words and their counts: `word<TAB>count` or `count<TAB>word`, spaces for the TAB, or CSV."""
    return _rows(path, malformed, 1, lambda line: line.rsplit(None, 1))


def read_bigrams(path: Path, malformed: Malformed) -> Iterator[Row]:
    """Pairs of words: `first<TAB>second<TAB>count`, `first second<TAB>count`, the count in front, or CSV."""
    return _rows(path, malformed, 2, str.split)


def read_titles(path: Path, malformed: Malformed) -> Iterator[Row]:
    """Titles and their views: `title<TAB>views`, CSV, or the hourly dumps of Wikimedia, `en Title 12 0`."""
    if _is_csv(path):
        yield from _rows(path, malformed, 1, lambda line: [line])
        return
    lines = ((number, line) for number, line in lines_of(path, malformed) if line.strip())
    first = list(islice(lines, _LOOKED_AT))
    if any("\t" in line for _, line in first):
        cells = ((number, line.split("\t")) for number, line in chain(first, lines))
        yield from _told_rows(path, malformed, 1, cells)
        return
    for number, line in chain(first, lines):
        parts = line.split(" ")
        count = _whole(parts[2]) if len(parts) == _HOURLY else None
        if count is None:
            malformed.add(path, number, "neither `title<TAB>views` nor `project Title views bytes`")
        else:
            yield Row(number, (parts[1],), count, parts[0])


def _rows(
    path: Path, malformed: Malformed, words: int, split: Callable[[str], list[str]]
) -> Iterator[Row]:
    if _is_csv(path):
        yield from _told_rows(path, malformed, words, _csv_cells(path, malformed))
        return
    cells = (
        (number, line.split("\t") if "\t" in line else split(line))
        for number, line in lines_of(path, malformed)
        if line.strip()
    )
    yield from _told_rows(path, malformed, words, cells)


def _told_rows(
    path: Path, malformed: Malformed, words: int, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[Row]:
    """Rows of cells with a count among them."""
    first = list(islice(rows, _LOOKED_AT))
    place, has_head = _count_place([cells for _, cells in first])
    for number, cells in chain(first[has_head:], rows):
        if len(cells) < 2 or not -len(cells) <= place < len(cells):
            malformed.add(path, number, "no count in it")
            continue
        count = _whole(cells.pop(place))
        texts = cells[0].split() if words == 2 and len(cells) == 1 else cells
        if count is None:
            malformed.add(path, number, "the count is no whole number from 1 to 2^63 - 1")
        elif len(texts) != words:
            wanted = "one text and a count" if words == 1 else "two words and a count"
            malformed.add(path, number, f"not {wanted}")
        else:
            row = Row(number, tuple([text.strip() for text in texts]), count)
            if [text for text in row.texts if has_line_break(text) or BETWEEN in text]:
                malformed.add(path, number, "a line break or TAB in it")
            else:
                yield row


def has_line_break(text: str) -> bool:
    """Whether a text would be cut by any reader of lines."""
    return not text.isprintable() and len(text.splitlines()) > 1


def _count_place(rows: Sequence[list[str]]) -> tuple[int, bool]:
    """Which column the count is in, and whether the first row is a head.

    It is the one that the head calls so; else the last one, unless only the first has whole numbers throughout.
    """
    if not rows:
        return -1, False
    names = [cell.strip().lower() for cell in rows[0]]
    named = [i for i, name in enumerate(names) if name in _COUNT_NAMES]
    if named and _whole(rows[0][-1]) is None and _whole(rows[0][0]) is None:
        return named[-1], True
    firsts = [_whole(row[0]) is not None for row in rows if len(row) > 1]
    lasts = [_whole(row[-1]) is not None for row in rows if len(row) > 1]
    return (0 if firsts and sum(firsts) > sum(lasts) else -1), False


def _whole(text: str) -> int | None:
    """A count; None when it is none."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    count = int(text)
    return count if 0 < count <= MOST_COUNT else None


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def _csv_cells(path: Path, malformed: Malformed) -> Iterator[tuple[int, list[str]]]:
    taken = [0]

    def lines() -> Iterator[str]:
        for number, line in lines_of(path, malformed):
            taken[0] = number
            yield line + "\n"

    reader = csv.reader(lines())
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            malformed.add(path, taken[0], str(error))
            continue
        if cells:
            yield taken[0], cells


def lines_of(path: Path, malformed: Malformed) -> Iterator[tuple[int, str]]:
    """The lines of a file without their ends, numbered from 1.

    Args:
        path: The file; gzip is told by its first bytes.
        malformed: Gets lines that are not UTF-8 or longer than 1 MiB.

    Raises:
        UsageError: It cannot be read to its end.
    """
    try:
        with _opened(path) as file:
            number = 0
            while raw := file.readline(_LONGEST_LINE):
                number += 1
                if not raw.endswith(b"\n") and len(raw) == _LONGEST_LINE:
                    malformed.add(path, number, "longer than 1 MiB")
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(_LONGEST_LINE)
                    continue
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    malformed.add(path, number, "not UTF-8")
                    continue
                yield number, text.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        told = reason(error) if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}: {told}") from error


def _opened(path: Path) -> BinaryIO:
    file = path.open("rb")
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return io.BufferedReader(_Unpacked(file), _BUFFER) if is_packed else file


class _Unpacked(gzip.GzipFile):
    """What a compressed file holds; the file is closed with it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file)
        self._packed = file

    def close(self) -> None:
        super().close()
        self._packed.close()


def not_told(malformed: Malformed) -> dict[str, Any]:
    """The bad lines for a report."""
    return {"count": malformed.count, "first": malformed.told}
