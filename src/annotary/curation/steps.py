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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from annotary.curation.tables import BrokenPart, Part, first_line
from annotary.errors import OutputError, UsageError
from annotary.records import Failure, to_line
from annotary.runtime import available_cores
from annotary.sinks import write_atomically
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
            where, more = skipped[0][0].rpartition(":")[0], len(skipped) - MOST_LISTED
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
    done_before = sum(tally is not None for tally in tallies.values())
    left = [part for part in parts if tallies[part.name] is None and shard.has(part.name)]
    failed: dict[str, Failure] = {}

    def finish(part: Part, outcome: Tally | Failure) -> None:
        if isinstance(outcome, Failure):
            failed[part.name] = outcome
            outcome = Tally(failures=[outcome])
        else:
            tallies[part.name] = outcome
        if on_part is not None:
            on_part(sum(tally is not None for tally in tallies.values()) + len(failed), outcome)

    prepare = getattr(step, "prepare", None)
    if left and prepare is not None:
        prepare(folder)
    execute(step, left, folder, options, finish)
    done = {name: tally for name, tally in tallies.items() if tally is not None}
    total = Tally()
    for tally in done.values():
        total.add(tally)
    total.failures += failed.values()
    missing = len(parts) - len(done) - len(failed)
    seconds = time.monotonic() - started
    result = StepResult(folder, done, total, tuple(failed), missing, done_before, seconds)
    state.report(result)
    return result


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
    if options.executor == "ray":
        from annotary.curation._on_ray import run_on_ray

        run_on_ray(step, parts, folder, options, finish)
        return
    workers = min(len(parts), options.workers or available_cores())
    if workers == 1:
        for part in parts:
            finish(part, do_part(step, part, folder))
        return
    from annotary.curation._workers import run_in_processes

    run_in_processes(step, parts, folder, workers, finish)


def do_part(step: Step, part: Part, folder: Path) -> Tally | Failure:
    """Do a step for one part and note it; a part that cannot be read is a failure.

    Raises:
        AnnotaryError: The step cannot go on.
    """
    target = folder / f"{part.name}.parquet"
    try:
        signature = part.signature
        tally = step.run(part, target)
    except (BrokenPart, UsageError) as error:  # such as a column that only this part lacks
        return Failure.of(part.file, error)
    note = {
        "file": os.path.abspath(part.file),  # noqa: PTH100 - a link stays what it is
        "groups": part.groups,
        "signature": signature,
        "size": target.stat().st_size if target.exists() else None,
        "tally": tally.to_json(),
    }
    write_atomically(_note_of(folder, part.name), json.dumps(note, ensure_ascii=False))
    return tally


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a step.

    Raises:
        UsageError: There is none.
    """
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} holds no report; is it the output of annotary curate?"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / REPORT} cannot be read: {first_line(error)}") from error


def add_to_report(folder: Path, told: Mapping[str, Any]) -> None:
    """Put more into the report of a step, such as what is known only when all parts are done."""
    report = {**read_report(folder), **told}
    write_atomically(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = self._known(place)
            # What is below `_state` alone was put there for this step, such as a sample.
            if known is None and any(path.name != STATE for path in folder.iterdir()):
                raise OutputError(
                    f"{folder} holds something else; choose an empty or a new folder as --output"
                )
            if known is not None and options.on_existing == "overwrite":
                _throw_away(folder)
            elif known is not None and known != self._settings:
                raise OutputError(_told_changes(folder, known, self._settings))
            write_atomically(place, json.dumps(self._settings, indent=1, ensure_ascii=False))
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {reason(error)}") from error

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
            path.stem for path in self._folder.glob("*.parquet") if path.stem not in names
        )
        if strangers:
            more = f" and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
            raise OutputError(
                f"{self._folder} holds {strangers[0]}.parquet{more} of tables that are not among the inputs;"
                " choose another --output, or say --on-existing overwrite"
            )

    def report(self, result: StepResult) -> None:
        """Write the report and the list of failures."""
        total = result.total
        report = {
            **self._settings,
            "parts": len(result.tallies),
            "parts_failed": list(result.failed),
            "parts_missing": result.missing,
            "rows_in": total.rows_in,
            "rows_out": total.rows_out,
            "dropped": dict(sorted(total.dropped.items(), key=lambda one: (-one[1], one[0]))),
            **total.beside,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._folder / REPORT, text)
        failures = self._folder / FAILURES
        if total.failures:
            write_atomically(failures, "".join(to_line(one) + "\n" for one in total.failures))
        else:
            failures.unlink(missing_ok=True)

    def _known(self, place: Path) -> Any:
        """The settings of an earlier run, or None."""
        try:
            return json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"{place} is damaged; say --on-existing overwrite") from error


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
    for part in parts:
        if Path(part.file).resolve().parent == place:
            raise UsageError(f"{folder} holds the tables that are read; choose another --output")


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
