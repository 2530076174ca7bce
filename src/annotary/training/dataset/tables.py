"""The tables and lists of a dataset folder, as they are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import OutputError
from annotary.sinks import write_atomically
from annotary.sinks._atomic import replacing
from annotary.sinks._parquet import import_pyarrow
from annotary.sources._paths import reason
from annotary.training.dataset.index import (
    DESCRIPTION,
    LAYOUT,
    TAGS,
    TOP_TAGS,
    TRAIN,
    VALIDATION,
    VALIDATION_IDS,
)
from annotary.training.dataset.knowledge import SOURCES, Sources

_GROUP_ROWS = 50_000


class Rows(NamedTuple):
    """Images of a split, and their tags.

    Attributes:
        ids: One each.
        images: Where the originals are.
        sha256: uint8[n, 32], of the original files.
        offsets: int64[n + 1], where the tags of each begin.
        tags: int32[m], places in the list of tags, ascending in each image.
        sources: int32[n], which of `Sources.groups` each is of; None where all inputs know all tags.
    """

    ids: Sequence[str]
    images: Sequence[str]
    sha256: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    tags: npt.NDArray[np.int32]
    sources: npt.NDArray[np.int32] | None = None


def write_folder(
    folder: Path,
    train: Rows,
    validation: Rows,
    tags: Sequence[str],
    categories: Sequence[str],
    told: Mapping[str, Any],
    sources: Sources | None = None,
) -> None:
    """Write all that training reads, but the pictures. `dataset.json`, which says that it is whole, comes last.

    Args:
        folder: It is made.
        train: The images to learn from.
        validation: The images to measure on.
        tags: All tags, in the order of their places.
        categories: Of each tag; empty where none is known.
        told: What `dataset.json` says beside its layout; `cache_suffix` (".webp") where there are reduced pictures.
        sources: What the inputs know; None where all of them know all tags.

    Raises:
        OutputError: Something cannot be written.
        MissingExtra: pyarrow is not installed.
    """
    import_pyarrow()
    _write_rows(folder / TRAIN, train)
    _write_rows(folder / VALIDATION, validation)
    write_atomically(folder / TOP_TAGS, "".join(f"{tag}\n" for tag in tags))
    write_atomically(folder / VALIDATION_IDS, "".join(f"{one}\n" for one in validation.ids))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "tag", "category", "train", "validation"))
    counts = [np.bincount(rows.tags, minlength=len(tags)).tolist() for rows in (train, validation)]
    writer.writerows(zip(range(len(tags)), tags, categories, *counts, strict=True))
    write_atomically(folder / TAGS, text.getvalue())
    if sources is None:
        (folder / SOURCES).unlink(missing_ok=True)
    else:
        write_atomically(folder / SOURCES, sources.text())
    description = {"layout": LAYOUT, **told, **({} if sources is None else {"sources": SOURCES})}
    write_atomically(folder / DESCRIPTION, as_json(description))


def as_json(value: Any) -> str:
    """JSON for people, which holds also names of files that are not UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_rows(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [
        ("id", pa.string()),
        ("tags", pa.list_(pa.int32())),
        ("sha256", pa.binary(32)),
        ("image", pa.string()),
    ]
    schema = pa.schema(columns + [("source", pa.int32())] * (rows.sources is not None))
    try:
        with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start in range(0, max(1, len(rows.ids)), _GROUP_ROWS):
                writer.write_batch(_batch(rows, start, schema))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


def _batch(rows: Rows, start: int, schema: Any) -> Any:
    import pyarrow as pa

    end = min(start + _GROUP_ROWS, len(rows.ids))
    offsets = rows.offsets[start : end + 1]
    tags = pa.array(rows.tags[offsets[0] : offsets[-1]], pa.int32())
    lists = pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), tags)
    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), end - start, [None, pa.py_buffer(rows.sha256[start:end].tobytes())]
    )
    ids = pa.array(rows.ids[start:end], pa.string())
    images = pa.array(rows.images[start:end], pa.string())
    arrays = [ids, lists, digests, images]
    if rows.sources is not None:
        arrays.append(pa.array(rows.sources[start:end], pa.int32()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
