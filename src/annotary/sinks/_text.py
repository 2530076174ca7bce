"""Tags and labels as a line of text, as trainers of diffusion models read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from annotary.records import Annotation
from annotary.sinks._contract import SinkOptions
from annotary.sinks._parts import names_in

OPTIONS = ("separator", "trailing_separator", "escape", "prefix", "suffix")
"""The options that a line of text depends on."""

_ESCAPED = re.compile(r"([\\()])")
_UNESCAPED = re.compile(r"\\([\\()])")


def caption_of(annotation: Annotation, options: SinkOptions) -> str:
    """The tags and labels of an image on one line, without its end."""
    return joined(names_of(annotation, options), options)


def names_of(annotation: Annotation, options: SinkOptions) -> list[str]:
    """The parts of the line: the prefix, the tags and labels in their order, the suffix."""
    names = [tag.name for tag in names_in(annotation)]
    written = map(escaped, names) if options.escape else names
    return [part for part in (options.prefix, *written, options.suffix) if part]


def joined(names: Iterable[str], options: SinkOptions) -> str:
    """Names with the separator between them, and after the last where that is asked for."""
    line = options.separator.join(names)
    return line + options.separator.rstrip() if line and options.trailing_separator else line


def escaped(name: str) -> str:
    """A name that prompts take literally: parentheses and backslashes get a backslash."""
    return _ESCAPED.sub(r"\\\1", name)


def merged(existing: Iterable[str], new: Iterable[str]) -> list[str]:
    """What is there, as it is, and behind it what is new.

    Two names are the same when they differ only in case, in escapes, or in underscores for spaces.
    """
    kept = list(existing)
    known = {_key(name) for name in kept}
    for name in new:
        if _key(name) not in known:
            known.add(_key(name))
            kept.append(name)
    return kept


def _key(name: str) -> str:
    plain = _UNESCAPED.sub(r"\1", name)
    return " ".join(plain.replace("_", " ").casefold().split()) or plain
