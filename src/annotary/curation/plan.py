"""Pipelines: the steps of curation in an order that a TOML file declares, each in a folder of its own.

    OUT/1-match/, OUT/2-dedup/, …    what each step has written; the next one reads it
    OUT/report.html, report.json     what came in and went out of each, and why
    OUT/_pipeline/2-dedup.json       what the step was made from: its options, the files they name, its input

Before anything runs the whole file is checked. A step is done when its note says so and its tables are those that the
note has seen. A step of which the options, the files or the input have changed is thrown away together with all behind
it, so that nothing that is there was made of something else.
"""

from __future__ import annotations

import glob
import json
import os
import re
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from annotary.curation._plan_notes import NOTES, Note, Outcome, digest, digest_of_paths, shown
from annotary.curation._plan_steps import ENTRY_LIST, KINDS, SPREAD, Kind, Known, Work
from annotary.curation._plan_values import (
    check_keys,
    differing,
    is_path,
    options_from,
    plain,
    value_from,
    with_underscores,
)
from annotary.curation.match import COUNTS
from annotary.curation.steps import OnPart, StepOptions
from annotary.curation.tables import BrokenPart, Part, column_types, find_parts, first_line
from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.models._finding import FOLDER_PREFIX
from annotary.sinks import write_atomically
from annotary.sources._paths import reason

REPORT_JSON, REPORT_PAGE = "report.json", "report.html"

_TOP = ("tables", "output", "step")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of a pipeline.

    Attributes:
        name: Of its folder, such as `2-dedup`.
        use: Of its kind.
        where: It, for messages.
        options: The options of the kind by their class.
        more: Values of keys that are no fields of these.
        paths: The files and folders that its options name.
        spread: Options of how the work is spread, which say nothing about what comes out.
    """

    name: str
    use: str
    where: str
    options: Mapping[type, Any]
    more: Mapping[str, Any]
    paths: Mapping[str, Sequence[str]]
    spread: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.use]

    @property
    def told(self) -> dict[str, Any]:
        """What its options say that is not the default, as JSON."""
        more = {key: plain(value) for key, value in self.more.items() if value is not None}
        return {**differing(self.options), **more}


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline as it is declared.

    Attributes:
        file: Where.
        tables: What the first step reads, as absolute paths.
        output: The folder of all steps.
        steps: The steps, in order.
    """

    file: Path
    tables: tuple[Path, ...]
    output: Path
    steps: tuple[PlannedStep, ...]

    def place_of(self, step: str) -> int:
        """The place of a step, from 0, by its number from 1, its folder's name, or its own name.

        Raises:
            UsageError: There is none, or there are several.
        """
        names = [one.name for one in self.steps]
        found = [
            place
            for place, name in enumerate(names)
            if step in (name, str(place + 1), name.partition("-")[2])
        ]
        if len(found) == 1:
            return found[0]
        told = "there is no step" if not found else "there are several steps"
        raise UsageError(f"{self.file}: {told} {step!r}; the steps are {', '.join(names)}")


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

    def working(self, what: str, parts: int) -> AbstractContextManager[OnPart]:
        """Something is done for so many parts while the context lasts; what it gives is told of each."""

    def ended(self, step: PlannedStep, outcome: Outcome) -> None:
        """A step is done."""


class Silent:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Nothing."""

    def working(self, what: str, parts: int) -> AbstractContextManager[OnPart]:
        """Nothing."""
        return nullcontext(lambda _done, _tally: None)

    def ended(self, step: PlannedStep, outcome: Outcome) -> None:
        """Nothing."""


def read_plan(file: str | os.PathLike[str]) -> Plan:
    """A pipeline from its TOML.

    Raises:
        UsageError: It cannot be read, or says something that no step has; the message tells the step and the key.
    """
    file = Path(file)
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{file}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is no TOML: {first_line(error)}") from error
    given = with_underscores(content, str(file))
    check_keys(given, _TOP, str(file))
    for key in _TOP:
        if key not in given:
            hint = "[[step]]" if key == "step" else f'{key} = "…"'
            raise UsageError(f"{file} has no {key}; say {hint}")
    folder = Path(os.path.abspath(file)).parent  # noqa: PTH100 - a link stays what it is
    tables = value_from(tuple[str, ...], given["tables"], folder, "tables", str(file))
    output = value_from(Path, given["output"], folder, "output", str(file))
    steps = given["step"]
    if not isinstance(steps, list) or not all(isinstance(one, dict) for one in steps) or not steps:
        raise UsageError(f"{file}: steps are written as [[step]], one for each")
    planned = tuple(
        _planned_step(number, one, folder, f"{file}: step {number}")
        for number, one in enumerate(steps, 1)
    )
    return Plan(file, tuple(_globbed(tables, folder, file)), output, planned)


def check_plan(plan: Plan) -> None:
    """Look for all that would go wrong, before anything runs: files, columns, models, extras.

    Raises:
        UsageError: Something is not there, or a step lacks a step before it.
        MissingExtra: A step needs what is not installed.
        ModelError: A model cannot be had.
    """
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
        with _told(step):
            step.kind.check(work, known)


def _readable(parts: Sequence[Part]) -> Part:
    """The first part that can be read: broken ones are listed by the steps.

    Raises:
        BrokenPart: There is none.
    """
    for part in parts[:-1]:
        try:
            column_types(part)
        except BrokenPart:
            continue
        return part
    column_types(parts[-1])
    return parts[-1]


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
    check_plan(plan)
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
        if note.is_done:
            outcome = replace(note.outcome, was_done=True)
        else:
            outcome = self._work(step, note, wanted, len(parts))
        self._take(step, outcome, makes_tables=note.makes_tables)
        self._watcher.ended(step, outcome)

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
                    watch=lambda verb, count: self._watcher.working(f"{step.name}: {verb}", count),
                    note=self._watcher.note,
                )
            )
        outcome = Outcome(
            *(step.name, step.use, done.rows_in, done.rows_out, done.dropped, done.failures),
            seconds=round(time.monotonic() - started, 3),
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
        """Write the report."""
        from annotary.curation.report_page import write_page

        plan = self._plan
        is_whole = last == len(plan.steps) - 1
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
        tables = None if self._tables == list(plan.tables) else self._tables[0]
        return PlanResult(plan.output, tuple(self._outcomes), tables, is_whole)


def _planned_step(number: int, given: Mapping[str, Any], folder: Path, where: str) -> PlannedStep:
    """A step from its table.

    Raises:
        UsageError: It says something that no such step has.
    """
    given = with_underscores(given, where)
    use = given.pop("use", None)
    if use is None:
        raise UsageError(f'{where} says no use; say use = "…", one of {", ".join(KINDS)}')
    if not isinstance(use, str) or use not in KINDS:
        raise UsageError(f"{where}: unknown use {use!r}; known: {', '.join(KINDS)}")
    kind, where = KINDS[use], f"{where} ({use})"
    name = given.pop("name", use)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: name must be of letters, digits, -, _ and ., but got {shown(name)}"
        )
    check_keys(given, kind.keys(), where)
    classes = kind.classes()
    options = options_from(
        classes, {key: one for key, one in given.items() if key not in kind.more}, folder, where
    )
    more = {
        key: _placed(value_from(hint, given[key], folder, key, where), folder)
        for key, hint in kind.more.items()
        if key in given
    }
    options = {
        record: _with_places(one, kind.paths, set(given), folder) for record, one in options.items()
    }
    spread = {key: given[key] for key in SPREAD if kind.is_spread and key in given}
    options_from((StepOptions,), spread, folder, where)
    return PlannedStep(
        *(f"{number}-{name}", use, where, options, more),
        paths=_paths_of(options, more, kind),
        spread=spread,
    )


def _placed(value: Any, folder: Path) -> Any:
    """A model in a folder, as `dir:models/one`, with its whole path; what else there is as it is."""
    if isinstance(value, str) and value.startswith(FOLDER_PREFIX):
        return FOLDER_PREFIX + str(folder / value.removeprefix(FOLDER_PREFIX))
    return value


def _with_places(options: Any, names: Sequence[str], given: set[str], folder: Path) -> Any:
    """Options of which texts that name files are absolute."""
    changed: dict[str, Any] = {}
    for name in names:
        value = getattr(options, name, None)
        if name in given and value is not None:
            one = [value] if isinstance(value, str) else value
            placed = tuple(text if text == "none" else str(folder / text) for text in one)
            changed[name] = placed[0] if isinstance(value, str) else placed
    return replace(options, **changed) if changed else options


def _paths_of(
    options: Mapping[type, Any], more: Mapping[str, Any], kind: Kind
) -> dict[str, list[str]]:
    """The files and folders that options name, by their keys."""
    found: dict[str, Any] = {key: value for key, value in more.items() if isinstance(value, Path)}
    for key, value in more.items():
        if isinstance(value, str) and value.startswith(FOLDER_PREFIX):
            found[key] = value.removeprefix(FOLDER_PREFIX)
    for record, one in options.items():
        for entry in fields(one):
            if entry.name in kind.paths or is_path(entry, record):
                found[entry.name] = getattr(one, entry.name)
    listed = {}
    for key, value in found.items():
        paths = value if isinstance(value, tuple) else (value,)
        named = [str(path) for path in paths if path is not None and str(path) != "none"]
        if named:
            listed[key] = named
    return listed


def _globbed(tables: Sequence[str], folder: Path, file: Path) -> Iterator[Path]:
    """The tables of a pipeline, with patterns such as `pairs/*.parquet` as what they match.

    Raises:
        UsageError: A pattern matches nothing.
    """
    for name in tables:
        path = str(folder / name)
        if os.path.exists(path) or not glob.has_magic(name):  # noqa: PTH110
            yield Path(path)
            continue
        found = sorted(glob.glob(name, root_dir=folder, recursive=True))  # noqa: PTH207
        if not found:
            raise UsageError(f"{file}: no file is called as {name!r} says")
        yield from (folder / one for one in found)


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
