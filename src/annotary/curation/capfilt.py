"""CapFilt: a captioner writes a second text for every image of a table, and a filter drops what does not fit.

BLIP (Li et al., 2022, section 3.3 and table 1), of whose CapFilt no code was published. A captioner that was fine-tuned
on COCO writes one synthetic caption for each web image by nucleus sampling (p = 0.9), a filter that was fine-tuned on
COCO as well, but by itself, drops every web or synthetic text that it finds unmatched (a probability of image-text
matching below 0.5). Here any captioner and any model that compares images and texts can be named.

    OUT.parquet                          the table, one row a text; written when the last image is done
    OUT.parquet.journal.jsonl            what was found of each image; a run that is stopped goes on from it
    OUT.parquet.journal.jsonl.run.json   the settings that it depends on; locked while a run goes on
    failures.jsonl                       the images that could not be had
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from annotary.curation._capfilt_journal import SUFFIX
from annotary.curation._capfilt_judging import Asked
from annotary.curation._capfilt_options import THRESHOLD, CapFiltOptions, Models, check_told
from annotary.curation._capfilt_output import check_place, read_rows
from annotary.curation._capfilt_page import Pictures, check_page, write_page
from annotary.curation._capfilt_run import CapFiltResult, Run
from annotary.curation._capfilt_store import Store
from annotary.curation._capfilt_tables import Tables
from annotary.errors import NothingToDo, OutputError, UsageError
from annotary.images import DecodeOptions
from annotary.models import Model
from annotary.pipeline import Outcome, PipelineOptions, annotate
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader, SourceOptions

__all__ = ["THRESHOLD", "CapFiltOptions", "CapFiltResult", "capfilt", "write_report"]

REPORT_IMAGES = 200
"""Images in a report, at most."""


def capfilt(
    tables: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: CapFiltOptions | None = None,
    *,
    captioner: str | Model | None,
    matcher: str | Model | None,
    report: str | os.PathLike[str] | None = None,
    report_images: int = REPORT_IMAGES,
    source_options: SourceOptions | None = None,
    decode_options: DecodeOptions | None = None,
    pipeline_options: PipelineOptions | None = None,
    runtime_options: RuntimeOptions | None = None,
    on_image: Callable[[Outcome, int], None] | None = None,
) -> CapFiltResult:
    """Caption the images of tables, and keep the texts that fit. The same call goes on with what was stopped.

    Args:
        tables: CSV, JSON Lines, Parquet, WebDataset tars, or folders of them.
        output: The table to write: `.parquet`, `.jsonl` or `.csv`.
        options: What is written, and what is kept.
        captioner: A name of `annotary models`, or a loaded model; None writes nothing.
        matcher: The filter, in the same way; None drops nothing but what is empty or said twice.
        report: A page of HTML to write, too.
        report_images: How many images it shows, at most.
        source_options: Which column holds the images, and how they are read.
        decode_options: How they are decoded.
        pipeline_options: How the work is spread.
        runtime_options: How networks run.
        on_image: Is told the counts whenever an image is done, and how many images there are.

    Raises:
        UsageError: The options make no sense together, or a table lacks a column. Nothing has been written.
        OutputError: The output belongs to another run or cannot be written.
    """
    output, options = Path(output), options or CapFiltOptions()
    source_options = source_options or SourceOptions()
    decode_options = decode_options or DecodeOptions()
    check_told(captioner, matcher, options)
    check_place(output)
    if report is not None:
        check_page(Path(report))
    found = Tables(tables, options.text_column, source_options)
    _check_place(output, tables, found.files)
    models = Models.of(captioner, matcher, options, runtime_options or RuntimeOptions())
    with Store() as store:
        store.add(found.rows(with_images=False))
        if not store.images:
            raise NothingToDo(f"no rows in {', '.join(str(path) for path in tables)}")
        asked = Asked()
        task = models.task(options, asked)
        run = Run(store, found, output, models, options)
        settings = {"command": "curate capfilt", **models.weights(), **task.settings()}
        settings |= {**_decoding(decode_options), "shard": source_options.shard}
        spread = pipeline_options or PipelineOptions()
        with run.opened(settings), Reader(source_options) as reader:
            results = annotate(run.items(asked), [task], reader, decode_options, spread)
            with contextlib.closing(results):
                for result in results:
                    asked.drop(result.record.image)
                    run.take(result.record, result.beside)
                    if on_image is not None:
                        on_image(run.outcome, store.images)
        ended = run.end()
        if report is not None:
            rows = lambda: store.rows(ended.below)  # noqa: E731 - it is gone through twice
            pictures = Pictures(found.files, source_options, decode_options)
            told = {**ended.result.to_json(), "tables": [str(path) for path in tables]}
            write_page(Path(report), rows, pictures, told, images=report_images, seed=options.seed)
        return ended.result


def write_report(
    table: str | os.PathLike[str],
    page: str | os.PathLike[str],
    *,
    images: int = REPORT_IMAGES,
    seed: int = 0,
    source_options: SourceOptions | None = None,
    decode_options: DecodeOptions | None = None,
) -> int:
    """Show what a finished table keeps and drops as a page of HTML.

    Args:
        table: What `capfilt` wrote.
        page: The page to write.
        images: How many images it shows, at most.
        seed: Of which those are.
        source_options: Which column of the tables holds the images, for those that have no file of their own.
        decode_options: How they are decoded.

    Returns:
        How many images it shows.

    Raises:
        UsageError: The table is another one.
        OutputError: The page cannot be written.
    """
    check_page(Path(page))
    place = Path(table)
    tables = dict.fromkeys(str(row["table"]) for row in read_rows(place) if row.get("table"))
    pictures = Pictures(
        list(tables), source_options or SourceOptions(), decode_options or DecodeOptions()
    )
    return write_page(
        *(Path(page), lambda: read_rows(place), pictures, {"output": str(place)}),
        images=images,
        seed=seed,
    )


def _decoding(options: DecodeOptions) -> dict[str, Any]:
    """What pixels depend on beside the models."""
    return {
        "reduce": options.reduce,
        "max_pixels": options.max_pixels,
        "transparency": options.transparency,
    }


def _check_place(
    output: Path, tables: Sequence[str | os.PathLike[str]], files: Sequence[str]
) -> None:
    """Refuse to write over what is read, or between it, and over what nobody knows.

    Raises:
        UsageError: The output is read.
        OutputError: There is a file of its name that no journal belongs to.
    """
    journal = output.with_name(output.name + SUFFIX)
    for path in (output, journal):
        if path.exists() and any(os.path.samefile(path, file) for file in files):  # noqa: PTH121
            raise UsageError(f"{path} is read and cannot be written; choose another --output")
    for folder in filter(os.path.isdir, tables):
        if Path(os.path.realpath(folder)) in Path(os.path.realpath(output)).parents:
            raise UsageError(
                f"{output} lies in {os.fspath(folder)}, of which all tables are read; choose another --output"
            )
    if output.exists() and not journal.exists():
        raise OutputError(
            f"{output} is there, and no {journal.name} beside it; move it away, or choose another --output"
        )
