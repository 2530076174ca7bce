"""Braces in names, as shells and WebDataset write many shards: `train-{00000..00146}.tar`, `{a,b}/{1..3}.tar`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise

_NUMBERS = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.-?([0-9]{1,18}))?")
_LETTERS = re.compile(r"([a-z])\.\.([a-z])(?:\.\.-?([0-9]{1,18}))?")
_CAPITALS = re.compile(r"([A-Z])\.\.([A-Z])(?:\.\.-?([0-9]{1,18}))?")

_MOST_BRACES = 100


def expand(pattern: str) -> Iterator[str]:
    """Every name that a pattern stands for, in its order; a name without braces stands for itself.

    Braces hold names between commas, which may hold braces, or a range of numbers or letters with an optional step.
    Numbers are padded to one width when an end of their range begins with 0. Braces that hold something else, and a
    brace without its partner, mean themselves. Names are made one by one: a range may be of any length.
    """
    if pattern.count("{") > _MOST_BRACES:
        return iter((pattern,))
    for start in range(len(pattern)):
        if pattern[start] != "{":
            continue
        commas, end = _partners(pattern, start)
        if end < 0:
            continue
        alternatives = _alternatives(pattern, start, commas, end)
        if alternatives is not None:
            head = pattern[:start]
            rest = partial(expand, pattern[end + 1 :])
            return (head + one + tail for one in alternatives for tail in rest())
    return iter((pattern,))


def _partners(pattern: str, start: int) -> tuple[list[int], int]:
    """Where the commas between the names in braces are, and where the closing brace is, or -1."""
    depth = 0
    commas: list[int] = []
    for place in range(start, len(pattern)):
        character = pattern[place]
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return commas, place
        if character == "," and depth == 1:
            commas.append(place)
    return [], -1


def _alternatives(pattern: str, start: int, commas: list[int], end: int) -> Iterator[str] | None:
    """What stands for the braces, or None when they hold neither names nor a range."""
    if commas:
        bounds = [start, *commas, end]
        names = (pattern[a + 1 : b] for a, b in pairwise(bounds))
        return chain.from_iterable(expand(name) for name in names)
    inside = pattern[start + 1 : end]
    if numbers := _NUMBERS.fullmatch(inside):
        first, last, step = numbers.groups()
        is_padded = any(re.match("-?0[0-9]", text) for text in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        return (f"{number:0{width}}" for number in _range(int(first), int(last), step))
    letters = _LETTERS.fullmatch(inside) or _CAPITALS.fullmatch(inside)
    if letters:
        first, last, step = letters.groups()
        return map(chr, _range(ord(first), ord(last), step))
    return None


def _range(first: int, last: int, step: str | None) -> range:
    """Both ends included, upwards or downwards; a step of 0 is 1, as in shells."""
    length = int(step or 1) or 1
    return range(first, last + 1, length) if first <= last else range(first, last - 1, -length)
