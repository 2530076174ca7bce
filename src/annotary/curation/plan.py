"""Pipelines: the steps of curation in an order that a TOML file declares, each in a folder of its own.

    OUT/1-match/, OUT/2-dedup/, …    what each step has written; the next one reads it
    OUT/report.html, report.json     what came in and went out of each, and why
    OUT/_pipeline/2-dedup.json       what the step was made from: its options, the files they name, its input

Before anything runs the whole file is checked. A step is done when its note says so and its tables are those that the
note has seen. A step of which the options, the files or the input have changed is thrown away together with all behind
it, so that nothing that is there was made of something else.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from annotary.curation._plan_file import Plan, PlannedStep, read_plan
from annotary.curation._plan_notes import NOTES, Note, Outcome, digest, digest_of_paths
from annotary.curation._plan_steps import ENTRY_LIST, Known, Work
from annotary.curation.match import COUNTS
from annotary.curation.steps import OnPart, StepOptions
from annotary.curation.tables import Part, column_types, find_parts, sound_part
from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.sinks import write_atomically
from annotary.sources._paths import reason

__all__ = [
    "Outcome",
    "Plan",
    "PlanResult",
    "PlannedStep",
    "Silent",
    "Watcher",
    "check_plan",
    "read_plan",
    "run_plan",
]

REPORT_JSON, REPORT_PAGE = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a pipeline has done.

    Attributes:
        folder: Where.
        outcomes: Of the steps that are done, in their order.
        tables: The folder of what is left at the end; None where no step writes tables.
        is_whole: Whether all steps are done.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    tables: Path | None
    is_whole: bool

    @property
    def failures(self) -> int:
        """How many parts, rows and images were broken, in all steps."""
        return sum(one.failures for one in self.outcomes)


class Watcher(Protocol):
    """Is told what a pipeline does."""

    def note(self, text: str) -> None:
        """A line about something that is worth knowing."""

    def working(self, what: str, count: int, unit: str) -> AbstractContextManager[OnPart]:
        """Something is done for so many "parts" or "images" while the context lasts; what it gives is told of each."""

    def ended(self, step: PlannedStep, outcome: Outcome) -> None:
        """A step is done."""


class Silent:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Nothing."""

    def working(self, what: str, count: int, unit: str) -> AbstractContextManager[OnPart]:
        """Nothing."""
        return nullcontext(lambda _done, _tally: None)

    def ended(self, step: PlannedStep, outcome: Outcome) -> None:
        """Nothing."""


def check_plan(plan: Plan, steps: StepOptions | None = None) -> None:
    """Look for all that would go wrong, before anything runs: files, columns, models, extras.

    Args:
        plan: The pipeline.
        steps: How the work of steps is spread that do not say it themselves.

    Raises:
        UsageError: Something is not there, or a step lacks a step before it.
        MissingExtra: A step needs what is not installed.
        ModelError: A model cannot be had.
    """
    _check_apart(plan)
    known = Known(_readable(find_parts(plan.tables)))
    for step in plan.steps:
        for key, paths in step.paths.items():
            for path in paths:
                if not os.path.exists(path):  # noqa: PTH110 - never raises
                    raise UsageError(f"{step.where}: {key}: no such file or folder: {path!r}")
        work = Work(
            *(plan.output / step.name, plan.tables, step.options, step.more, StepOptions()),
            is_done=Note(plan.output, step.name).is_done,
        )
        executor = step.spread.get("executor", (steps or StepOptions()).executor)
        if step.kind.is_spread and executor == "ray" and find_spec("ray") is None:
            raise MissingExtra("Running on Ray", "ray")
        with _told(step):
            step.kind.check(work, known)


def _check_apart(plan: Plan) -> None:
    """Refuse an output below a folder of tables: the next run would read what this one writes.

    Raises:
        UsageError: It is so.
    """
    output = plan.output.resolve()
    for table in plan.tables:
        if table.is_dir() and output.is_relative_to(table.resolve()):
            below = output.relative_to(table.resolve()).parts
            if not any(name.startswith(("_", ".")) for name in below):
                raise UsageError(
                    f"{plan.file}: the output {plan.output} is in the folder {table}, of which all tables are read;"
                    " choose another output, or name the tables by a pattern"
                )


def _readable(parts: Sequence[Part]) -> Part:
    """The first part that can be read and is not empty: the steps list the others.

    Raises:
        BrokenPart: There is none.
    """
    part = sound_part(parts)
    column_types(part)
    return part


def run_plan(
    plan: Plan,
    *,
    begin: str | None = None,
    until: str | None = None,
    steps: StepOptions | None = None,
    watcher: Watcher | None = None,
) -> PlanResult:
    """Do all steps that are not done yet. The same call goes on with what was stopped.

    Args:
        plan: The pipeline.
        begin: Make this step and all behind it anew; those before it must be done.
        until: The last step that is done; those behind it stay as they are.
        steps: How the work of steps is spread that do not say it themselves.
        watcher: Is told what is done.

    Raises:
        UsageError: Something is wrong with the pipeline; nothing has been done.
        OutputError: A folder holds something else, or another process works on this output.
        AnnotaryError: A step cannot go on; what is done stays.
    """
    first = None if begin is None else plan.place_of(begin)
    last = len(plan.steps) - 1 if until is None else plan.place_of(until)
    if first is not None and first > last:
        raise UsageError(
            f"{plan.file}: {plan.steps[first].name} does not come before {plan.steps[last].name}"
        )
    check_plan(plan, steps)
    with _claimed(plan.output):
        run = _Run(plan, steps or StepOptions(), watcher or Silent())
        run.tell_strangers()
        for place in range(last + 1):
            run.do(place, first)
        return run.finish(last)


class _Run:
    """A pipeline under way.

    Args:
        plan: It.
        steps: How work is spread.
        watcher: Is told what is done.
    """

    def __init__(self, plan: Plan, steps: StepOptions, watcher: Watcher) -> None:
        self._plan = plan
        self._steps = steps
        self._watcher = watcher
        self._tables: list[Path] = list(plan.tables)
        self._matched: Path | None = None
        self._entries: Path | None = None
        self._outcomes: list[Outcome] = []

    def do(self, place: int, begin: int | None) -> None:
        """Do a step, if it is not done.

        Args:
            place: Its place.
            begin: The place of the step from which on all is made anew, if any.
        """
        step = self._plan.steps[place]
        note = Note(self._plan.output, step.name)
        parts = self._parts(step)
        wanted = self._made_from(step, parts)
        why = note.told_change(wanted)
        if begin is not None and place < begin and (why or not note.is_done):
            told = why or "it is not done"
            raise UsageError(
                f"{self._plan.steps[begin].name} cannot be begun with: {step.name}: {told};"
                " run without --from first"
            )
        if begin == place and note.is_there:
            why = "asked for with --from"
        if why:
            behind = self._throw_away(place)
            self._watcher.note(f"{step.name} is made anew{behind}: {why}")
            note = Note(self._plan.output, step.name)
        # Parts that failed are tried again: a worker may have been killed for want of memory.
        if note.is_done and (
            not note.outcome.parts_failed or (begin is not None and place < begin)
        ):
            outcome = replace(note.outcome, was_done=True)
        else:
            outcome = self._work(step, note, wanted, len(parts))
        self._take(step, outcome, makes_tables=note.makes_tables)
        self._watcher.ended(step, outcome)
        if not outcome.was_done:
            self._write_report(is_whole=False)

    def _work(
        self, step: PlannedStep, note: Note, wanted: Mapping[str, Any], parts: int
    ) -> Outcome:
        """Do a step, and note that it is done."""
        folder = self._plan.output / step.name
        if not note.is_there and folder.exists() and any(folder.iterdir()):
            raise OutputError(
                f"{folder} holds something that no pipeline has written; move it away, or choose another output"
            )
        note.begin(wanted)
        started = time.monotonic()
        with _told(step):
            done = step.kind.run(
                Work(
                    *(folder, self._tables, self._options(step), step.more),
                    replace(self._steps, **step.spread),
                    parts=parts,
                    matched=self._matched,
                    entries=self._entries,
                    watch=lambda verb, count, unit: self._watcher.working(
                        f"{step.name}: {verb}", count, unit
                    ),
                    note=self._watcher.note,
                )
            )
        outcome = Outcome(
            *(step.name, step.use, done.rows_in, done.rows_out, done.dropped, done.failures),
            seconds=round(time.monotonic() - started, 3),
            parts_failed=done.parts_failed,
            is_of_entries=done.is_of_entries,
        )
        note.end(outcome, makes_tables=done.makes_tables)
        return outcome

    def _options(self, step: PlannedStep) -> Mapping[type, Any]:
        """The options of a step; paths of images start where they do in the tables that the pipeline was given."""
        from annotary.curation.looks import PictureOptions

        folders = {Path(part.file).parent for part in find_parts(self._plan.tables)}
        told = step.options.get(PictureOptions)
        if told is None or told.images is not None or len(folders) > 1:
            return step.options
        return {**step.options, PictureOptions: replace(told, images=folders.pop())}

    def _parts(self, step: PlannedStep) -> list[Part]:
        """What a step reads."""
        try:
            return find_parts(self._tables)
        except UsageError as error:
            if self._tables == list(self._plan.tables):
                raise
            raise UsageError(
                f"{step.where} has nothing to read: {self._tables[0]} holds no table, as no part could be read"
            ) from error

    def _made_from(self, step: PlannedStep, parts: Sequence[Part]) -> dict[str, Any]:
        """What the output of a step depends on, as JSON."""
        tables = [[os.path.abspath(one.file), one.groups, one.signature] for one in parts]  # noqa: PTH100
        beside = self._entries if step.use == "match" and "entries" not in step.told else None
        if step.use == "balance" and self._matched is not None:
            beside = self._matched / COUNTS
        return {
            "use": step.use,
            "options": step.told,
            "files": {
                key: digest_of_paths(paths)
                for key, paths in step.paths.items()
                if key
                != "images"  # where images start: they belong to the tables, and may be millions
            },
            "input": digest([tables, None if beside is None else digest_of_paths([str(beside)])]),
        }

    def _throw_away(self, place: int) -> str:
        """Remove what a step and those behind it have written; gives the words for those behind."""
        thrown: list[str] = []
        for step in reversed(self._plan.steps[place:]):
            note = Note(self._plan.output, step.name)
            if note.is_there:
                note.throw_away()
                thrown.insert(0, step.name)
        behind = [name for name in thrown if name != self._plan.steps[place].name]
        return f", and {', '.join(behind)} behind it" if behind else ""

    def _take(self, step: PlannedStep, outcome: Outcome, *, makes_tables: bool) -> None:
        """Go on with what a step has made."""
        folder = self._plan.output / step.name
        self._outcomes.append(outcome)
        if step.use == "metadata":
            self._entries = folder / ENTRY_LIST
        if makes_tables:
            self._tables = [folder]
        if step.use == "match":
            self._matched = folder
        elif step.kind.changes_texts:
            self._matched = None

    def tell_strangers(self) -> None:
        """Tell of folders of steps that the pipeline has no more; they stay."""
        names = {step.name for step in self._plan.steps}
        for file in sorted((self._plan.output / NOTES).glob("*.json")):
            if file.stem not in names:
                self._watcher.note(
                    f"{self._plan.output / file.stem} is of a step that the pipeline has no more; it stays as it is"
                )

    def finish(self, last: int) -> PlanResult:
        """Write the report of all that is done."""
        plan = self._plan
        is_whole = last == len(plan.steps) - 1
        self._write_report(is_whole=is_whole)
        tables = None if self._tables == list(plan.tables) else self._tables[0]
        return PlanResult(plan.output, tuple(self._outcomes), tables, is_whole)

    def _write_report(self, *, is_whole: bool) -> None:
        from annotary.curation.report_page import write_page

        plan = self._plan
        report = {
            "command": "curate run",
            "pipeline": str(plan.file),
            "tables": [str(path) for path in plan.tables],
            "is_whole": is_whole,
            "steps": [
                {**asdict(outcome), "options": step.told}
                for step, outcome in zip(plan.steps, self._outcomes, strict=False)
            ],
        }
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        write_atomically(plan.output / REPORT_JSON, text.encode("utf-8", "backslashreplace"))
        write_page(plan.output, plan.output / REPORT_PAGE)


@contextmanager
def _told(step: PlannedStep) -> Iterator[None]:
    """What is wrong with a step is told with its place, and options as keys of the file."""
    try:
        yield
    except MissingExtra:
        raise
    except UsageError as error:
        message = re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), str(error))
        raise UsageError(f"{step.where}: {message}") from error


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """One process at a time works on an output, where the system has locks.

    Raises:
        OutputError: Another does, or the folder cannot be written.
    """
    from annotary.pipeline.state import _lock

    place = output / NOTES
    try:
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {reason(error)}") from error
    try:
        if not _lock(descriptor):
            raise OutputError(f"another process works on {output}")
        yield
    finally:
        os.close(descriptor)
