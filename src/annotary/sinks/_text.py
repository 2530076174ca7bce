"""Captions, tags and labels as lines of text, as trainers of diffusion models read them."""

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
    """What a text file says of an image, without the end of its last line.

    It is one line of the caption, the tags and the labels. Of several captions each has a line, with the same tags and
    labels behind it: sd-scripts' `enable_wildcard` takes one of the lines at random, and others the first.
    """
    captions = captions_of(annotation, options)
    lines: list[list[str]] = [[caption] for caption in captions] or [[]]
    return "\n".join(joined(_line(line, annotation, options), options) for line in lines)


def names_of(annotation: Annotation, options: SinkOptions) -> list[str]:
    """All that is said of an image: the prefix, the captions, the tags and labels in their order, the suffix."""
    return _line(captions_of(annotation, options), annotation, options)


def captions_of(annotation: Annotation, options: SinkOptions) -> list[str]:
    """The captions that say something, each once and without line breaks."""
    lines = (" ".join(caption.text.split()) for caption in annotation.captions)
    found = dict.fromkeys(line for line in lines if line)
    return [escaped(line) if options.escape else line for line in found]


def _line(captions: Iterable[str], annotation: Annotation, options: SinkOptions) -> list[str]:
    names = [tag.name for tag in names_in(annotation)]
    written = map(escaped, names) if options.escape else names
    parts = (options.prefix, *captions, *written, options.suffix)
    return [part for part in parts if part]


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
