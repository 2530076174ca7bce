"""CapFilt as a step of a pipeline: its texts as tables of pairs, so that the next step can read them.

    N-capfilt/train-00000.parquet   for each table that was read, a row for each text that was kept, web or synthetic:
                                    all columns of the row, with the text in its place, `origin` and `score`
    N-capfilt/_pictures.html        what was kept and dropped, with pictures
    N-capfilt/_state/texts.parquet  what `annotary curate capfilt` writes: every text, its score, and why it was dropped

Matches with entries are left out, as they are of the texts before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from annotary.curation.columns import ENTRIES, text_columns
from annotary.curation.looks import PictureOptions
from annotary.curation.steps import FAILURES, REPORT, STATE, OnPart, Tally
from annotary.curation.tables import Part, PartWriter, Rows, find_parts, open_parquet
from annotary.errors import UsageError
from annotary.records import Failure, Item
from annotary.sinks import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

    from annotary.curation.capfilt import CapFiltResult

ORIGIN, SCORE = "origin", "score"
"""Columns that are added: `web` or `synthetic`, and what the filter said."""

PICTURES = "_pictures.html"

_WITH_IMAGES = 32  # rows at a time where images are copied


class Models(NamedTuple):
    """The names of the models; None for none."""

    captioner: str | None
    matcher: str | None

    @classmethod
    def of(cls, more: Mapping[str, Any]) -> Models:
        """By the keys of the step.

        Raises:
            UsageError: One is not said.
        """
        named = []
        for key, kind in (("captioner", "writes captions"), ("matcher", "filters")):
            if more.get(key) is None:
                raise UsageError(f'say which model {kind}: {key} = "NAME", or {key} = "none"')
            named.append(None if more[key] == "none" else str(more[key]))
        return cls(*named)


def caption_and_filter(
    tables: Sequence[Path],
    folder: Path,
    options: Mapping[type, Any],
    models: Models,
    *,
    report_images: int,
    watch: Callable[[str, int, str], AbstractContextManager[OnPart]],
) -> Tally:
    """Do it; what was stopped is gone on with.

    Args:
        tables: What the step before has written.
        folder: Where it is written.
        options: By their classes: those of CapFilt, of sources, decoding, spreading, running, and `PictureOptions`.
        models: What writes and what filters.
        report_images: Images on the page with pictures; 0 writes none.
        watch: Shows how far it is.
    """
    from annotary.curation.capfilt import CapFiltOptions, capfilt
    from annotary.images import DecodeOptions
    from annotary.pipeline import PipelineOptions
    from annotary.runtime import RuntimeOptions
    from annotary.sources import SourceOptions

    state = folder / STATE
    parts = _whole(find_parts(tables))
    sources: SourceOptions = options[SourceOptions]
    pictures: PictureOptions = options[PictureOptions]
    asked: CapFiltOptions = options[CapFiltOptions]
    copies = {}
    with watch("finding images", len(parts), "parts") as on_part:
        for number, file in enumerate(parts, 1):
            copies[str(_with_images(parts[file], state, pictures, sources))] = file
            on_part(number, Tally())
    texts = state / "texts.parquet"
    rows_read = sum(map(_rows_of, parts))
    with watch("captioning and filtering", rows_read, "images") as on_part:
        result = capfilt(
            *(list(copies), texts, asked),
            captioner=models.captioner,
            matcher=models.matcher,
            report=folder / PICTURES if report_images else None,
            report_images=report_images or 1,
            source_options=sources,
            decode_options=options[DecodeOptions],
            pipeline_options=options[PipelineOptions],
            runtime_options=options[RuntimeOptions],
            on_image=lambda outcome, _: on_part(outcome.seen, Tally(rows_in=1)),
        )
    columns = asked.text_column or text_columns(next(iter(parts.values())), ())
    kept = _kept(texts)
    rows = 0
    for copy, file in copies.items():
        rows += _write(parts[file], folder, kept.get(copy, []), columns)
    shutil.rmtree(state / "images", ignore_errors=True)
    return _tell(folder, result, rows, len(parts))


def _rows_of(file: str) -> int:
    """How many rows a Parquet file has; 0 of what does not say it at once."""
    if not file.endswith(".parquet"):
        return 0
    with open_parquet(file) as table:
        return int(table.metadata.num_rows)


def _whole(parts: Sequence[Part]) -> dict[str, Part]:
    """The files of parts, each as one part."""
    found = {}
    for part in parts:
        name = part.name if part.groups is None else part.name.rpartition("-")[0]
        found[part.file] = replace(part, name=name, groups=None)
    return found


class _Kept(NamedTuple):
    """A text that was kept, by the row that it belongs to, from 1."""

    row: int
    is_synthetic: bool
    text: str
    score: float | None


def _kept(texts: Path) -> dict[str, list[_Kept]]:
    """The texts that were kept, by their table, in the order of its rows.

    A synthetic text goes with the first row of its image.
    """
    from annotary.curation._capfilt_output import read_rows

    found: dict[str, list[_Kept]] = {}
    for _, group in groupby(read_rows(texts), key=lambda row: row["image"]):
        home: tuple[str, int] | None = None
        for row in group:
            if row.get("table") is not None and home is None:
                home = str(row["table"]), int(row["row"])
            if not row["kept"]:
                continue
            is_synthetic = row["origin"] == "synthetic"
            place = home if is_synthetic else (str(row["table"]), int(row["row"]))
            assert place is not None
            kept = _Kept(place[1], is_synthetic, str(row["text"]), row.get("score"))
            found.setdefault(place[0], []).append(kept)
    for own in found.values():
        own.sort(key=lambda one: one[:2])
    return found


def _write(part: Part, folder: Path, kept: Sequence[_Kept], columns: Sequence[str]) -> int:
    """Write the rows of a table with the texts that were kept; gives how many there are."""
    schema = Rows(part).schema
    without = {name + ENTRIES for name in schema.names} | {ORIGIN, SCORE, *columns[1:]}
    names = [name for name in schema.names if name not in without]
    place, first = 0, 1
    with PartWriter(folder / f"{part.name}.parquet") as writer:
        for batch in Rows(part, names).batches():
            end = place
            while end < len(kept) and kept[end].row < first + batch.num_rows:
                end += 1
            writer.write(_rewritten(batch, kept[place:end], first, columns[0]))
            place, first = end, first + batch.num_rows
        return writer.rows


def _rewritten(
    batch: pa.RecordBatch, kept: Sequence[_Kept], first: int, column: str
) -> pa.RecordBatch:
    """Rows of a batch with other texts; `first` is the number of its first row."""
    import pyarrow as pa

    rows = batch.take(pa.array([one.row - first for one in kept], pa.int64()))
    texts = pa.array([one.text for one in kept], pa.string())
    rows = rows.set_column(rows.schema.names.index(column), column, texts)
    origins = ["synthetic" if one.is_synthetic else "web" for one in kept]
    rows = rows.append_column(ORIGIN, pa.array(origins, pa.string()))
    return rows.append_column(SCORE, pa.array([one.score for one in kept], pa.float64()))


def _with_images(part: Part, state: Path, pictures: PictureOptions, sources: Any) -> Path:
    """A table of which every image can be had from where it stands: the part itself, or a copy with other paths.

    Paths start where they do in the first tables, which is told by `pictures`, and a member of a tar has no path of its
    own: it is copied. What is neither a path nor in a tar stays.
    """
    import pyarrow as pa

    from annotary.curation._row_images import RowImages, image_column

    schema = Rows(part).schema
    column = image_column(part, schema, sources.image_column)
    target = state / "images" / f"{part.name}.parquet"
    if part.form == "webdataset" or not _holds_paths(schema.field(column).type):
        return Path(part.file)
    if target.exists():
        return target
    # Both forms in one column, so that a table may have paths and members of tars.
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    place = schema.names.index(column)
    folder = None if pictures.images is None else str(pictures.images)
    with RowImages(part, folder, sources) as images, PartWriter(target) as writer:
        number = 0
        for batch in Rows(part).batches():
            for start in range(0, max(1, batch.num_rows), _WITH_IMAGES):
                piece = batch.slice(start, _WITH_IMAGES)
                found = []
                for cell in piece.column(place):
                    found.append(_cell(images.of(number, cell), cell.as_py()))
                    number += 1
                writer.write(piece.set_column(place, column, pa.array(found, kind)))
    return target


def _holds_paths(kind: pa.DataType) -> bool:
    from annotary.curation.columns import is_text

    return is_text(kind)


def _cell(found: Item | Failure, cell: Any) -> dict[str, Any] | None:
    """An image as its bytes with its name, or as where it is."""
    if isinstance(found, Item) and found.data is not None:
        return {"bytes": found.data, "path": str(cell)}
    if isinstance(found, Item) and found.path is not None:
        return {"bytes": None, "path": os.path.abspath(found.path)}  # noqa: PTH100 - a link stays what it is
    return None if cell is None else {"bytes": None, "path": str(cell)}


def _tell(folder: Path, result: CapFiltResult, rows: int, parts: int) -> Tally:
    """Write the report of the step, and count."""
    tally = Tally(rows_out=rows)
    for origin, one in result.texts.items():
        tally.rows_in += int(one["texts"])
        for why, count in one["dropped"].items():
            tally.drop(f"{origin} text: {why}", int(count))
    if result.failures is not None:
        shutil.copyfile(result.failures, folder / FAILURES)
    else:
        (folder / FAILURES).unlink(missing_ok=True)
    told = result.to_json()
    report = {
        "step": "capfilt",
        "settings": dict(result.settings),
        "parts": parts,
        "rows_in": tally.rows_in,
        "rows_out": tally.rows_out,
        "dropped": dict(sorted(tally.dropped.items(), key=lambda one: (-one[1], one[0]))),
        "images": told["images"],
        "images_failed": told["failed"],
    }
    for origin, one in result.texts.items():
        report |= {f"{origin}_texts": one["texts"], f"{origin}_texts_kept": one["kept"]}
        if one["noise_ratio"] is not None:
            report[f"{origin}_noise_share"] = one["noise_ratio"]
    report["lowest_score_kept"] = told["lowest_kept"]
    write_atomically(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return tally


def failures_of(folder: Path) -> int:
    """How many images could not be had."""
    try:
        with (folder / FAILURES).open("rb") as file:
            return sum(1 for _ in _lines(file))
    except FileNotFoundError:
        return 0


def _lines(file: Any) -> Iterator[bytes]:
    yield from (line for line in file if line.strip())
