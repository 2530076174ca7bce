"""The kinds of steps that a pipeline may have: the options of each, what is checked beforehand, and what does it.

A kind's options are the dataclasses of its command, so that a key of the TOML is an option of the command line. Modules
of steps are imported when a pipeline has such a step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from annotary.curation.steps import REPORT, OnPart, StepOptions, StepResult
from annotary.errors import UsageError

if TYPE_CHECKING:
    from annotary.curation.looks import LooksStep
    from annotary.curation.tables import Part

SPREAD = ("workers", "executor")
"""Options of `StepOptions` that a step of a pipeline may have; the pipeline itself decides the others."""


Watch = Callable[[str, int, str], AbstractContextManager[OnPart]]
"""What is done, for how many, and of what ("parts", "images"); gives what is told of each as it is done."""


@contextmanager
def _unwatched(_verb: str, _count: int, _unit: str) -> Iterator[OnPart]:
    yield lambda _done, _tally: None


@dataclass(frozen=True, slots=True)
class Work:
    """What a step of a pipeline does its work with.

    Attributes:
        folder: Where it is written.
        tables: What is read.
        options: The options by their class.
        more: Keys that are no fields of these.
        steps: How the work is spread.
        parts: How many parts the tables have.
        is_done: Whether an earlier run has done it; for what is checked beforehand.
        matched: The folder of the last step that matched, if any.
        entries: The list of entries that the last `metadata` has made, if any.
        watch: Shows how far a part of the work is.
        note: Is told what is worth a line.
    """

    folder: Path
    tables: Sequence[Path]
    options: Mapping[type, Any]
    more: Mapping[str, Any]
    steps: StepOptions
    parts: int = 0
    is_done: bool = False
    matched: Path | None = None
    entries: Path | None = None
    watch: Watch = _unwatched
    note: Callable[[str], None] = lambda _: None

    def of(self, record: type) -> Any:
        """The options of a class."""
        return self.options[record]


@dataclass(slots=True)
class Known:
    """What is known of the tables that a step will get, before anything runs.

    Attributes:
        part: A part that has their columns, but for those that steps add; None where nobody can know.
        is_matched: Whether a step has matched them.
        matched_columns: Columns of texts that have entries.
        has_list: Whether a step has made a list of entries.
    """

    part: Part | None
    is_matched: bool = False
    matched_columns: set[str] = field(default_factory=set)
    has_list: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a step has done.

    Attributes:
        rows_in: Rows that were read.
        rows_out: Rows that were written.
        dropped: Why rows were dropped to how many they are.
        failures: How many parts, rows and images were broken.
        parts_failed: How many parts could not be done; the next run tries them again.
        makes_tables: Whether the next step reads what it wrote, rather than what it read.
        is_of_entries: Whether what is counted are entries and not rows of tables.
    """

    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    failures: int
    parts_failed: int = 0
    makes_tables: bool = True
    is_of_entries: bool = False

    @classmethod
    def of(cls, result: StepResult) -> Done:
        """By the result of a step."""
        total = result.total
        return cls(
            *(total.rows_in, total.rows_out, dict(total.dropped), len(total.failures)),
            parts_failed=len(result.failed),
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of steps.

    Attributes:
        records: The dataclasses of its options, as `module:Class`.
        more: Keys that are no fields of these, and their types.
        check: Looks for what would go wrong, and changes what is known.
        run: Does it.
        without: Fields that are no keys, as the pipeline decides them.
        paths: Keys beside those of type `Path` that name files or folders, relative to the file of the pipeline.
        is_spread: Whether it has `SPREAD`.
        changes_texts: Whether matches of the steps before are of other texts than what it leaves.
    """

    records: tuple[str, ...]
    check: Callable[[Work, Known], None]
    run: Callable[[Work], Done]
    more: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    is_spread: bool = True
    changes_texts: bool = False

    def classes(self) -> tuple[type, ...]:
        """The dataclasses of its options."""
        found = []
        for name in self.records:
            module, _, record = name.partition(":")
            found.append(cast(type, getattr(import_module(f"annotary.{module}"), record)))
        return tuple(found)

    def keys(self) -> tuple[str, ...]:
        """The keys that such a step may have beside `use` and `name`."""
        own = [one.name for record in self.classes() for one in fields(cast(Any, record))]
        names = [*self.more, *(name for name in own if name not in self.without)]
        return tuple(dict.fromkeys([*names, *(SPREAD if self.is_spread else ())]))


def _check_metadata(_: Work, known: Known) -> None:
    known.has_list = True


def _metadata(work: Work) -> Done:
    from annotary.curation._entry_files import entry_file
    from annotary.curation.metadata import MetadataOptions, MetadataSources, build_metadata
    from annotary.sinks import write_atomically

    found = build_metadata(work.of(MetadataSources), work.of(MetadataOptions))
    work.folder.mkdir(parents=True, exist_ok=True)
    place = work.folder / ENTRY_LIST
    write_atomically(place, entry_file(found.entries, place))
    report = {"step": "metadata", **found.report}
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(work.folder / REPORT, text)
    sources = found.report["sources"].values()
    dropped: dict[str, int] = {}
    for one in sources:
        for why, count in one.get("dropped", {}).items():
            dropped[why] = dropped.get(why, 0) + count
    rows = sum(one.get("texts", 0) for one in sources) + 100
    return Done(
        *(rows, len(found.entries), dropped, len(found.broken)),
        makes_tables=False,
        is_of_entries=True,
    )


ENTRY_LIST = "entries.jsonl"
"""What `metadata` writes in its folder."""


def _check_match(work: Work, known: Known) -> None:
    from annotary.curation.columns import text_columns
    from annotary.curation.entries import language_rule, read_entries
    from annotary.curation.match import MatchOptions

    options = work.of(MatchOptions)
    language_rule(options.language)
    if work.more.get("entries") is not None:
        read_entries(work.more["entries"])
    columns = set(options.text_column)
    if known.part is not None:
        columns = set(text_columns(known.part, options.text_column))
    if again := sorted(columns & known.matched_columns):
        raise UsageError(f"the column {again[0]!r} was matched by a step before")
    known.is_matched = True
    known.matched_columns |= columns


def _match(work: Work) -> Done:
    from annotary.curation.entries import read_entries
    from annotary.curation.match import MatchOptions, english_entries, match

    file = work.more.get("entries") or work.entries
    entries = english_entries() if file is None else read_entries(file)
    notice = entries.notice()
    if notice is not None:
        work.note(notice)
    options = work.of(MatchOptions)
    with work.watch("matching", work.parts, "parts") as on_part:
        return Done.of(
            match(work.tables, entries, work.folder, options, work.steps, on_part=on_part)
        )


def _check_balance(work: Work, known: Known) -> None:
    from annotary.curation.balance import BalanceOptions, read_counts_file
    from annotary.curation.columns import id_columns

    if not known.is_matched:
        raise UsageError(
            "balance counts entries, and no step before has matched the texts that it gets;"
            ' put a step with use = "match" before it'
        )
    if work.more.get("counts") is not None:
        read_counts_file(work.more["counts"])
    if known.part is not None:
        id_columns(known.part, work.of(BalanceOptions).id)


def _balance(work: Work) -> Done:
    from annotary.curation.balance import BalanceOptions, balance, read_counts_file

    assert work.matched is not None
    file = work.more.get("counts")
    counts = None if file is None else read_counts_file(file)
    options = work.of(BalanceOptions)
    with work.watch("balancing", work.parts, "parts") as on_part:
        return Done.of(
            balance(
                *(work.matched, work.folder, options, work.steps),
                counts=counts,
                tables=None if list(work.tables) == [work.matched] else work.tables,
                on_part=on_part,
            )
        )


def _looks(work: Work) -> LooksStep:
    """How images are found, read and measured."""
    from annotary.curation.looks import LooksStep, PictureOptions
    from annotary.images import DecodeOptions
    from annotary.sources import SourceOptions

    return LooksStep(work.of(SourceOptions), work.of(DecodeOptions), work.of(PictureOptions))


def _check_dedup(work: Work, known: Known) -> None:
    from annotary.curation.dedup import DedupOptions, check_dedup

    if known.part is not None:
        check_dedup([known.part], work.of(DedupOptions), _looks(work))


def _dedup(work: Work) -> Done:
    from annotary.curation.dedup import DedupOptions, dedup
    from annotary.runtime import RuntimeOptions

    return Done.of(
        dedup(
            *(work.tables, work.folder, work.of(DedupOptions), work.steps),
            looks=_looks(work),
            runtime=work.of(RuntimeOptions),
            watch=lambda verb, parts: work.watch(verb, parts, "parts"),
        )
    )


def _check_quality(work: Work, known: Known) -> None:
    from annotary.curation.quality import QualityOptions, check_quality

    options = work.of(QualityOptions)
    if known.part is not None:
        check_quality([known.part], options, _looks(work))
    else:
        options.limits()


def _quality(work: Work) -> Done:
    from annotary.curation.quality import QualityOptions, filter_quality

    options = work.of(QualityOptions)
    with work.watch("filtering", work.parts, "parts") as on_part:
        return Done.of(
            filter_quality(
                *(work.tables, work.folder, options, work.steps),
                looks=_looks(work),
                on_part=on_part,
            )
        )


def _check_capfilt(work: Work, known: Known) -> None:
    from annotary.curation._capfilt_options import Models as LoadedModels
    from annotary.curation._plan_capfilt import Models
    from annotary.curation._row_images import image_column
    from annotary.curation.capfilt import CapFiltOptions
    from annotary.curation.columns import text_columns
    from annotary.curation.tables import Rows
    from annotary.runtime import RuntimeOptions
    from annotary.sources import SourceOptions

    options, models = work.of(CapFiltOptions), Models.of(work.more)
    if work.more.get("report_images", 0) < 0:
        raise UsageError(
            f"report_images must not be negative, but got {work.more['report_images']}"
        )
    if known.part is not None:
        text_columns(known.part, options.text_column)
        schema = Rows(known.part).schema
        image_column(known.part, schema, work.of(SourceOptions).image_column)
    if not work.is_done:
        # They are loaded, so that what lacks an ability or a threshold is told now and not after days.
        LoadedModels.of(*models, options, work.of(RuntimeOptions))
    known.is_matched = False
    known.matched_columns.clear()


def _capfilt(work: Work) -> Done:
    from annotary.curation._plan_capfilt import Models, caption_and_filter, failures_of
    from annotary.curation.capfilt import REPORT_IMAGES

    tally = caption_and_filter(
        *(work.tables, work.folder, work.options, Models.of(work.more)),
        report_images=int(work.more.get("report_images", REPORT_IMAGES)),
        watch=work.watch,
    )
    failures = failures_of(work.folder)
    return Done(tally.rows_in, tally.rows_out, dict(tally.dropped), failures)


_OF_IMAGES = ("sources:SourceOptions", "images:DecodeOptions", "curation.looks:PictureOptions")
_NO_FILES = ("recursive", "include_files", "exclude_files", "shard")


KINDS: Mapping[str, Kind] = {
    "metadata": Kind(
        ("curation.metadata:MetadataSources", "curation.metadata:MetadataOptions"),
        _check_metadata,
        _metadata,
        paths=("captions", "wordnet"),
        is_spread=False,
    ),
    "match": Kind(
        ("curation.match:MatchOptions",), _check_match, _match, more={"entries": Path | None}
    ),
    "dedup": Kind(
        ("curation.dedup:DedupOptions", *_OF_IMAGES, "runtime:RuntimeOptions"),
        _check_dedup,
        _dedup,
        without=_NO_FILES,
        paths=("against", "against_texts"),
    ),
    "quality": Kind(
        ("curation.quality:QualityOptions", *_OF_IMAGES),
        _check_quality,
        _quality,
        without=_NO_FILES,
    ),
    "capfilt": Kind(
        (
            "curation.capfilt:CapFiltOptions",
            *_OF_IMAGES,
            "pipeline:PipelineOptions",
            "runtime:RuntimeOptions",
        ),
        _check_capfilt,
        _capfilt,
        more={"captioner": str | None, "matcher": str | None, "report_images": int},
        without=(*_NO_FILES, "on_existing", "retry_failed"),
        is_spread=False,
        changes_texts=True,
    ),
    "balance": Kind(
        ("curation.balance:BalanceOptions",),
        _check_balance,
        _balance,
        more={"counts": Path | None},
    ),
}
"""What `use` may name."""
