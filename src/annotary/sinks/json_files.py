"""JSON sidecars: the record of `photo.jpg` in `photo.json`, beside it or mirrored in another folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotary.records import Annotation
from annotary.sinks import _text
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import ALL_PARTS, NAMES, best_of
from annotary.sinks._reading import read_files
from annotary.sinks._sidecars import Sidecars

SUFFIXES = ()
OPTIONS = ("full_names",)
CAN_APPEND = True
PARTS = ALL_PARTS

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
        """Everything that is there, the tags and labels that are not, and the parts of a record that are missing."""
        if not before.strip():
            return self.new(annotation)
        there = _decoded(before)
        new = annotation.to_json()
        # Of a part that stays as it is, the model that said it is still the one.
        kept = [part for part in ALL_PARTS if part in there and part not in NAMES]
        said = {part: model for part, model in annotation.sources.items() if part not in kept}
        sources = _merged_sources(there.get("sources", {}), said)
        new.pop("sources", None)
        names = {
            part: _merged_names(part, there.get(part, []), new.pop(part, [])) for part in NAMES
        }
        after = {**new, **there}
        after |= {
            part: entries
            for part, entries in names.items()
            if entries or part in there or part in annotation.sources
        }
        if sources:
            after["sources"] = sources
        return before if after == there else _encoded(after)


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> Sidecars:
    """A sink that writes into a folder, or beside the images."""
    return Sidecars(output, options, JsonContent(options))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every file in a folder; the labels of one without tags, or of its boxes."""

    def tags_of(content: bytes) -> list[tuple[str, float | None]]:
        record = _decoded(content)
        if "boxes" in record and not record.keys() & {"tags", "labels"}:
            return list(best_of((box["label"], box["score"]) for box in record["boxes"]))
        entries = record["tags"] if "tags" in record else record.get("labels", [])
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


def _merged_names(part: str, existing: Any, new: list[Json]) -> list[Any]:
    """The tags or labels that are there, as they are, and behind them the new: as names where only names are there."""
    if not isinstance(existing, list):
        raise ValueError(f"has {part} that are no list, so nothing is added to it")
    entries = [entry.get("name") if isinstance(entry, dict) else entry for entry in existing]
    known = [name for name in entries if isinstance(name, str)]
    if len(known) < len(entries):
        raise ValueError(f"has {part} without a name, so nothing is added to it")
    added = _text.merged(known, (entry["name"] for entry in new))[len(known) :]
    if existing and all(isinstance(entry, str) for entry in existing):
        return [*existing, *added]
    by_name = {entry["name"]: entry for entry in reversed(new)}
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
