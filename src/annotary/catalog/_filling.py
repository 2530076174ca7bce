"""Filling a catalogue: only what is new or has changed is annotated, and files that moved keep their rows.

The thread that walks the sources decides what becomes of each image (`_deciding.py`); the caller's thread takes what
comes out of the networks; both hand rows to one writer.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from annotary.catalog._clearing import clear
from annotary.catalog._columns import row_of, stored
from annotary.catalog._deciding import Awaited, Counter, Decider, Filled, columns_of
from annotary.catalog._known import Known, bits_of, content_of, is_missing, place_of
from annotary.catalog._note import LOCK_FILE, NOTE_FILE, Note, read_note, writing_alone
from annotary.catalog._table import INDEX_FROM, TABLE, Catalog, check_installed
from annotary.catalog._writing import Writer
from annotary.errors import NothingToDo, UsageError
from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions, annotate
from annotary.pipeline.output import FailureList
from annotary.pipeline.state import FAILURES_FILE, told_change
from annotary.records import Failure, Item, Record
from annotary.sinks import NameSet
from annotary.sources import Reader
from annotary.tasks import Task
from annotary.tasks.perceptual_hash import PerceptualHash

Settings = Mapping[str, Mapping[str, Any]]
"""Part of the records to what it depends on."""


class Filling:
    """One pass over the sources into a catalogue. Use it as a context manager, which ends it, and iterate over it once.

    Args:
        path: The catalogue; made when there is none.
        items: The images, from `annotary.sources`.
        tasks: What is asked of each. Perceptual hashes are added to them.
        settings: Part of the records to what it depends on beside the model and how bytes are decoded: `weights`, and
            what else makes results of two runs differ. A part of a catalogue has the same in all rows.
        reader: Reads the bytes.
        decode_options: How bytes are decoded.
        options: How the work is spread.
        roots: The arguments that `items` come from: files of the catalogue that are in one of these folders, and are
            not there any more, are marked as gone.
        overwrite: Throw away what the catalogue holds.
        replace_parts: Throw away the parts that were made with other settings, of all rows.
        retry_failed: Try downloads and members of archives again that failed before; files are always tried again.

    Attributes:
        catalog: The catalogue.

    Raises:
        UsageError: The catalogue holds results of another model, or the folder is something else.
        OutputError: It cannot be written, or another process is writing it.
        MissingExtra: lancedb is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        items: Iterable[Item | Failure],
        tasks: Sequence[Task],
        settings: Settings,
        reader: Reader,
        decode_options: DecodeOptions,
        options: PipelineOptions,
        *,
        roots: Sequence[str] = (),
        overwrite: bool = False,
        replace_parts: bool = False,
        retry_failed: bool = False,
    ) -> None:
        check_installed()
        self._counter = Counter()
        self._roots = roots
        self._retries = retry_failed
        self._awaited: deque[Awaited | None] = deque()
        self._is_stopped = threading.Event()
        told = {
            task.part: {
                "model": task.source,
                **_decoding(decode_options),
                **settings.get(task.part, {}),
            }
            for task in tasks
            if task.part
        }
        parts = json.loads(json.dumps(told))  # as they are read again
        with contextlib.ExitStack() as opening:
            place = Path(path)
            _check_place(place)
            opening.enter_context(writing_alone(place))
            self.catalog = _opened(place, parts, overwrite=overwrite, replaces=replace_parts)
            self._failures = FailureList(place / FAILURES_FILE, renews=True)
            self._known = Known(self.catalog)
            self._open = opening.pop_all()
        self._writer = Writer(self.catalog, self._failures, self._known.next_id)
        wanted = bits_of([task.part for task in tasks])
        self._decider = Decider(self.catalog, self._known, wanted, self._writer.copy, self._counter)
        if not any(isinstance(task, PerceptualHash) for task in tasks):
            tasks = [*tasks, PerceptualHash()]
        self._results = annotate(
            self._to_do(items), tasks, reader, decode_options, options, keeps_digest=True
        )

    @property
    def outcome(self) -> Filled:
        """The counts, up to date at any time."""
        return self._counter.filled

    @property
    def failures_path(self) -> Path:
        """The list of failures; it exists when there are any."""
        return self._failures.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_stopped.set()
        self._results.close()
        with self._open:
            try:
                # While another error is on its way, it is the one to tell.
                with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
                    self._writer.close()
            finally:
                self._writer.abandon()

    def __iter__(self) -> Iterator[Record]:
        """Annotate and write; yields what was said of each image that had to be annotated, and failures."""
        try:
            for item, record, beside in self._results:
                yield self._took(item, self._awaited.popleft(), record, beside)
        except NothingToDo:
            # Perhaps all images of a folder are gone.
            if not len(self._known) or not self._folders():
                raise
        self._writer.flush()
        self._mark_gone()
        if self._writer.writes:
            self.catalog.compact()
        self._keep_indices()

    def _to_do(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The images that have to be annotated; in the thread that walks the sources."""
        met = NameSet()
        for item in items:
            if self._is_stopped.is_set():
                return
            if isinstance(item, Failure):
                self._awaited.append(None)
                yield item
                continue
            place = place_of(item)
            if not met.add(place or f"\0{item.image}"):
                continue
            if not (place or self._retries or self._decider.knows(item, place)) and (
                item.image in self._failures
            ):
                self._counter.add("failed_before")
                continue
            awaited = self._decider.decide(item, place)
            if awaited is not None:
                self._awaited.append(awaited)
                yield item

    def _took(
        self,
        item: Item | None,
        awaited: Awaited | None,
        record: Record,
        beside: Mapping[str, Any],
    ) -> Record:
        if isinstance(record, Failure):
            self._failed(item, awaited, record)
            return record
        assert item is not None
        assert awaited is not None
        found = {"path": place_of(item), "sha256": beside["sha256"], "phash": beside.get("phash")}
        row = {**row_of(record), **columns_of(item, awaited.stat), **found}
        self._writer.add(awaited, row)
        if awaited.is_moved:
            self._counter.add("moved")
        elif awaited.row is None:
            self._counter.add("new")
        else:
            # What stands behind an address may be something else by now.
            is_same = awaited.keeps and awaited.row.content == content_of(beside["sha256"])
            kept = "back" if awaited.row.is_deleted else "completed"
            self._counter.add(kept if is_same else "changed")
        return record

    def _failed(self, item: Item | None, awaited: Awaited | None, failure: Failure) -> None:
        self._counter.add("failed")
        self._writer.fail(failure)
        if item is None or awaited is None or awaited.row is None or awaited.row.is_deleted:
            return
        is_other = failure.error == "UnreadableImage" and item.url is None and not awaited.keeps
        if is_other or (item.path is not None and is_missing(place_of(item))):
            # The image that the row tells of is no more.
            self._writer.mark_deleted([awaited.row.id])

    def _folders(self) -> tuple[str, ...]:
        """The folders that were asked for, as beginnings of paths."""
        folders = [root for root in self._roots if os.path.isdir(root)]  # noqa: PTH112
        return tuple(os.path.join(stored(os.path.abspath(root)), "") for root in folders)  # noqa: PTH100, PTH118

    def _mark_gone(self) -> None:
        """Mark the files that are gone from the folders that were asked for."""
        folders = self._folders()
        if not folders:
            return
        gone: list[int] = []
        for batch in self.catalog.rows(["id", "path"], where="path != ''"):
            rows = zip(batch["id"].to_pylist(), batch["path"].to_pylist(), strict=True)
            gone += [
                one
                for one, path in rows
                if path.startswith(folders) and self._known.is_unseen(one) and is_missing(path)
            ]
        self._writer.mark_deleted(gone)
        self._counter.add("gone", len(gone))

    def _keep_indices(self) -> None:
        """Make what is found quickly, where there are many rows and it is not there."""
        catalog = self.catalog
        if catalog.count(with_deleted=True) < INDEX_FROM:
            return
        catalog.index_ids()
        is_embedded = catalog.dimensions is not None and not catalog.has_index
        if is_embedded and catalog.count("embedding IS NOT NULL") >= INDEX_FROM:
            catalog.build_index()


def fill(
    path: str | os.PathLike[str],
    items: Iterable[Item | Failure],
    tasks: Sequence[Task],
    settings: Settings,
    reader: Reader,
    decode_options: DecodeOptions | None = None,
    options: PipelineOptions | None = None,
    *,
    roots: Sequence[str] = (),
    overwrite: bool = False,
    replace_parts: bool = False,
    retry_failed: bool = False,
) -> Filling:
    """Fill a catalogue: `Filling`, which this gives, says what is taken.

    with fill(path, items, [Embed(model)], {"embedding": {"weights": digits}}, reader) as filling:
        for record in filling:
            ...
    print(filling.outcome)
    """
    return Filling(
        path,
        items,
        tasks,
        settings,
        reader,
        decode_options or DecodeOptions(),
        options or PipelineOptions(),
        roots=roots,
        overwrite=overwrite,
        replace_parts=replace_parts,
        retry_failed=retry_failed,
    )


def _decoding(options: DecodeOptions) -> dict[str, Any]:
    """What results depend on beside the model. How many pixels are too many decides what fails, and nothing else."""
    told: dict[str, Any] = {"reduce": options.reduce}
    if options.transparency != "auto":
        told["transparency"] = options.transparency
    return told


def _check_place(path: Path) -> None:
    """Refuse a folder that is no catalogue: it is not ours to write into."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, and a catalogue is a folder; name another --catalog")
    ours = {f"{TABLE}.lance", LOCK_FILE, FAILURES_FILE}
    if path.is_dir() and read_note(path) is None:
        names = sorted(entry.name for entry in path.iterdir())
        others = [name for name in names if name not in ours and not name.startswith(".annotary-")]
        if others:
            raise UsageError(
                f"{path} holds other things, such as {others[0]!r}; name a new folder as --catalog"
            )


def _opened(path: Path, parts: Settings, *, overwrite: bool, replaces: bool) -> Catalog:
    """The catalogue, new or as it was, with these parts among its own."""
    note = None if overwrite else read_note(path)
    if note is None:
        (path / NOTE_FILE).unlink(missing_ok=True)
        (path / FAILURES_FILE).unlink(missing_ok=True)
        return Catalog.create(path, Note(parts))
    catalog = Catalog.open(path)
    others = {name: told for name in parts if (told := _difference(note.parts, parts, name))}
    if others and not replaces:
        name, told = next(iter(others.items()))
        raise UsageError(
            f"{path} holds {name} of other settings ({told}); choose the same, or another --catalog;"
            f" annotary annotate --replace-part throws away the {name} alone, and --on-existing overwrite"
            " all that is there"
        )
    if others:
        # A decision is made of what a policy looked at, and goes with it.
        judged = any("policy" in note.parts[name] for name in others)
        clear(catalog, [*others, *(("decision",) if judged else ())])
    if others or {*parts} - {*note.parts}:
        # After the rows: until then they are of the old settings.
        catalog.note = Note({**note.parts, **parts})
        catalog.note.write(path)
    return catalog


def _difference(held: Settings, asked: Settings, part: str) -> str:
    """In what the settings of a part differ from those that are there; empty where they do not."""
    settings = asked[part]
    before = held.get(part, settings)
    # What the user called the model may be another name of the same weights.
    for name in ("model", *sorted({*before, *settings} - {"model", "name"})):
        old, new = before.get(name), settings.get(name)
        if (old or None) != (new or None):
            return told_change(name, old, new)
    return ""
