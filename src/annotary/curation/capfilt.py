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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from annotary.curation._capfilt_journal import SUFFIX, Journal
from annotary.curation._capfilt_judging import (
    Asked,
    CapFilt,
    Judged,
    Loaded,
    ScoreKind,
    filter_of,
    is_same_model,
    loaded,
    writer_of,
)
from annotary.curation._capfilt_output import check_place, read_rows, write_rows
from annotary.curation._capfilt_page import Pictures, check_page, write_page
from annotary.curation._capfilt_store import Rule, Store, told_below
from annotary.curation._capfilt_tables import Tables
from annotary.errors import NothingToDo, OutputError, UnreachableImage, UsageError
from annotary.images import DecodeOptions
from annotary.models import Model
from annotary.pipeline import Outcome, PipelineOptions, annotate
from annotary.pipeline.output import FailureList
from annotary.pipeline.state import RunState
from annotary.records import Failure, Item, from_line
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader, SourceOptions
from annotary.tasks.captioning import CaptioningOptions

THRESHOLD = 0.5
"""Probabilities below it are dropped, as the paper's filter does (BLIP, section 3.3; salesforce/BLIP#46)."""

REPORT_IMAGES = 200
"""Images in a report, at most."""


@dataclass(frozen=True, slots=True)
class CapFiltOptions:
    """What is written, and what is kept."""

    text_column: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Column of the tables that holds web texts; may be given several times. Otherwise the first with a usual name,
    such as caption, text, alt or title."""

    threshold: float | None = None
    """Drop texts with a lower score. Without it 0.5 for probabilities (BLIP, SigLIP); a cosine (CLIP, the starter) has
    no usual one."""

    keep_share: float | None = None
    """Keep this share of all texts that have a score, the best, in place of --threshold; above 0 to 1."""

    kept_only: bool = False
    """Write only the texts that are kept."""

    allow_same_model: bool = False
    """Let the captioner and the filter be one model, which likes what it wrote itself."""

    prompt: str = field(default="", metadata={"metavar": "TEXT"})
    """What each synthetic caption goes on from, such as "a picture of"; it is left out of the captions."""

    nucleus: float = 0.9
    """Draw each word from the likeliest that together have this probability."""

    beams: int | None = None
    """Search with so many beginnings in place of drawing: captions are safer, and teach less."""

    min_length: int = 5
    """Tokens that a caption has at least, with those of the prompt, its start and its end."""

    max_length: int = 20
    """Tokens that a caption has at most, with those of the prompt, its start and its end."""

    no_repeat: int = 3
    """No row of so many tokens is written twice; 0 lets it be."""

    repetition_penalty: float | None = None
    """Above 1, what was written becomes less likely to be written again; without it 1.1, and 1 with --beams."""

    seed: int = 0
    """Of what is drawn, and of the images in a report."""

    on_existing: Literal["skip", "overwrite"] = "skip"
    """What becomes of results of an earlier run: skip goes on with them, overwrite throws them away."""

    retry_failed: bool = False
    """Try the images again that failed before."""

    def __post_init__(self) -> None:
        if self.keep_share is not None and not 0.0 < self.keep_share <= 1.0:
            raise ValueError(f"keep_share must be above 0 to 1, but got {self.keep_share}")
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in -1..1, but got {self.threshold}")
        if self.threshold is not None and self.keep_share is not None:
            raise ValueError("threshold and keep_share are two ways to decide; choose one")
        self.captioning()

    def captioning(self) -> CaptioningOptions:
        """How captions are written."""
        return CaptioningOptions(
            prompt=self.prompt,
            beams=self.beams,
            nucleus=self.nucleus if self.beams is None else None,
            min_length=self.min_length,
            max_length=self.max_length,
            no_repeat=self.no_repeat,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class CapFiltResult:
    """What became of the texts.

    Attributes:
        outcome: The counts of images, of this run.
        texts: Of each origin (`web`, `synthetic`): `texts`, `kept`, `scored`, `noise_ratio` (the share of the scored
            texts that the filter dropped, 0..1; None without a filter) and `dropped`, why to how many.
        settings: What they depend on: the cards, the kind of score, the threshold or share.
        cut: Texts that are longer than the filter reads.
        lowest_kept: The lowest score that is kept, where a share is; None otherwise.
        output: The table.
        rows: How many it has.
        failures: The list of images that could not be had, if there are any.
    """

    outcome: Outcome
    texts: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    cut: int
    lowest_kept: float | None
    output: Path
    rows: int
    failures: Path | None

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "command": "curate capfilt",
            "images": self.outcome.seen,
            "failed": self.outcome.failed + self.outcome.failed_before,
            "texts": {name: dict(one) for name, one in self.texts.items()},
            **self.settings,
            "cut": self.cut,
            "lowest_kept": self.lowest_kept,
            "output": str(self.output),
            "rows": self.rows,
            "failures": None if self.failures is None else str(self.failures),
        }


def capfilt(
    tables: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: CapFiltOptions = CapFiltOptions(),
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
    output = Path(output)
    source_options = source_options or SourceOptions()
    decode_options = decode_options or DecodeOptions()
    models = _Models.of(captioner, matcher, options, runtime_options or RuntimeOptions())
    check_place(output)
    if report is not None:
        check_page(Path(report))
    found = Tables(tables, options.text_column, source_options)
    _check_place(output, found.files)
    with Store() as store:
        store.add(found.rows(with_images=False))
        if not store.images:
            raise NothingToDo(f"no rows in {', '.join(str(path) for path in tables)}")
        asked = Asked()
        task = models.task(options, asked)
        run = _Run(store, found, output, models, options)
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


@dataclass(frozen=True, slots=True)
class _Models:
    """What writes and what filters, and what the filter drops."""

    writer: Loaded | None
    judge: Loaded | None
    rule: Rule
    kind: ScoreKind | None
    is_same: bool

    @classmethod
    def of(
        cls,
        captioner: str | Model | None,
        matcher: str | Model | None,
        options: CapFiltOptions,
        runtime_options: RuntimeOptions,
    ) -> _Models:
        """The models by name.

        Raises:
            UsageError: There is none, both are one, one lacks its ability, or nobody says what is dropped.
        """
        if captioner is None and matcher is None:
            raise UsageError("with neither a captioner nor a matcher there is nothing to do")
        if captioner is not None and captioner == matcher and not options.allow_same_model:
            raise UsageError(_told_same(str(getattr(captioner, "card", captioner))))
        writer, judge = loaded(captioner, runtime_options), loaded(matcher, runtime_options)
        is_same = writer is not None and judge is not None and is_same_model(writer, judge)
        if is_same and not options.allow_same_model:
            assert writer is not None
            raise UsageError(_told_same(writer.model.card.id))
        writer_of(writer)
        filter_ = filter_of(judge)
        kind = None if filter_ is None else filter_.kind
        return cls(writer, judge, _rule(options, kind, judge), kind, is_same)

    def task(self, options: CapFiltOptions, asked: Asked) -> CapFilt:
        """What is asked of each image."""
        captioning = options.captioning()
        return CapFilt(
            *(writer_of(self.writer), captioning.decoding(), captioning.prompt),
            *(filter_of(self.judge), asked),
        )

    def weights(self) -> dict[str, Any]:
        """What changes with the files of the models."""
        return {
            "captioner": self._id(self.writer),
            "matcher": self._id(self.judge),
            "captioner_weights": None if self.writer is None else self.writer.weights,
            "matcher_weights": None if self.judge is None else self.judge.weights,
        }

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            **self.weights(),
            "same_model": self.is_same,
            "score": self.kind,
            "threshold": self.rule.threshold,
            "keep_share": self.rule.share,
        }

    @staticmethod
    def _id(model: Loaded | None) -> str | None:
        return None if model is None else model.model.card.id


def _told_same(name: str) -> str:
    return (
        f"the captioner and the matcher are both {name}: a filter that wrote the captions itself keeps nearly all of"
        " them; name two models, or say --allow-same-model"
    )


def _rule(options: CapFiltOptions, kind: ScoreKind | None, judge: Loaded | None) -> Rule:
    """What is dropped.

    Raises:
        UsageError: Nobody says it, or there is no score for what is said.
    """
    if kind is None or judge is None:
        if options.threshold is not None or options.keep_share is not None:
            raise UsageError("--threshold and --keep-share are for what a --matcher says")
        return Rule()
    if options.keep_share is not None:
        return Rule(share=options.keep_share)
    if options.threshold is not None:
        if kind != "cosine" and options.threshold < 0.0:
            raise UsageError(f"--threshold must be in 0..1, but got {options.threshold}")
        return Rule(threshold=options.threshold)
    if kind == "cosine":
        raise UsageError(
            f"{judge.model.card.id} scores by a cosine, of which no threshold is usual; say --keep-share or --threshold"
        )
    return Rule(threshold=THRESHOLD)


def _decoding(options: DecodeOptions) -> dict[str, Any]:
    """What pixels depend on beside the models."""
    return {
        "reduce": options.reduce,
        "max_pixels": options.max_pixels,
        "transparency": options.transparency,
    }


def _check_place(output: Path, files: Sequence[str]) -> None:
    """Refuse to write over what is read, and over what nobody knows.

    Raises:
        UsageError: The output is read.
        OutputError: There is a file of its name that no journal belongs to.
    """
    journal = output.with_name(output.name + SUFFIX)
    for path in (output, journal):
        if path.exists() and any(os.path.samefile(path, file) for file in files):  # noqa: PTH121
            raise UsageError(f"{path} is read and cannot be written; choose another --output")
    if output.exists() and not journal.exists():
        raise OutputError(
            f"{output} is there, and no {journal.name} beside it; move it away, or choose another --output"
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run that came to its end, and why it dropped texts that have a score."""

    result: CapFiltResult
    below: str


class _Run:
    """A run over the images of a store: what is in the journal is not done again.

    Args:
        store: Holds the texts.
        tables: Where they, and the images, come from.
        output: The table to write.
        models: What writes and what filters.
        options: What is kept.

    Attributes:
        outcome: The counts.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        output: Path,
        models: _Models,
        options: CapFiltOptions,
    ) -> None:
        self.outcome = Outcome()
        self._store = store
        self._tables = tables
        self._output = output
        self._models = models
        self._options = options

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Hold the journal and the list of failures while images are done, and write the table at the end."""
        path = self._output.with_name(self._output.name + SUFFIX)
        is_new = self._options.on_existing == "overwrite"
        state = RunState(path, settings, is_folder=False, overwrite=is_new)
        is_complete = False
        try:
            with ExitStack() as open_files:
                path.touch()  # a run without any image that could be had is one that can be continued, too
                self._journal = Journal(path, self._take_known)
                open_files.callback(lambda: self._journal.close(complete=True))
                self._failures = FailureList(state.failures, renews=self._options.retry_failed)
                open_files.callback(self._failures.close)
                self._begin(_listed(state.failures))
                yield
                self._finish()
            is_complete = True
        finally:
            state.release(complete=is_complete)

    def items(self, asked: Asked) -> Iterator[Item]:
        """The images that are still to be asked about, each once."""
        if not self._store.waiting:
            return
        for row in self._tables.rows(with_images=True):
            if isinstance(row.found, Item):
                texts = self._store.begin(row.found)
                if texts is not None:
                    asked.put(row.found.image, texts if self._models.judge else ())
                    yield row.found

    def take(self, record: Any, beside: Mapping[str, Any]) -> None:
        """Write down what became of an image."""
        if isinstance(record, Failure):
            self._failures.add(record)
            self._store.fail(record.image, record.message)
            self.outcome.failed += 1
            return
        judged = beside["judged"]
        self._journal.write(record.image, judged)
        self._settle(record.image, judged)
        self._failures.settle(record.image)
        self.outcome.done += 1

    def end(self) -> _Ended:
        """What came out of it; for after the files were closed."""
        return self._ended

    def _take_known(self, image: str, judged: Judged) -> None:
        """Take an image from the journal."""
        self._settle(image, judged)

    def _settle(self, image: str, judged: Judged) -> bool:
        models = self._models
        return self._store.settle(
            *(image, judged),
            is_scored=models.judge is not None,
            is_written=models.writer is not None,
        )

    def _begin(self, listed: Mapping[str, str]) -> None:
        """Count what is done, and what cannot be, before the first image."""
        for image, message in list(self._store.failures()):
            if image in listed and not self._options.retry_failed:
                self.outcome.failed_before += 1
            else:
                self._failures.add(Failure.of(image, UnreachableImage(message)))
                self.outcome.failed += 1
        for image, message in listed.items():
            if self._store.is_done(image):
                self._failures.found_done(image)
            elif not self._options.retry_failed and self._store.fail_waiting(image, message):
                self.outcome.failed_before += 1
        if self._models.writer is None:
            self._store.finish_unasked()
        self.outcome.done_before = (
            self._store.images
            - self._store.waiting
            - self.outcome.failed
            - self.outcome.failed_before
        )

    def _finish(self) -> None:
        """Decide, and write the table."""
        models = self._models
        below = told_below(models.rule, models.kind)
        lowest = self._store.decide(models.rule)
        cards = models.weights()
        rows = (
            {
                **row,
                "captioner": cards["captioner"] if row["origin"] == "synthetic" else None,
                "matcher": cards["matcher"],
            }
            for row in self._store.rows(below)
            if row["kept"] or not self._options.kept_only
        )
        counts = self._store.counts(below)
        written = write_rows(self._output, rows, {**models.told, "texts": counts})
        has_failed = self.outcome.failed + self.outcome.failed_before
        result = CapFiltResult(
            outcome=replace(self.outcome),
            texts=counts,
            settings=models.told,
            cut=self._store.cut,
            lowest_kept=lowest,
            output=self._output,
            rows=written,
            failures=self._failures.path if has_failed else None,
        )
        self._ended = _Ended(result, below)


def _listed(path: Path) -> dict[str, str]:
    """The images of a list of failures, and why they failed."""
    found = {}
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = from_line(line)
                if isinstance(record, Failure):
                    found[record.image] = record.message
    return found
