"""JSON sidecars: the record of `photo.jpg` in `photo.json`, beside it or mirrored in another folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotary.records import Annotation
from annotary.sinks import _text
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._reading import read_files
from annotary.sinks._sidecars import Sidecars

SUFFIXES = ()
OPTIONS = ("full_names",)
CAN_APPEND = True

Json = dict[str, Any]


class JsonContent:
    """One record, indented so that people can read it.

    Args:
        options: What happens to existing files, and how files are named.
    """

    suffix = ".json"

    def __init__(self, options: SinkOptions) -> None:
        self.has_full_names = options.full_names
        self.merges = options.on_existing == "append"

    def is_done(self, place: Path) -> bool:
        """Whether the file is left alone: always."""
        return True

    def new(self, annotation: Annotation) -> bytes:
        """The record."""
        return _encoded(annotation.to_json())

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """Everything that is there, the tags that are not, and the parts of a record that are missing."""
        if not before.strip():
            return self.new(annotation)
        there = _decoded(before)
        new = annotation.to_json()
        tags = _merged_tags(there.get("tags", []), new.pop("tags", []))
        sources = _merged_sources(there.get("sources", {}), new.pop("sources", {}))
        after = {**new, **there}
        if tags or "tags" in there or "tags" in annotation.sources:
            after["tags"] = tags
        if sources:
            after["sources"] = sources
        return before if after == there else _encoded(after)


def open(output: Path | None, options: SinkOptions) -> Sidecars:  # noqa: A001
    """A sink that writes into a folder, or beside the images."""
    return Sidecars(output, options, JsonContent(options))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every file in a folder."""

    def tags_of(content: bytes) -> list[tuple[str, float | None]]:
        entries = _decoded(content).get("tags", [])
        return [
            (entry["name"], entry.get("score")) if isinstance(entry, dict) else (str(entry), None)
            for entry in entries
        ]

    return read_files(output, JsonContent.suffix, tags_of)


def _encoded(value: Json) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _decoded(content: bytes) -> Json:
    """An object of JSON.

    Raises:
        ValueError: It is none, or has a name twice, of which writing would lose one.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("is nested too deeply, so nothing is added to it") from error
    except ValueError as error:
        raise ValueError(f"is no JSON, so nothing is added to it: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("is no object of JSON, so nothing is added to it")
    return value


def _object(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _merged_tags(existing: Any, new: list[Json]) -> list[Any]:
    """The tags that are there, as they are, and behind them the new ones: as names where only names are there."""
    if not isinstance(existing, list):
        raise ValueError("has tags that are no list, so nothing is added to it")
    entries = [entry.get("name") if isinstance(entry, dict) else entry for entry in existing]
    known = [name for name in entries if isinstance(name, str)]
    if len(known) < len(entries):
        raise ValueError("has tags without a name, so nothing is added to it")
    added = _text.merged(known, (tag["name"] for tag in new))[len(known) :]
    if existing and all(isinstance(entry, str) for entry in existing):
        return [*existing, *added]
    by_name = {tag["name"]: tag for tag in reversed(new)}
    return [*existing, *(by_name[name] for name in added)]


def _merged_sources(existing: Any, new: Json) -> Any:
    """Which models said which part; a second model stands behind the first."""
    if not isinstance(existing, dict):
        return existing
    merged = dict(existing)
    for part, source in new.items():
        before = merged.get(part, source)
        if isinstance(before, str):
            merged[part] = before if source in before.split(" + ") else f"{before} + {source}"
    return merged
