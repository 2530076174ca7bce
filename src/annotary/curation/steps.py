"""Steps: the same work for every part of some tables, by any number of processes, taken up again after a stop.

    OUT/train-00000.parquet     what was made of each part
    OUT/_report.json            rows in and out, and why rows were dropped
    OUT/_failures.jsonl         parts that could not be read, rows that are broken
    OUT/_state/                 the settings, and for each part what it was made from and what happened

What is written of a part, and the note of it, appear whole or not at all. So a step that was stopped does again only
the parts that were under way, a part of which the table has changed is made anew, and it does no harm when two
processes work on the same part. Names that begin with "_" are no tables to `find_parts`, pyarrow and Spark.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from annotary.curation.tables import BrokenPart, Part, first_line, refuse_unfinished
from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.records import Failure, to_line
from annotary.runtime import available_cores
from annotary.sinks import write_atomically
from annotary.sinks._atomic import replacing
from annotary.sources._paths import reason
from annotary.sources._shard import Shard

REPORT, FAILURES, STATE = "_report.json", "_failures.jsonl", "_state"

MOST_LISTED = 1_000
"""Broken rows of a part that are listed; the others are counted."""


class Step(Protocol):
    """What is done to each part. It goes to other processes: plain data and paths, files are opened in `run`.

    A step may have `prepare(folder)`, which is called once before the first part, in the caller's process: it puts
    below `_state` what all workers need.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """What the output depends on beside the tables, as JSON."""

    def run(self, part: Part, target: Path) -> Tally:
        """Do it.

        Args:
            part: What is read.
            target: `<folder>/<part.name>.parquet`, which is written as `PartWriter` does. Other files of this part may
                stand beside it in `_state`, with the same name.

        Raises:
            BrokenPart: The part cannot be read; it is listed, and the step goes on.
            AnnotaryError: The step cannot go on.
        """


@dataclass(slots=True)
class Tally:
    """What happened to a part, or to all.

    Attributes:
        rows_in: Rows that were read.
        rows_out: Rows that were written.
        dropped: Why rows were dropped to how many they are.
        failures: What was broken.
        beside: More that a step has to say, as JSON; numbers are added up over the parts.
    """

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    beside: dict[str, Any] = field(default_factory=dict)

    def drop(self, why: str, rows: int = 1) -> None:
        """Count rows that were dropped."""
        if rows:
            self.dropped[why] = self.dropped.get(why, 0) + rows

    def skip(self, skipped: Sequence[tuple[str, str]]) -> None:
        """List rows that are broken: they count as read and as dropped."""
        self.rows_in += len(skipped)
        self.drop("broken row", len(skipped))
        for where, why in skipped[:MOST_LISTED]:
            self.failures.append(Failure.of(where, BrokenPart(why)))
        if len(skipped) > MOST_LISTED:
            where, more = skipped[0][0], len(skipped) - MOST_LISTED
            where = where.rpartition(":")[0] or where
            self.failures.append(Failure.of(where, BrokenPart(f"and {more:,} more broken rows")))

    def add(self, other: Tally) -> None:
        """Add what happened to another part."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        for why, rows in other.dropped.items():
            self.drop(why, rows)
        self.failures += other.failures
        for name, value in other.beside.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.beside[name] = self.beside.get(name, 0) + value

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "failures": [failure.to_json() for failure in self.failures]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From such an object."""
        failures = [Failure.from_json(one) for one in value["failures"]]
        return cls(**{**value, "failures": failures})


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How the work is spread."""

    workers: int | None = None
    """Processes that work on parts at once; the number of cores when nothing is said."""

    executor: Literal["local", "ray"] = "local"
    """Where they run: on this machine, or as a Ray Data job on a cluster, which must see the same files."""

    shard: str | None = field(default=None, metadata={"metavar": "N/COUNT"})
    """Do only one of COUNT shares of the parts: for several machines without Ray that write to the same folder."""

    on_existing: Literal["continue", "overwrite"] = "continue"
    """Go on with what an earlier run has written to the folder, or throw it away."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, but got {self.workers}")
        Shard.of(self.shard)
        if self.shard is not None and self.on_existing == "overwrite":
            raise ValueError("shard cannot be with overwrite, which throws away what others write")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step has done.

    Attributes:
        folder: Where.
        tallies: The name of each part to what happened to it, in the order of the parts.
        total: All of them together, with the parts that failed.
        failed: The names of parts that could not be done.
        missing: How many parts are left for other machines (`StepOptions.shard`).
        done_before: How many were done by earlier runs.
        seconds: How long it took.
    """

    folder: Path
    tallies: dict[str, Tally]
    total: Tally
    failed: tuple[str, ...]
    missing: int
    done_before: int
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether every part that can be read is done."""
        return not self.missing


OnPart = Callable[[int, Tally], None]
"""Is told how many parts are done, and what happened to the last."""


def run_step(
    step: Step,
    parts: Sequence[Part],
    folder: Path,
    options: StepOptions | None = None,
    *,
    on_part: OnPart | None = None,
) -> StepResult:
    """Do a step for all parts that are not done yet, and write its report.

    Args:
        step: The step.
        parts: All parts, also where only a share is to be done.
        folder: Where it is written; nobody else's folder.
        options: How.
        on_part: Is told of each part as it is done.

    Raises:
        OutputError: The folder holds something else, or cannot be written.
        AnnotaryError: The step cannot go on; what is done stays.
    """
    options = options or StepOptions()
    started = time.monotonic()
    _check_apart(parts, folder)
    state = _State(folder, step, options)
    state.refuse_strangers(parts)
    shard = Shard.of(options.shard)
    tallies = {part.name: state.tally_of(part) for part in parts}
    left = [part for part in parts if tallies[part.name] is None and shard.has(part.name)]
    done_before = sum(tally is not None for tally in tallies.values())
    done = done_before
    failed: dict[str, Failure] = {}

    def finish(part: Part, outcome: Tally | Failure) -> None:
        nonlocal done
        if isinstance(outcome, Failure):
            outcome = state.fail(part, outcome)
        if isinstance(outcome, Failure):
            failed[part.name] = outcome
            outcome = Tally(failures=[outcome])
        else:
            tallies[part.name] = outcome
        done += 1
        if on_part is not None:
            on_part(done, outcome)

    if left:
        # A report says that a step came to its end; until this one does, nobody must take it for that.
        (folder / REPORT).unlink(missing_ok=True)
    execute(step, left, folder, options, finish)
    return state.report(parts, tallies, failed, done_before, started)


def take_folder(step: Step, folder: Path, options: StepOptions) -> None:
    """Make a folder a step's own, as `run_step` does first, for a step that has work to do before its parts are begun.

    What such work leaves belongs below `_state`. `run_step` then follows with `on_existing` "continue".

    Raises:
        OutputError: The folder holds something else, or results of other settings, or cannot be written.
    """
    _State(folder, step, options)


def execute(
    step: Step,
    parts: Sequence[Part],
    folder: Path,
    options: StepOptions,
    finish: Callable[[Part, Tally | Failure], None],
) -> None:
    """Do a step for some parts, wherever the options say."""
    if not parts:
        return
    prepare: Callable[[Path], None] = getattr(step, "prepare", _prepare_nothing)
    workers = min(len(parts), options.workers or available_cores())
    if options.executor == "local" and workers > 1:
        from annotary.curation._workers import run_in_processes

        run_in_processes(step, parts, folder, workers, finish, lambda: prepare(folder))
        return
    prepare(folder)
    if options.executor == "ray":
        from annotary.curation._on_ray import run_on_ray

        run_on_ray(step, parts, folder, options, finish)
        return
    for part in parts:
        finish(part, do_part(step, part, folder))


def _prepare_nothing(folder: Path) -> None:
    """Most steps need nothing."""


def do_part(step: Step, part: Part, folder: Path) -> Tally | Failure:
    """Do a step for one part and note it; a part that cannot be read is a failure.

    Raises:
        AnnotaryError: The step cannot go on.
    """
    target = folder / f"{part.name}.parquet"
    try:
        signature = part.signature
        tally = step.run(part, target)
    except MissingExtra:
        raise
    except (BrokenPart, UsageError) as error:  # such as a column that only this part lacks
        return Failure.of(part.file, error)
    except MemoryError:
        return Failure.of(part.file, BrokenPart("there is not enough memory for it"))
    note = {
        "file": os.path.abspath(part.file),  # noqa: PTH100 - a link stays what it is
        "groups": part.groups,
        "signature": signature,
        "size": target.stat().st_size if target.exists() else None,
        "tally": tally.to_json(),
    }
    write_atomically(_note_of(folder, part.name), _json(note))
    return tally


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a step.

    Raises:
        UsageError: There is none.
    """
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        refuse_unfinished(folder)
        raise UsageError(
            f"{folder} holds no report; is it the output of annotary curate?"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / REPORT} cannot be read: {first_line(error)}") from error


def add_to_report(folder: Path, told: Mapping[str, Any]) -> None:
    """Put more into the report of a step, such as what is known only when all parts are done."""
    report = {**read_report(folder), **told}
    write_atomically(folder / REPORT, _json(report, indent=1) + "\n")


class _State:
    """What earlier runs have left in a folder.

    Args:
        folder: The folder; it is made.
        step: What is done.
        options: Whether to begin anew.
    """

    def __init__(self, folder: Path, step: Step, options: StepOptions) -> None:
        self._folder = folder
        self._step = step
        self._settings = json.loads(
            json.dumps({"step": step.name, "settings": step.settings(), "layout": 1})
        )
        place = folder / STATE / "settings.json"
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            is_ours = place.exists()
            if not is_ours and any(map(_is_foreign, folder.iterdir())):
                raise OutputError(
                    f"{folder} holds something else; choose an empty or a new folder as --output"
                )
            if is_ours and options.on_existing == "overwrite":
                _throw_away(folder)
            known = self._known(place)
            if known is None:
                write_atomically(place, _json(self._settings, indent=1))
            elif known != self._settings:
                raise OutputError(_told_changes(folder, known, self._settings))

    def tally_of(self, part: Part) -> Tally | None:
        """What happened to a part, if it is done and its table has not changed since."""
        target = self._folder / f"{part.name}.parquet"
        try:
            note = json.loads(_note_of(self._folder, part.name).read_text(encoding="utf-8"))
            size = target.stat().st_size if target.exists() else None
            is_same = (
                note["signature"] == part.signature
                and note["groups"] == (part.groups and list(part.groups))
                and note["file"] == os.path.abspath(part.file)  # noqa: PTH100
                and note["size"] == size
            )
            return Tally.from_json(note["tally"]) if is_same else None
        except (OSError, ValueError, KeyError, TypeError, BrokenPart):
            return None

    def refuse_strangers(self, parts: Sequence[Part]) -> None:
        """Refuse to mix in what was made of tables that are not among the inputs.

        Raises:
            OutputError: There is some.
        """
        names = {part.name for part in parts}
        strangers = sorted(
            path.stem
            for path in self._folder.glob("*.parquet")
            if path.stem not in names and not path.name.startswith("_")
        )
        if strangers:
            more = f" and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
            raise OutputError(
                f"{self._folder} holds {strangers[0]}.parquet{more} of tables that are not among the inputs;"
                " choose another --output, or say --on-existing overwrite"
            )

    def fail(self, part: Part, failure: Failure) -> Tally | Failure:
        """Note that a part could not be done; what an older run had made of it is no more.

        Returns:
            The failure; or what happened to the part, if another process has done it meanwhile.
        """
        tally = self.tally_of(part)
        if tally is not None:
            return tally
        with _writing(self._folder):
            _note_of(self._folder, part.name).unlink(missing_ok=True)
            (self._folder / f"{part.name}.parquet").unlink(missing_ok=True)
        note = {"signature": _signature(part), "failure": failure.to_json()}
        write_atomically(self._failure_of(part), _json(note))
        return failure

    def report(
        self,
        parts: Sequence[Part],
        tallies: Mapping[str, Tally | None],
        failed: Mapping[str, Failure],
        done_before: int,
        started: float,
    ) -> StepResult:
        """Write the report and the list of failures, of all that is done by now, also on other machines.

        Args:
            parts: All parts.
            tallies: What happened to those that are known to be done.
            failed: Those that this run could not do.
            done_before: How many an earlier run has done.
            started: When this one began, by the clock of `time.monotonic`.
        """
        # While the report is written nobody else can write it: the last who reads the notes finds them all.
        with _writing(self._folder), replacing(self._folder / REPORT) as file:
            done, bad, total = {}, {}, Tally()
            for part in parts:
                tally = tallies[part.name]
                failure = failed.get(part.name)
                if tally is None and failure is None:
                    tally, failure = self.tally_of(part), self._known_failure(part)
                if tally is not None:
                    done[part.name] = tally
                    total.add(tally)
                elif failure is not None:
                    bad[part.name] = failure
            total.failures += bad.values()
            missing = len(parts) - len(done) - len(bad)
            report = {
                **self._settings,
                "parts": len(done),
                "parts_failed": list(bad),
                "parts_missing": missing,
                "rows_in": total.rows_in,
                "rows_out": total.rows_out,
                "dropped": dict(sorted(total.dropped.items(), key=lambda one: (-one[1], one[0]))),
                **total.beside,
            }
            file.write((_json(report, indent=1) + "\n").encode("utf-8"))
            failures = self._folder / FAILURES
            if total.failures:
                write_atomically(failures, "".join(to_line(one) + "\n" for one in total.failures))
            else:
                failures.unlink(missing_ok=True)
        seconds = time.monotonic() - started
        return StepResult(self._folder, done, total, tuple(bad), missing, done_before, seconds)

    def _failure_of(self, part: Part) -> Path:
        return self._folder / STATE / "failed" / f"{part.name}.json"

    def _known_failure(self, part: Part) -> Failure | None:
        """Why another machine could not do a part, if it has tried."""
        try:
            note = json.loads(self._failure_of(part).read_text(encoding="utf-8"))
            return (
                Failure.from_json(note["failure"])
                if note["signature"] == _signature(part)
                else None
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _known(self, place: Path) -> Any:
        """The settings of an earlier run, or None."""
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        raise OutputError(f"{place} is damaged; say --on-existing overwrite")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error


def _json(value: Any, indent: int | None = None) -> str:
    """JSON that can be read by people, and holds names of files that are not UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _signature(part: Part) -> list[int] | None:
    try:
        return part.signature
    except BrokenPart:
        return None


def _is_foreign(path: Path) -> bool:
    """Whether something is there that is none of ours.

    What is below `_state` alone was put there for the step, such as a sample, or by another process just now.
    """
    return path.name != STATE and not path.name.startswith(".")


def _note_of(folder: Path, name: str) -> Path:
    return folder / STATE / "parts" / f"{name}.json"


def _throw_away(folder: Path) -> None:
    """Remove what a step has written."""
    for path in folder.iterdir():
        if path.name.startswith("_"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.suffix == ".parquet":
            path.unlink()


def _check_apart(parts: Sequence[Part], folder: Path) -> None:
    """Refuse to write where is read from."""
    place = folder.resolve()
    for read in {Path(part.file).parent for part in parts}:
        if place in (read.resolve(), *read.resolve().parents):
            raise UsageError(
                f"{folder} holds tables that are read; choose an --output beside the inputs, not in them"
            )


def _told_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if before.get("step") != now["step"]:
        told = f"of the step {before.get('step')}"
    else:
        old, new = before.get("settings", {}), now["settings"]
        told = "of other settings (" + "; ".join(
            f"{name} was {_short(old.get(name))} and is now {_short(new.get(name))}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        )
        told += ")"
    return f"{folder} holds results {told}; choose another --output, or say --on-existing overwrite"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
