"""Sidecars of text, and how names and captions are added to a text that a person wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from annotary.records import Annotation
from annotary.sinks import _text
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._reading import read_files, split_text, unscored

_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_BYTE_ORDER_MARK = "\ufeff"


class TextContent:
    """Names in a text file, joined by a separator.

    Args:
        suffix: Of the files, with its dot.
        options: How names are joined, and what happens to existing files.
        names: What an annotation's names are, the prefix first and the suffix last; `_text.names_of` unless told
            otherwise.
        has_full_names: Whether files are named a.jpg.SUFFIX.
    """

    def __init__(
        self,
        suffix: str,
        options: SinkOptions,
        *,
        has_full_names: bool,
        names: Callable[[Annotation, SinkOptions], list[str]] = _text.names_of,
    ) -> None:
        self.suffix = suffix
        self.has_full_names = has_full_names
        self.merges = options.on_existing == "append"
        self._options = options
        self._names = names

    def is_done(self, place: Path) -> bool:
        """Whether the file is left alone: always, as it cannot be told who wrote it."""
        return True

    def new(self, annotation: Annotation) -> bytes:
        """One line of names; of several captions each has one."""
        if annotation.captions:
            text = _text.caption_of(annotation, self._options)
        else:
            text = _text.joined(self._names(annotation, self._options), self._options)
        return (text + "\n").encode("utf-8", "backslashreplace")

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """The text as it is, and behind it the captions and names that are not in it.

        Of the text only blanks at its end may go. Where names are missing, the prefix goes to the front.
        """
        try:
            text = before.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("is no UTF-8 text, so nothing is appended to it") from error
        mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
        body = text.removeprefix(_BYTE_ORDER_MARK).rstrip()
        if not body.strip():
            return mark.encode() + self.new(annotation)
        line_end = _line_end(text)
        names = self._names(annotation, self._options)
        separator, glue = self._between(body, line_end)
        fresh = [self._written(name) for name in self._missing(body, names)]
        if not fresh:
            return before
        prefix = self._options.prefix
        if prefix and fresh[0] == prefix and names[0] == prefix:
            body = prefix + separator + body
            del fresh[0]
        if fresh:
            body += glue + separator.join(fresh)
            if self._options.trailing_separator:
                body += separator.rstrip()
        return (mark + body + line_end).encode("utf-8", "backslashreplace")

    def _missing(self, body: str, names: list[str]) -> list[str]:
        """The names that a text has not yet, each once. One with a separator in it is there if its parts are there."""
        existing = self._parts(body)
        missing: list[str] = []
        for name in _text.merged(existing, names)[len(existing) :]:
            parts = self._parts(self._written(name))
            if parts and not _stand_in_a_row(parts, existing):
                missing.append(name)
        return missing

    def _parts(self, text: str) -> list[str]:
        """The names of a text: between separators, and on lines of their own."""
        mark = self._options.separator.strip() or self._options.separator
        lines = _LINE_ENDS.split(text)
        return [name for line in lines for part in line.split(mark) if (name := part.strip())]

    def _between(self, body: str, line_end: str) -> tuple[str, str]:
        """What stands between names, and between the text and the first new name: as the person did it."""
        separator = self._options.separator
        mark = separator.strip() or separator
        has_lines = len(_LINE_ENDS.split(body.strip())) > 1 and mark not in body
        if has_lines or mark == "\n":
            return line_end, line_end
        ends_with_mark = body.endswith(mark) and not mark.isalnum()
        return separator, separator.partition(mark)[2] or " " if ends_with_mark else separator

    def _written(self, name: str) -> str:
        return name.encode("utf-8", "backslashreplace").decode()


def read_texts(folder: Path, suffix: str, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of text sidecars, between separators and on lines of their own."""

    def tags_of(content: bytes) -> tuple[tuple[str, float | None], ...]:
        lines = _LINE_ENDS.split(content.decode("utf-8-sig"))
        return unscored([name for line in lines for name in split_text(line, options)])

    return read_files(folder, suffix, tags_of)


def _line_end(text: str) -> str:
    """The line end that a text has; a line feed where it has none."""
    found = _LINE_ENDS.search(text)
    return found.group() if found else "\n"


def _stand_in_a_row(parts: list[str], existing: list[str]) -> bool:
    return any(
        all(
            _is_same(part, other)
            for part, other in zip(parts, existing[start : start + len(parts)], strict=True)
        )
        for start in range(len(existing) - len(parts) + 1)
    )


def _is_same(name: str, other: str) -> bool:
    return len(_text.merged([other], [name])) == 1
