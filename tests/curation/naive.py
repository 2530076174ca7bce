"""MetaCLIP's rules of matching, word for word from their description: slow, and the measure of the fast matcher."""

import re
from collections.abc import Sequence

from annotary.curation._units import stands_alone

MARKS = ",.;:?!`"


def spaced(text: str) -> str:
    text = f" {text} "
    for mark in MARKS:
        text = text.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        text = text.replace(space, " ")
    return text


def spaced_entry(entry: str, *, is_by_character: bool = False) -> str:
    before = after = " "
    if is_by_character and stands_alone(entry[0]):
        before = ""
    if is_by_character and stands_alone(entry[-1]):
        after = ""
    return before + entry + after


def matches(
    texts: Sequence[str | None], entries: Sequence[str], *, is_by_character: bool = False
) -> list[list[int]]:
    """The ids of each text's entries. Entries of nothing but spaces match nothing; of equal ones, the first matches."""
    first: dict[str, int] = {}
    for place, entry in enumerate(entries):
        if entry.strip(" "):
            first.setdefault(spaced_entry(entry, is_by_character=is_by_character), place)
    found = []
    for text in texts:
        if text is None:
            found.append([])
            continue
        spaced_text = spaced(text)
        found.append([place for entry, place in first.items() if entry in spaced_text])
    return found


def witness(entry: str) -> str:
    """A text that must match the entry if any does: each mark gives back the spaces that it will get."""
    return re.sub(f" ?([{MARKS}]) ?", r"\1", entry)
