"""Lists of entries (MetaCLIP's metadata): read from files, and checked."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from annotary.errors import MissingExtra, UnknownName, UsageError
from annotary.sources._paths import reason

COLUMN: Final = "entry"
"""The column of a table that holds the entries, as `annotary curate metadata` writes it."""

SUFFIXES: Final = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""Forms of lists. All but Parquet may be compressed: `entries.txt.gz`."""

_WITHOUT_SPACES = "bo dz ja km lo my ryu th zh zh-classical zh-yue yue lzh wuu gan hak nan"
_WITH_SPACES = """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn br bs ca ce ch co cr cs cu cv cy da de dv ee el en eo es
    et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu jv ka kg ki
    kj kk kl kn ko kr ks ku kv kw ky la lb lg li ln lt lu lv mg mh mi mk ml mn mr ms mt na nb nd ne ng nl nn no nr nv
    ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te
    tg ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zu
"""

LANGUAGES_WITHOUT_SPACES: Final = frozenset(_WITHOUT_SPACES.split())
"""Codes of languages whose words are not set apart by spaces: those of MetaCLIP 2, and other codes for Chinese."""

LANGUAGES_WITH_SPACES: Final = frozenset(_WITH_SPACES.split())
"""Codes of the other languages: ISO 639-1."""

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Entries(Sequence[str]):
    """Entries in order. The id of an entry is its place, from 0: in a text file the number of its line."""

    texts: tuple[str, ...]
    source: str = "entries"
    """Where they come from, for messages."""
    duplicates: tuple[int, ...] = field(init=False)
    """Ids of entries that are equal to an earlier one. They keep their ids, but all matches are the earlier one's."""

    def __post_init__(self) -> None:
        first: dict[str, int] = {}
        again = tuple(
            place for place, text in enumerate(self.texts) if first.setdefault(text, place) != place
        )
        object.__setattr__(self, "duplicates", again)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: Any) -> Any:
        return self.texts[place]

    def notice(self) -> str | None:
        """One line about entries that come twice, or None where all are different."""
        if not self.duplicates:
            return None
        named = ", ".join(repr(self.texts[place]) for place in self.duplicates[:_NAMED])
        more = len(self.duplicates) - _NAMED
        return (
            f"{self.source}: {len(self.duplicates):,} of {len(self):,} entries are equal to an earlier one, "
            f"which has their matches: {named}{f' and {more:,} more' if more > 0 else ''}"
        )


def language_rule(language: str | None) -> int:
    """Which rule a language is matched by: 2 (MetaCLIP 2) for one that is written without spaces, else 1.

    Codes are those of Wikipedias and ISO 639-1; `zh_yue`, `zh-yue` and `ZH-Yue` are the same.

    Raises:
        UnknownName: No such code.
    """
    if language is None:
        return 1
    code = language.lower().replace("_", "-")
    if code in LANGUAGES_WITHOUT_SPACES:
        return 2
    if code in LANGUAGES_WITH_SPACES:
        return 1
    raise UnknownName("language", language, LANGUAGES_WITHOUT_SPACES | LANGUAGES_WITH_SPACES)


def read_entries(path: str | os.PathLike[str]) -> Entries:
    """Read a list of entries.

    Args:
        path: Text with an entry a line, in UTF-8 (only LF and CRLF end a line, and a last one that ends nothing is not
            needed); JSON with a list of texts, as MetaCLIP's `metadata.json`; or JSON Lines, CSV, TSV or Parquet with a
            column `entry`. All but Parquet may end in `.gz`.

    Raises:
        UsageError: It cannot be read, has no entries, or one of them is no text.
    """
    path = Path(path)
    suffix, is_compressed = path.suffix.lower(), path.suffix.lower() == ".gz"
    if is_compressed:
        suffix = Path(path.stem).suffix.lower()
    if suffix not in SUFFIXES or (is_compressed and suffix == ".parquet"):
        raise UsageError(
            f"{path} is no list of entries that is known: {', '.join(SUFFIXES)}, or text with .gz"
        )
    try:
        if suffix == ".parquet":
            found = _from_parquet(path)
        else:
            found = _from_text(path, suffix, _text(path, is_compressed=is_compressed))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    except EOFError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    for place, entry in enumerate(found):
        if not isinstance(entry, str):
            raise UsageError(f"{path}: entry {place} is no text but {_short(entry)}")
    if not found:
        raise UsageError(f"{path} holds no entries")
    return Entries(tuple(found), str(path))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Sequence[str]) -> str:
    return _short(list(names))[1:-1] if names else "none"


def _text(path: Path, *, is_compressed: bool) -> str:
    import zlib

    data = path.read_bytes()
    try:
        if is_compressed:
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not UTF-8 at line {line}") from None
    except zlib.error as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _from_text(path: Path, suffix: str, text: str) -> list[Any]:
    if suffix == ".txt":
        return _lines(text)
    if suffix == ".json":
        return _from_json(path, text)
    if suffix == ".jsonl":
        return _from_json_lines(path, text)
    return _from_cells(path, text, "\t" if suffix == ".tsv" else ",")


def _lines(text: str) -> list[str]:
    # Not `splitlines`: it also cuts at form feeds, at U+2028 and at a lone CR, and ids would not be numbers of lines.
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _from_json(path: Path, text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, list):
        raise UsageError(f"{path} must hold a list of texts, and holds {_short(found)}")
    return found


def _from_json_lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(_lines(text), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(record, dict) or COLUMN not in record:
            raise UsageError(f"{path}, line {number} has no field {COLUMN!r}: {_short(record)}")
        found.append(record[COLUMN])
    return found


def _from_cells(path: Path, text: str, delimiter: str) -> list[Any]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found = []
    try:
        header = next(rows, [])
        if COLUMN not in header:
            raise UsageError(f"{path} has no column {COLUMN!r}; its columns are {_listed(header)}")
        place = header.index(COLUMN)
        for row in rows:
            if len(row) != len(header):
                raise UsageError(
                    f"{path}, line {rows.line_num} has {len(row)} cells, and the header {len(header)}"
                )
            found.append(row[place])
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}") from None
    return found


def _from_parquet(path: Path) -> list[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("Reading Parquet", "curate") from None
    try:
        names = pq.read_schema(path).names
        if COLUMN not in names:
            raise UsageError(f"{path} has no column {COLUMN!r}; its columns are {_listed(names)}")
        column: list[Any] = pq.read_table(path, columns=[COLUMN]).column(COLUMN).to_pylist()
    except pa.ArrowException as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return column
