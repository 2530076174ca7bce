"""What chosen tags are called, which of them say nothing new, and the order they stand in.

Rules are worked out once for a vocabulary, so that an image costs only its own few tags:

    vocabulary name ──aliases──▶ ──replacements──▶ name ──implications──▶ which names it makes superfluous
                                                   └───── spaces ───────▶ how it is shown
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import translate
from pathlib import Path
from typing import Any, Literal

from annotary.cards import Vocabulary
from annotary.errors import UsageError

Order = Literal["score", "vocabulary", "category"]

CATEGORY_ORDER = ("rating", "character", "copyright", "series", "artist", "general", "")
"""Who comes first with `--order category`; categories that are not here come last, in the vocabulary's order."""

_NOT_ACTIVE = ("deleted", "retired", "rejected", "pending")
_TWO_LETTERS = re.compile(r"[A-Za-z]{2}")
_WORDS = re.compile(r"[_\s]+")


@dataclass(frozen=True, slots=True)
class TagRules:
    """What tags are called, and their order."""

    aliases: Path | None = None
    """A file of names and what to call them instead: 'old,new' on each line, or a dump of Danbooru's aliases
    (JSON Lines)."""

    replace: tuple[str, ...] = field(default=(), metadata={"metavar": "OLD=NEW"})
    """Call a tag something else: 'old=new'; 'old=' leaves it out. May be given several times."""

    implications: Path | None = None
    """A file of what follows from what: 'special,general' on each line, or a dump of Danbooru's implications. The
    general tag is left out where the special one is given."""

    drop_substrings: bool = False
    """Leave out a tag whose words are all within a longer one: 'hair' beside 'long_hair'."""

    spaces: bool = False
    """Write spaces for underscores, but leave faces such as ^_^ alone."""

    order: Order = "score"
    """What stands first: the best score, the vocabulary's first tag, or categories (characters before general tags)."""

    first: tuple[str, ...] = field(default=(), metadata={"metavar": "PATTERN"})
    """Move tags that match this pattern to the front. May be given several times, in their order."""

    def __post_init__(self) -> None:
        if self.order not in ("score", "vocabulary", "category"):
            raise ValueError(f"order must be score, vocabulary or category, but got {self.order!r}")
        for name in ("replace", "first"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be several texts, not one")

    def settings(self) -> dict[str, Any]:
        """What tags depend on, in one way of writing; files by their content."""
        return {
            "aliases": digest_of(self.aliases),
            "replace": list(self.replace),
            "implications": digest_of(self.implications),
            "drop_substrings": self.drop_substrings,
            "spaces": self.spaces,
            "order": None if self.order == "score" else self.order,
            "first": list(self.first),
        }


class RuledNames:
    """The names of a vocabulary under rules.

    Args:
        vocabulary: Of the model.
        rules: What to do to its names.

    Attributes:
        names: What each tag of the vocabulary is called after aliases and replacements; empty for one left out.
        shown: The same, as it is written.

    Raises:
        UsageError: A rule does not fit the vocabulary, or a file cannot be read.
    """

    def __init__(self, vocabulary: Vocabulary, rules: TagRules) -> None:
        self._rules = rules
        self.names = _renamed(vocabulary, rules)
        write = with_spaces if rules.spaces else str
        self.shown = tuple(write(name) for name in self.names)
        self._implied = _implied(vocabulary, self.names, rules.implications)
        self._words = [tuple(_WORDS.split(name.casefold().strip("_ "))) for name in self.names]
        self._category_rank = _category_ranks(vocabulary.categories)
        self._places: dict[str, list[int]] = {}
        for place, row in enumerate(zip(vocabulary.names, self.names, self.shown, strict=True)):
            for name in {*row} - {""}:
                self._places.setdefault(name, []).append(place)
        self._first = [set(self.matching(pattern, "to stand first")) for pattern in rules.first]

    def places(self, pattern: str) -> list[int]:
        """The tags that a pattern matches, by any of their names.

        A pattern that is a tag's name is that tag alone; also where only case, or underscores for spaces, differ.

        Args:
            pattern: A name, or one with wildcards: `*`, `?`, `[...]`.
        """
        found = self._places.get(pattern)
        if found is not None:
            return found
        is_match = re.compile(translate(pattern)).match
        matches = (
            place for name, places in self._places.items() if is_match(name) for place in places
        )
        loosely = _loosely(pattern)
        return sorted(set(matches)) or [
            place
            for name, places in self._places.items()
            if _loosely(name) == loosely
            for place in places
        ]

    def matching(self, pattern: str, purpose: str) -> list[int]:
        """The same, where a pattern that matches nothing is an error.

        Args:
            pattern: A name, or one with wildcards.
            purpose: What for, in the message ("to be kept").

        Raises:
            UsageError: It matches no tag; the message names one that is like it.
        """
        found = self.places(pattern)
        if not found:
            close = get_close_matches(pattern, self._places, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if "," in pattern:
                hint = "; give the option once for each pattern, or '@FILE'"
            total = len(self.names)
            raise UsageError(f"{pattern!r}, {purpose}, matches none of the {total:,} tags{hint}")
        return found

    def without_superfluous(self, indices: Iterable[int]) -> list[int]:
        """Tags without those that say nothing new beside the others.

        Args:
            indices: Tags, the best first. Of several with one name the first stays.
        """
        unique: dict[str, int] = {}
        for index in indices:
            if self.names[index]:
                unique.setdefault(self.names[index], index)
        implied: set[str] = set()
        for name in unique:
            implied |= self._implied.get(name, frozenset())
        kept = [index for name, index in unique.items() if name not in implied]
        if self._rules.drop_substrings:
            parts = {part for index in kept for part in _inner(self._words[index])}
            kept = [index for index in kept if self._words[index] not in parts]
        return kept

    def ordered(self, indices: Sequence[int]) -> list[int]:
        """Tags, given with the best first, in the order that is asked for."""
        found = list(indices)
        if self._rules.order == "vocabulary":
            found.sort()
        elif self._rules.order == "category":
            found.sort(key=self._category_rank.__getitem__)
        for places in reversed(self._first):
            found.sort(key=lambda index: index not in places)
        return found


def with_spaces(name: str) -> str:
    """A name with spaces for underscores, unless it is a face: one without two letters side by side.

    Of JoyTag's 5,813 names that leaves alone exactly ^_^ >_< o_o =_= +_+ |_| @_@ 0_0 >_o and x_x.
    """
    is_face = name.isascii() and not _TWO_LETTERS.search(name)
    return name if is_face else name.replace("_", " ").strip() or name


def _loosely(name: str) -> str:
    return with_spaces(name.casefold())


def digest_of(path: Path | None) -> str | None:
    """Twelve hexadecimal digits of a file's content; None for no file.

    Raises:
        UsageError: It cannot be read.
    """
    return None if path is None else hashlib.sha256(_bytes_of(path)).hexdigest()[:12]


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a file: two columns of CSV or TSV, or JSON Lines as Danbooru dumps aliases and implications.

    Columns may have a head (`antecedent_name,consequent_name`). Blank lines and lines that begin with "# " say nothing.

    Raises:
        UsageError: It cannot be read, or a line holds no pair; the message names the line.
    """
    try:
        text = _bytes_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("# "):
            continue
        pair = _pair(line)
        if pair is None:
            raise UsageError(f"{path}, line {number}: expected two names, but got {line[:60]!r}")
        if pair != ("antecedent_name", "consequent_name") and all(pair):
            yield pair


def _pair(line: str) -> tuple[str, str] | None:
    """The two names of a line; empty ones where it does not count."""
    if line.startswith("{"):
        try:
            row = json.loads(line)
            if row.get("status") in _NOT_ACTIVE:
                return "", ""
            return str(row["antecedent_name"]), str(row["consequent_name"])
        except (ValueError, KeyError):
            return None
    try:
        cells = line.split("\t") if "\t" in line else next(csv.reader([line]))
    except csv.Error:
        return None
    return (cells[0].strip(), cells[1].strip()) if len(cells) >= 2 else None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _renamed(vocabulary: Vocabulary, rules: TagRules) -> tuple[str, ...]:
    """What every tag is called; empty for those that are left out."""
    names = dict(zip(vocabulary.names, vocabulary.names, strict=True))
    if rules.aliases is not None:
        aliases = dict(read_pairs(rules.aliases))
        if not aliases.keys() & names.keys():
            raise UsageError(f"{rules.aliases} renames none of the {len(names):,} tags")
        names = {name: _last(name, aliases, rules.aliases) for name in names}
    for told in rules.replace:
        old, new = _replacement(told, names)
        names = {name: new if old in (name, now) else now for name, now in names.items()}
    return tuple(names.values())


def _last(name: str, aliases: Mapping[str, str], path: Path) -> str:
    """The end of a chain of aliases."""
    seen = [name]
    while (following := aliases.get(seen[-1])) is not None and following != seen[-1]:
        if following in seen:
            raise UsageError(f"{path} goes in circles: {' -> '.join([*seen, following])}")
        seen.append(following)
    return seen[-1]


def _replacement(told: str, names: Mapping[str, str]) -> tuple[str, str]:
    """The two sides of 'old=new'. As names may hold the sign, the one counts before which a known tag stands."""
    known = {*names, *names.values()}
    ends = [place for place, sign in enumerate(told) if sign == "=" and place]
    found = [place for place in ends if told[:place].strip() in known]
    if not ends:
        raise UsageError(f"replace must be 'old=new', but got {told!r}")
    if not found:
        old = told[: ends[0]]
        raise UsageError(f"{old!r}, to be replaced, is none of the {len(names):,} tags")
    place = found[-1]
    return told[:place].strip(), told[place + 1 :].strip()


def _implied(
    vocabulary: Vocabulary, names: Sequence[str], path: Path | None
) -> dict[str, frozenset[str]]:
    """For every name all that follows from it, directly or over others, but not what it follows from itself."""
    if path is None:
        return {}
    called = {old: new for old, new in zip(vocabulary.names, names, strict=True) if new}
    direct: dict[str, set[str]] = {}
    for special, general in read_pairs(path):
        direct.setdefault(called.get(special, special), set()).add(called.get(general, general))
    known = set(names)
    closure = {name: _all_after(name, direct) for name in known & direct.keys()}
    if not any(after & known for after in closure.values()):
        raise UsageError(f"{path} has no implication of any of the {len(names):,} tags")
    return {
        name: frozenset(other for other in after if name not in closure.get(other, ()))
        for name, after in closure.items()
    }


def _all_after(name: str, direct: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    pending = [name]
    while pending:
        for following in direct.get(pending.pop(), ()):
            if following not in found:
                found.add(following)
                pending.append(following)
    return found


def _inner(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All shorter runs of words that stand side by side in a name."""
    for length in range(1, len(words)):
        for start in range(len(words) - length + 1):
            yield words[start : start + length]


def _category_ranks(categories: Sequence[str]) -> list[int]:
    others = [name for name in dict.fromkeys(categories) if name not in CATEGORY_ORDER]
    rank = {name: place for place, name in enumerate((*CATEGORY_ORDER, *others))}
    return [rank[category] for category in categories]
