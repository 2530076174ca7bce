"""Which tags are trained: aliases, implications, a blacklist, categories, and how many images a tag must have.

    tag of a source ──spaces──▶ ──aliases──▶ name ──implications──▶ name and all that follows from it
                                                     └──blacklist, categories, least count──▶ tags of the dataset

Aliases and implications are the files that `annotary tag` takes, Danbooru's dumps among them. Here implications add:
an image of a `tabby_cat` also has `cat`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import translate
from pathlib import Path
from typing import Any

from annotary.errors import UsageError
from annotary.sources._paths import reason
from annotary.tasks.tag_rules import _all_after, digest_of, read_pairs
from annotary.training.dataset.knowledge import absolute

_NUMBERED = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
"""Danbooru's categories, as tag lists such as `selected_tags.csv` number them."""


@dataclass(frozen=True, slots=True)
class TagListOptions:
    """Which tags are trained."""

    rules: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A TOML file with the rules below, named as these options are; options that are given count more."""

    aliases: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of names and what to call them instead: 'old,new' on each line, or a dump of Danbooru's aliases
    (JSON Lines)."""

    implications: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of what follows from what: 'special,general' on each line, or a dump of Danbooru's implications. The
    general tag is added where the special one is given."""

    blacklist: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of tags that are left out, one a line; names may have wildcards, such as '*_commission'."""

    tag_categories: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of the categories of tags, for images whose source tells none: 'tag,category' on each line."""

    category: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Keep only tags of this category. May be given several times."""

    without_category: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Leave out tags of this category, such as meta or rating. May be given several times."""

    minimum_count: int | None = field(default=None, metadata={"metavar": "IMAGES"})
    """Leave out tags that fewer images have; 1 when nothing is said. JoyTag took 1,200, of four million images."""

    minimum_tags: int | None = field(default=None, metadata={"metavar": "TAGS"})
    """Leave out images that have fewer tags, before rare ones are left out; 1 when nothing is said. JoyTag took 5."""

    underscores: bool = False
    """Write underscores for spaces, as Danbooru's rules have them."""

    partial_labels: bool = False
    """Let each input know only the tags that its images have: of the others nobody knows whether its images have them,
    and they are not taught as absent. Otherwise all inputs know all tags."""

    def __post_init__(self) -> None:
        for name in ("minimum_count", "minimum_tags"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, but got {value}")
        for name in ("category", "without_category"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be several texts, not one")

    def settings(self) -> dict[str, Any]:
        """What tags depend on, as JSON; files by their content."""
        files = ("rules", "aliases", "implications", "blacklist", "tag_categories")
        told: dict[str, Any] = {name: digest_of(getattr(self, name)) for name in files}
        told |= {name: list(getattr(self, name)) for name in ("category", "without_category")}
        told |= {name: getattr(self, name) for name in ("minimum_count", "minimum_tags")}
        partial = {"partial_labels": True} if self.partial_labels else {}
        return {**told, "underscores": self.underscores, **partial}


@dataclass(frozen=True, slots=True)
class InputRule:
    """What is said of one input.

    Attributes:
        path: Where it is.
        known: The tags that it knows, with wildcards; None where nothing is said.
        absent: How much it counts that an image has not a tag that the input knows, 0..1.
    """

    path: str
    known: tuple[str, ...] | None
    absent: float


class TagLists:
    """The rules, read.

    Args:
        options: Where they are.

    Attributes:
        minimum_count: Images that a tag must have.
        minimum_tags: Tags that an image must have.
        partial_labels: Whether inputs know only the tags that their images have, where nothing else is said of them.
        inputs: What is said of single inputs.
        path: The file of rules; None for none.

    Raises:
        UsageError: A file cannot be read, or makes no sense.
    """

    def __init__(self, options: TagListOptions) -> None:
        rules = _Rules(options.rules)
        self._underscores = options.underscores or rules.flag("underscores")
        aliases = [*rules.pairs("aliases"), *_pairs(options.aliases)]
        self._aliases = {self._written(old): self._written(new) for old, new in aliases}
        self._direct: dict[str, set[str]] = {}
        for special, general in [*rules.pairs("implications"), *_pairs(options.implications)]:
            self._direct.setdefault(self.canonical(special), set()).add(self.canonical(general))
        listed = [*rules.texts("blacklist"), *_lines(options.blacklist)]
        names = [self._written(one) for one in listed]
        self._banned = set(names)  # also those with signs of wildcards: tags have them, too
        patterns = [translate(name) for name in names if re.search(r"[*?\[]", name)]
        self._ban = re.compile("|".join(patterns)).match if patterns else None
        told = [*rules.pairs("tag_categories"), *_pairs(options.tag_categories)]
        self._categories = {self.canonical(tag): _NUMBERED.get(kind, kind) for tag, kind in told}
        self._only = set(options.category or rules.texts("category"))
        self._without = set(options.without_category or rules.texts("without_category"))
        self.minimum_count = _first(options.minimum_count, rules.number("minimum_count"), 1)
        self.minimum_tags = _first(options.minimum_tags, rules.number("minimum_tags"), 1)
        self.partial_labels = options.partial_labels or rules.flag("partial_labels")
        self.path = options.rules
        self.inputs = tuple(
            replace(one, known=None if one.known is None else self._known(one.known))
            for one in rules.inputs()
        )

    def canonical(self, tag: str) -> str:
        """What a tag is called, over any number of aliases.

        Raises:
            UsageError: They go in circles.
        """
        name = self._written(tag)
        seen = [name]
        while (following := self._aliases.get(name)) is not None and following != name:
            if following in seen:
                raise UsageError(f"aliases go in circles: {' -> '.join([*seen, following])}")
            seen.append(following)
            name = following
        return name

    def closure(self, name: str) -> set[str]:
        """All that follows from a tag, directly or over others, without itself.

        Args:
            name: As `canonical` calls it.
        """
        return _all_after(name, self._direct) - {name}

    def category(self, name: str, told: str) -> str:
        """The category of a tag: as the rules say, and else as its source did.

        Args:
            name: As `canonical` calls it.
            told: By the source; may be empty.
        """
        return self._categories.get(name) or told

    def why_not(self, name: str, category: str) -> str:
        """Why a tag is left out, whatever images have it; empty when it is not.

        Args:
            name: As `canonical` calls it.
            category: Of it.
        """
        if name in self._banned or (self._ban is not None and self._ban(name)):
            return "blacklist"
        if category in self._without or (self._only and category not in self._only):
            return f"category {category or '(none)'}"
        return ""

    def _known(self, listed: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.canonical(one) for one in listed))

    def _written(self, tag: str) -> str:
        name = tag.strip()
        return name.replace(" ", "_") if self._underscores else name


class _Rules:
    """A TOML file of rules.

    Args:
        path: The file; None for no rules. Paths in it start in its folder.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._told: dict[str, Any] = {}
        if path is None:
            return
        try:
            self._told = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {reason(error)}") from error
        except ValueError as error:
            raise UsageError(f"{path} is no TOML: {error}") from error
        known = {one.name for one in fields(TagListOptions)} - {"rules"} | {"inputs"}
        unknown = sorted(self._told.keys() - known)
        if unknown:
            raise UsageError(
                f"{path}: unknown rule {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """The pairs of a rule: a file, or a table from a tag to another, or to several."""
        value = self._told.get(name)
        if isinstance(value, str):
            return _pairs(self._file(value))
        found: list[tuple[str, str]] = []
        if value is None:
            return found
        if not isinstance(value, Mapping):
            raise self._wrong(name, "a file or a table")
        for tag, others in value.items():
            several = [others] if isinstance(others, str) else others
            if not isinstance(several, list) or not all(isinstance(o, str) for o in several):
                raise self._wrong(name, "a table from tags to tags")
            found += [(tag, other) for other in several]
        return found

    def texts(self, name: str) -> list[str]:
        """The texts of a rule; of the blacklist also a file of them."""
        value = self._told.get(name, [])
        if isinstance(value, str) and name == "blacklist":
            return _lines(self._file(value))
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(name, "a list of texts")
        return value

    def number(self, name: str) -> int | None:
        """The number of a rule, if there is one."""
        value = self._told.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 0
        ):
            raise self._wrong(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        """Whether a rule is set."""
        value = self._told.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def inputs(self) -> list[InputRule]:
        """What is said of single inputs."""
        value = self._told.get("inputs", [])
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise self._wrong("inputs", "tables, such as [[inputs]]")
        return [self._input(one) for one in value]

    def _input(self, told: Mapping[str, Any]) -> InputRule:
        where = f"{self._path}: [[inputs]]"
        unknown = sorted(told.keys() - {"path", "known_tags", "absent"})
        if unknown:
            raise UsageError(
                f"{where}: unknown key {unknown[0]!r}; known: path, known_tags, absent"
            )
        path, known, absent = told.get("path"), told.get("known_tags"), told.get("absent", 1.0)
        if not isinstance(path, str) or not path:
            raise UsageError(f"{where}: path must name an input")
        if isinstance(known, str):
            known = _lines(self._file(known))
        is_list = isinstance(known, list) and all(isinstance(one, str) for one in known)
        if known is not None and not is_list:
            raise UsageError(f"{where}: known_tags must be a file or a list of texts")
        if isinstance(absent, bool) or not isinstance(absent, int | float) or not 0 <= absent <= 1:
            raise UsageError(f"{where}: absent must be in 0..1, but is {absent!r}")
        place = path if "://" in path else os.fspath(self._file(path))
        return InputRule(absolute(place), None if known is None else tuple(known), float(absent))

    def _file(self, name: str) -> Path:
        assert self._path is not None
        return self._path.parent / name

    def _wrong(self, name: str, wanted: str) -> UsageError:
        return UsageError(f"{self._path}: {name} must be {wanted}, but is {self._told[name]!r}")


def _pairs(path: Path | None) -> list[tuple[str, str]]:
    return [] if path is None else list(read_pairs(path))


def _lines(path: Path | None) -> list[str]:
    """The lines of a file that say something; those that begin with "# " do not."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no UTF-8 text") from error
    return [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")
    ]


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def expanded(
    raw: Sequence[tuple[str, str]], lists: TagLists
) -> tuple[list[str], list[str], list[list[int]]]:
    """The tags that follow from those of the sources.

    Args:
        raw: Names and categories, as sources have them.
        lists: The rules.

    Returns:
        The names of all tags, in the order in which they come up; their categories; and for each of `raw` the places
        of the tags that it stands for.
    """
    place: dict[str, int] = {}
    told: dict[str, str] = {}
    found: list[list[int]] = []
    for name, category in raw:
        canonical = lists.canonical(name)
        every = [canonical, *sorted(lists.closure(canonical))] if canonical else []
        found.append([place.setdefault(one, len(place)) for one in every])
        if category and canonical == name:
            told[canonical] = category
        elif category:
            told.setdefault(canonical, category)
    names = list(place)
    return names, _categories(names, told, lists), found


def _categories(names: Iterable[str], told: Mapping[str, str], lists: TagLists) -> list[str]:
    return [lists.category(name, told.get(name, "")) for name in names]
