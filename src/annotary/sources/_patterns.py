"""Patterns for files and folders, as `--include-files` and `--exclude-files` take them.

A pattern is compared with a path relative to the folder that was named, with "/" between its parts:

    *.jpg        no "/": the name of the file, or of any folder on the way to it
    2024/*.jpg   with "/": the whole path
    /a.jpg       a leading "/" (or "./") binds a plain name to the top folder
    2024/        a trailing "/": everything inside; the same as 2024/**

`*` is any run of characters and `?` is one, but never "/"; `[a-z]` is one of these and `[!a-z]` one
of the others; `**` as a whole part spans any number of folders, also none. Case matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from annotary.errors import UsageError


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test whether a relative path matches one of the patterns; without patterns nothing does.

    A folder is tested with a trailing "/" as well as without, so that `2024/**` is also true of
    `2024/`.

    Raises:
        UsageError: A pattern is empty.
    """
    if not patterns:
        return lambda _: False
    test = re.compile("|".join(f"(?:{_expression(pattern)})" for pattern in patterns), re.DOTALL)
    return lambda path: test.fullmatch(path) is not None


def _expression(pattern: str) -> str:
    anchored = pattern.startswith(("/", "./"))
    text = pattern.removeprefix(".").removeprefix("/") if anchored else pattern
    if not text:
        raise UsageError(f"the pattern {pattern!r} names nothing")
    if "/" not in text and not anchored:
        return f"(?:.*/)?{_part(text)}(?:/.*)?"
    *folders, last = text.split("/")
    whole = "".join("(?:.*/)?" if part == "**" else f"{_part(part)}/" for part in folders)
    return whole + (".*" if last in ("", "**") else _part(last))


def _part(pattern: str) -> str:
    """The expression of one part of a path."""
    expression: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            if expression[-1:] != ["[^/]*"]:
                expression.append("[^/]*")
        elif character == "?":
            expression.append("[^/]")
        elif character == "[" and (end := _end_of_set(pattern, position)) > 0:
            expression.append(_set(pattern[position:end]))
            position = end + 1
        else:
            expression.append(re.escape(character))
    return "".join(expression)


def _end_of_set(pattern: str, start: int) -> int:
    """Where the set that starts here ends, or -1; a "]" that comes first is one of the set."""
    if pattern[start : start + 1] == "!":
        start += 1
    return pattern.find("]", start + 1)


def _set(body: str) -> str:
    negated = body.startswith("!")
    characters = body[1:] if negated else body
    members: list[str] = []
    position = 0
    while position < len(characters):
        first = characters[position]
        if characters[position + 1 : position + 2] == "-" and position + 2 < len(characters):
            last = characters[position + 2]
            if first <= last:
                members.append(f"{re.escape(first)}-{re.escape(last)}")
            position += 3
        else:
            members.append(re.escape(first))
            position += 1
    if negated:
        return f"[^/{''.join(members)}]"
    return f"(?!/)[{''.join(members)}]" if members else "(?!)"
