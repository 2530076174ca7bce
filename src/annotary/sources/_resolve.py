"""From the arguments of a command to one stream of images."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

from annotary import registry
from annotary.errors import NothingToDo, UsageError
from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._paths import is_there, kind_of, reason
from annotary.sources._shard import Shard, key_of

_MOST_NEIGHBOURS = 10_000  # names that a misspelt one is compared with
_MOST_NAMED = 3  # arguments that a message names


@dataclass(frozen=True, slots=True)
class _Opened:
    """An argument and the module that takes it."""

    argument: str
    source: ModuleType


def open_sources(arguments: Sequence[str], options: SourceOptions) -> Iterator[Item | Failure]:
    """The images that arguments name, one argument after the other.

    Every argument is understood before the first image is given. An image that is named twice is
    given twice.

    Args:
        arguments: Files, folders, lists, tables and archives of images, web addresses, or "-" for standard input.
        options: Which images are taken.

    Raises:
        UsageError: There is no argument, or one is nobody's or more than one source's.
        MissingExtra: An argument needs an optional part to be read.
        NothingToDo: All arguments together hold no image; raised when that is known, at the end. A shard may be empty.
    """
    opened = _open_all(arguments)
    for one in opened:
        if check := getattr(one.source, "check", None):
            check(one.argument, options)
    return _stream(opened, options)


def can_be_counted(arguments: Sequence[str]) -> bool:
    """Whether going through the images once more, only to count them, is cheap: nothing is read for it but names.

    Raises:
        UsageError: As `open_sources` does.
    """
    return not any(getattr(one.source, "READS_IMAGES", False) for one in _open_all(arguments))


def _open_all(arguments: Sequence[str]) -> list[_Opened]:
    if not arguments:
        raise UsageError("name at least one image, folder, list of images or web address")
    sources = {name: registry.load("sources", name) for name in registry.names("sources")}
    return [_Opened(argument, _source_of(argument, sources)) for argument in arguments]


def _stream(opened: Sequence[_Opened], options: SourceOptions) -> Iterator[Item | Failure]:
    shard = Shard.of(options.shard)
    is_empty = True
    for one in opened:
        for found in one.source.items(one.argument, options):
            is_empty = False
            if found is not None and (shard.count == 1 or _is_in(shard, found, one)):
                yield found
    if is_empty:
        raise NothingToDo(_nothing_found(opened, options))


def _is_in(shard: Shard, found: Item | Failure, one: _Opened) -> bool:
    """Whether this machine is the one to do an image, or to tell its failure.

    A failure that has the name of a folder, list or archive stands for images that nobody can count, and may come from
    this machine alone (a mount that is missing, a connection that broke): every machine that meets it tells it.
    """
    is_whole = isinstance(found, Failure) and (
        found.image == one.argument or one.source.accepts(found.image)
    )
    return is_whole or shard.has(key_of(found, one.argument))


def _source_of(argument: str, sources: dict[str, ModuleType]) -> ModuleType:
    """The one source that accepts an argument."""
    if not argument:
        raise UsageError("an argument is empty; name an image, a folder or a web address")
    accepting = {name: source for name, source in sources.items() if source.accepts(argument)}
    if len(accepting) > 1:
        accepting = {
            name: source
            for name, source in accepting.items()
            if not getattr(source, "IS_LAST_RESORT", False)
        } or accepting
    if len(accepting) > 1:
        names = ", ".join(sorted(accepting))
        raise UsageError(f"{argument!r} could be read in more than one way: {names}")
    if not accepting:
        raise UsageError(_why_nobody(argument))
    return next(iter(accepting.values()))


def _why_nobody(argument: str) -> str:
    """One line about an argument that no source takes."""
    if kind_of(argument):
        return f"neither a file nor a folder: {argument!r}"
    if is_there(argument):
        return f"a broken link: {argument!r}"
    try:
        os.lstat(argument)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:
        return f"{reason(error)}: {argument!r}"
    message = f"no such file or folder: {argument!r}"
    suggestion = _close_match(argument)
    return f"{message}; did you mean {suggestion!r}?" if suggestion else message


def _close_match(argument: str) -> str:
    """A path that exists and is like the argument, up to its first part that does not exist."""
    path = Path(argument)
    missing = path
    for parent in path.parents:
        if is_there(str(parent)):
            break
        missing = parent
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NEIGHBOURS)]
    except (OSError, ValueError):
        return ""
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(missing.name.lower(), lowered, n=1, cutoff=0.7)
    if not close:
        return ""
    nearest = missing.parent / lowered[close[0]]
    whole = nearest / path.relative_to(missing)
    return str(whole if is_there(str(whole)) else nearest)


def _nothing_found(opened: Sequence[_Opened], options: SourceOptions) -> str:
    """What was looked for, and where."""
    parts = []
    for one in opened[:_MOST_NAMED]:
        looked_for = getattr(one.source, "looked_for", None)
        detail = f": looked for {looked_for(options)}" if looked_for else ""
        parts.append((one.argument, detail))
    if len({detail for _, detail in parts}) == 1:
        listed = _listed((name for name, _ in parts), len(opened))
        return f"no images in {listed}{parts[0][1]}"
    return _listed((f"no images in {name}{detail}" for name, detail in parts), len(opened), "; ")


def _listed(shown: Iterable[str], total: int, separator: str = ", ") -> str:
    names = [" ".join(name.split()) for name in shown]
    more = total - len(names)
    return separator.join(names) + (f" and {more:,} more" if more > 0 else "")
