"""The columns of a catalogue, and how a record becomes a row and a row a record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from annotary.errors import MissingExtra
from annotary.records import (
    Annotation,
    Answer,
    Box,
    Caption,
    Decision,
    Embedding,
    Label,
    Match,
    Reason,
    Tag,
)

if TYPE_CHECKING:
    import pyarrow

VERSION = 1
"""Of the columns; it is in the table's metadata."""

PARTS = ("tags", "labels", "captions", "answers", "boxes", "embedding", "decision", "matches")
"""The parts of a record, in the order of the bits that tell which of them a row has."""

LATER_COLUMNS = ("caption_matches", "matches")
"""Columns that catalogues of version 0.3 lack; they get them with the first row that has something for them."""

_ESCAPED = re.compile(r"\\udc([89a-f][0-9a-f])")


def arrow() -> Any:
    """The library pyarrow.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("A catalogue", "catalog") from error
    return pyarrow


def schema_of(dimensions: int | None) -> pyarrow.Schema:
    """The columns of a catalogue.

    Args:
        dimensions: Of its vectors; None for a catalogue that has none yet.
    """
    pa = arrow()
    text, number = pa.string(), pa.float64()
    scored = [pa.field("name", text), pa.field("score", number)]
    caption = [pa.field("text", text), pa.field("score", number)]
    moment = pa.timestamp("us", tz="UTC")
    columns = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("image", text, nullable=False),
        pa.field("path", text, nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
        pa.field("sha256", text),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("phash", pa.uint64()),
        pa.field("tags", pa.list_(pa.struct([*scored, pa.field("category", text)]))),
        pa.field("tag_names", pa.list_(text)),
        pa.field("labels", pa.list_(pa.struct(scored))),
        pa.field("label", text),
        pa.field("captions", pa.list_(pa.struct(caption))),
        pa.field("answers", pa.list_(pa.struct([pa.field("question", text), *caption]))),
        pa.field("boxes", pa.list_(pa.struct(_box()))),
        pa.field("decision", text),
        pa.field("reasons", pa.list_(pa.struct(_reason()))),
        pa.field("sources", text),
        pa.field("deleted", moment),
        pa.field("added", moment),
        pa.field("changed", moment),
        *map(later_field, LATER_COLUMNS),
    ]
    if dimensions is not None:
        columns.append(embedding_field(dimensions))
    return pa.schema(columns, metadata={"annotary.catalog": str(VERSION)})


def embedding_field(dimensions: int) -> pyarrow.Field:
    """The column of vectors float32[d]; null for images that were not embedded."""
    pa = arrow()
    return pa.field("embedding", pa.list_(pa.float32(), dimensions))


def later_field(name: str) -> pyarrow.Field:
    """One of the columns that older catalogues lack."""
    pa = arrow()
    number = pa.float64()
    match = [pa.field("text", pa.string()), pa.field("score", number), pa.field("cosine", number)]
    # Beside the captions and not in them: a table gets a new column in an instant, but no new part of an old one.
    kinds = {"caption_matches": pa.list_(number), "matches": pa.list_(pa.struct(match))}
    return pa.field(name, kinds[name])


def _box() -> list[pyarrow.Field]:
    pa = arrow()
    number = pa.float64()
    return [
        pa.field("label", pa.string()),
        pa.field("score", number),
        pa.field("xyxy", pa.list_(number)),
    ]


def _reason() -> list[pyarrow.Field]:
    pa = arrow()
    text, number = pa.string(), pa.float64()
    return [
        pa.field("name", text),
        pa.field("score", number),
        pa.field("threshold", number),
        pa.field("action", text),
    ]


def row_of(annotation: Annotation) -> dict[str, Any]:
    """What a record says, by column; parts that nobody was asked for are None."""
    value = annotation.to_json()
    row: dict[str, Any] = {
        "image": stored(annotation.image),
        "width": annotation.width,
        "height": annotation.height,
        "sources": json.dumps(dict(annotation.sources), sort_keys=True),
    }
    for part in ("tags", "labels", "captions", "answers", "matches", "boxes"):
        row[part] = value.get(part)
    matches = [caption.match for caption in annotation.captions]
    has_matches = any(match is not None for match in matches)
    row["caption_matches"] = matches if has_matches else None
    row["tag_names"] = [tag.name for tag in annotation.tags] if "tags" in value else None
    row["label"] = annotation.labels[0].name if annotation.labels else None
    decision = annotation.decision
    row["decision"] = decision.action if decision is not None else None
    row["reasons"] = None if decision is None else [r.to_json() for r in decision.reasons]
    if annotation.embedding is not None:
        row["embedding"] = annotation.embedding.vector
    return {name: _storable(value) for name, value in row.items()}


def columns_of_part(part: str) -> tuple[str, ...]:
    """The columns that a part of a record fills."""
    beside = {
        "tags": ("tag_names",),
        "labels": ("label",),
        "captions": ("caption_matches",),
        "decision": ("reasons",),
    }
    return (part, *beside.get(part, ()))


def annotation_of(row: Mapping[str, Any]) -> Annotation:
    """The record of a row with all columns, as `Table.to_pylist` gives it."""
    embedding = row.get("embedding")
    decision = row.get("decision")
    return Annotation(
        image=recovered(row["image"]),
        width=row["width"],
        height=row["height"],
        tags=tuple(
            Tag(tag["name"], tag["score"], tag["category"] or "") for tag in row["tags"] or ()
        ),
        labels=tuple(Label(**label) for label in row["labels"] or ()),
        captions=_captions(row),
        answers=tuple(Answer(**answer) for answer in row["answers"] or ()),
        matches=tuple(Match(**match) for match in row.get("matches") or ()),
        boxes=tuple(Box(**{**box, "xyxy": tuple(box["xyxy"])}) for box in row["boxes"] or ()),
        embedding=None if embedding is None else Embedding(tuple(embedding)),
        decision=decision
        and Decision(decision, tuple(Reason(**reason) for reason in row["reasons"] or ())),
        sources=json.loads(row["sources"] or "{}"),
    )


def _captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    captions = row["captions"] or ()
    matches = row.get("caption_matches") or [None] * len(captions)
    return tuple(
        Caption(caption["text"], caption["score"], match)
        for caption, match in zip(captions, matches, strict=True)
    )


def table_of(rows: Sequence[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    """Rows as a table; a column that a row lacks is null in it."""
    pa = arrow()
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def stored(text: str) -> str:
    """Text as a column can hold it: bytes of a name that are not UTF-8 become escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def recovered(text: str) -> str:
    """The text that `stored` was given."""
    return _ESCAPED.sub(lambda found: chr(0xDC00 + int(found[1], 16)), text)


def _storable(value: Any) -> Any:
    """A value with all texts in it as columns can hold them."""
    if isinstance(value, str):
        return stored(value)
    if isinstance(value, list):
        return [_storable(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _storable(entry) for name, entry in value.items()}
    return value
