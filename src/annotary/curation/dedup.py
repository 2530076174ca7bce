"""De-duplication of tables of pairs: rows with the same text, address or image, and rows of evaluation sets, go.

Rows are compared over all tables, however many there are; each part is read twice and never held. First hashes of what
rows are compared by go to files, which are compared a bucket at a time; that gives a plan of which rows go. Then each
part is written without them. Of rows that are the same the first stays, in the order of the tables and of the rows in
them; of images the one with the most pixels. The result does not depend on how the work is spread.

Where this stands in curation: Xu et al., "Demystifying CLIP Data", ICLR 2024 (arXiv 2309.16671), figure 5. Keeping
evaluation images out of training by perceptual hashes is what JoyTag does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from annotary.catalog.perceptual_hash import MOST_DISTANCE
from annotary.curation._dedup_against import evaluation_set, text_digest
from annotary.curation._dedup_embedding import EmbedStep
from annotary.curation._dedup_plan import clear, dedup_folder, has_plan, read_plan
from annotary.curation._dedup_planning import Planning, Watch, make_plan
from annotary.curation._dedup_vectors import VectorStep
from annotary.curation._dedup_ways import IMAGE_WAYS, WAYS, is_way, key_ways
from annotary.curation._dedup_writing import DUPLICATES, WriteStep, write_duplicates
from annotary.curation._row_images import image_column
from annotary.curation.columns import id_columns
from annotary.curation.looks import LooksStep
from annotary.curation.steps import (
    REPORT,
    OnPart,
    StepOptions,
    StepResult,
    Tally,
    add_to_report,
    run_step,
    take_folder,
)
from annotary.curation.tables import (
    Part,
    Rows,
    column_types,
    find_parts,
    no_column,
    sound_part,
)
from annotary.errors import UsageError
from annotary.runtime import RuntimeOptions


@dataclass(frozen=True, slots=True)
class DedupOptions:
    """What counts as the same."""

    by: str = field(default="", metadata={"metavar": "WAY,WAY"})
    """How rows are compared: text, url, pair (the address and the text), column:NAME, exact (the bytes of the image),
    phash (its look), embedding (its vector). A row goes for the first of them that finds it."""

    normalise: bool = False
    """Texts count as the same that differ in case, white space, or in how characters are encoded (NFKC)."""

    text_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The column with texts; the first with a usual name when nothing is said."""

    url_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The column with addresses; the first with a usual name when nothing is said."""

    vector_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """For embedding: the column with vectors, lists of as many numbers each."""

    model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """For embedding, in place of a column: the model that embeds the images, a name of `annotary models`, hf:OWNER/NAME
    or dir:PATH."""

    distance: int = field(default=6, metadata={"metavar": "BITS"})
    """For phash: how many of the 64 bits may differ, 0 to 16."""

    cosine: float = field(default=0.95, metadata={"metavar": "X"})
    """For embedding: how alike the vectors must be, above 0 to 1."""

    against: tuple[str, ...] = field(default=(), metadata={"metavar": "SET"})
    """Let rows go whose image is, exactly or nearly, in this evaluation set: a folder of images, or tables. May be
    given several times."""

    against_texts: tuple[str, ...] = field(default=(), metadata={"metavar": "SET"})
    """Let rows go whose text is in this evaluation set: a table, or a .txt with a text a line. May be given several
    times."""

    id: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The column that tells a row in the list of duplicates; the first with a usual name when nothing is said."""

    keep_duplicates: bool = False
    """Write all rows, and mark those that would go in columns duplicate_by, duplicate_of and duplicate_distance."""

    def __post_init__(self) -> None:
        for way in self.ways:
            if not is_way(way):
                raise ValueError(f"by must be of {', '.join(WAYS)} or column:NAME, but got {way!r}")
        if not self.ways and not self.against and not self.against_texts:
            raise ValueError(
                f"by must say how rows are compared ({', '.join(WAYS)}, column:NAME), unless --against is given"
            )
        if not 0 <= self.distance <= MOST_DISTANCE:
            raise ValueError(f"distance must be 0..{MOST_DISTANCE} bits, but got {self.distance}")
        if not 0.0 < self.cosine <= 1.0:
            raise ValueError(f"cosine must be above 0 and at most 1, but got {self.cosine}")
        if "embedding" in self.ways and (self.vector_column is None) == (self.model is None):
            raise ValueError(
                "by embedding needs vectors: say either --vector-column NAME or --model NAME"
            )

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways, each once."""
        return tuple(dict.fromkeys(way.strip() for way in self.by.split(",") if way.strip()))

    @property
    def looks_at_images(self) -> bool:
        """Whether pictures are read."""
        is_embedded = "embedding" in self.ways and self.model is not None
        return bool(self.against) or bool({"exact", "phash"} & set(self.ways)) or is_embedded


def dedup(
    tables: Sequence[str | Path],
    folder: Path,
    options: DedupOptions,
    steps: StepOptions | None = None,
    *,
    looks: LooksStep | None = None,
    looks_folder: Path | None = None,
    runtime: RuntimeOptions | None = None,
    watch: Watch | None = None,
) -> StepResult:
    """Let rows go that are the same as others, or in an evaluation set.

    Args:
        tables: Tables, folders of tables.
        folder: Where it is written: a Parquet file for each part, `_duplicates.parquet` with what goes, and the report.
        options: What counts as the same.
        steps: How the work is spread. With `shard`, a run that other machines must first do their share for ends before
            anything is written, and goes on when it is called again.
        looks: Which column holds images, and how they are read.
        looks_folder: Where measures of pictures are kept, or are already; below `folder` when nothing is said.
        runtime: How the model runs that embeds images.
        watch: Shows how far it is.

    Raises:
        UsageError: A column is not there, or an evaluation set.
        OutputError: The folder holds something else, or cannot be written.
    """
    steps, looks, watch = steps or StepOptions(), looks or LooksStep(), watch or _unwatched
    started = time.monotonic()
    parts = find_parts(tables)
    embedding = _embedding(options, looks, runtime)
    planning = _planning(parts, folder, options, looks, embedding, looks_folder)
    told = _settings(planning, options)
    step = WriteStep(told, options.id, options.keep_duplicates, planning.looks_folder)
    take_folder(step, folder, steps)
    steps = replace(steps, on_existing="continue")
    if not has_plan(folder, parts, planning.against):
        for name in (REPORT, DUPLICATES):  # of tables that have changed since
            (folder / name).unlink(missing_ok=True)
        if steps.shard is None:
            clear(folder)
        missing = make_plan(planning, steps, watch)
        if missing:
            seconds = time.monotonic() - started
            return StepResult(folder, {}, Tally(), (), missing, 0, seconds)
    with watch("writing", len(parts)) as on_part:
        result = run_step(step, parts, folder, steps, on_part=on_part)
    if result.is_complete:
        add_to_report(folder, read_plan(folder).beside)
        if result.done_before < len(result.tallies) or not (folder / DUPLICATES).exists():
            write_duplicates(folder, list(result.tallies))
        if not result.failed:
            clear(folder, is_complete=True)
    return replace(result, seconds=time.monotonic() - started)


def check_dedup(
    parts: Sequence[Part], options: DedupOptions, looks: LooksStep | None = None
) -> None:
    """Refuse what cannot be done, as far as it is known before anything is read or written.

    Args:
        parts: The tables, or one that stands for all.
        options: What counts as the same.
        looks: Which column holds images.

    Raises:
        UsageError: A column, an evaluation set or a model is not there.
    """
    looks = looks or LooksStep()
    _planning(parts, Path(), options, looks, _embedding(options, looks, None), None)


def _embedding(
    options: DedupOptions, looks: LooksStep, runtime: RuntimeOptions | None
) -> EmbedStep | VectorStep | None:
    """How vectors are had."""
    if "embedding" not in options.ways:
        return None
    if options.model is None:
        return VectorStep(str(options.vector_column))
    return EmbedStep(options.model, looks, runtime or RuntimeOptions())


def _planning(
    parts: Sequence[Part],
    folder: Path,
    options: DedupOptions,
    looks: LooksStep,
    embedding: EmbedStep | VectorStep | None,
    looks_folder: Path | None,
) -> Planning:
    """What there is to do; columns are checked as far as the first part that can be read tells.

    Raises:
        UsageError: A column or an evaluation set is not there.
    """
    first = sound_part(parts)
    ways = [way for way in options.ways if way not in IMAGE_WAYS]
    if options.against_texts and "text" not in ways:
        ways.append("text")
    keys = key_ways(first, ways, options.text_column, options.url_column)
    if options.id is not None:
        id_columns(first, (options.id,))
    if options.looks_at_images:
        image_column(first, Rows(first).schema, looks.source.image_column)
    kinds = column_types(first)
    if embedding is not None:
        embedding.settings()  # or there is no such model
    if isinstance(embedding, VectorStep) and embedding.column not in kinds:
        raise UsageError(no_column(first.file, embedding.column, list(kinds), "--vector-column"))
    sets = tuple(evaluation_set(path) for path in dict.fromkeys(options.against))
    text_sets = tuple(dict.fromkeys(options.against_texts))
    place = looks_folder or dedup_folder(folder) / "looks"
    return Planning(
        folder=folder,
        parts=parts,
        ways=options.ways,
        key_ways=tuple(keys),
        is_normalised=options.normalise,
        looks=looks,
        looks_folder=place if options.looks_at_images else None,
        embedding=embedding,
        distance=options.distance,
        cosine=options.cosine,
        sets=sets,
        text_sets=text_sets,
        text_column=options.text_column,
        against=[
            *([one.name, one.digest] for one in sets),
            *([path, text_digest(path)] for path in text_sets),
        ],
    )


def _settings(planning: Planning, options: DedupOptions) -> dict[str, Any]:
    """What decides which rows go, as JSON."""
    columns = {way.name: list(way.columns) for way in planning.key_ways}
    told: dict[str, Any] = {
        "by": list(options.ways),
        "columns": columns,
        "normalise": options.normalise,
        "against": list(options.against),
        "against_texts": list(options.against_texts),
        "keep_duplicates": options.keep_duplicates,
        "id": options.id,
    }
    if options.looks_at_images:
        told |= {"distance": options.distance, "looks": planning.looks.settings()}
    if planning.embedding is not None:
        told |= {"cosine": options.cosine, "vectors": planning.embedding.settings()}
    return told


@contextmanager
def _unwatched(_verb: str, _parts: int) -> Iterator[OnPart]:
    yield _show_nothing


def _show_nothing(done: int, tally: Tally) -> None:
    """Nobody watches."""
