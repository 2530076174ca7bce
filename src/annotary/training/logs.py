"""What a training run tells while it goes on: the terminal, tables, TensorBoard, Weights & Biases if asked.

The tables are the record: `steps.csv` has a row for steps, `validation.csv` one for each measurement. A run that is
continued cuts off the rows that came after its checkpoint, as it makes them again.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from annotary.errors import OutputError, UsageError
from annotary.training._recipe_tables import LogsRecipe

STEPS, VALIDATION = "steps.csv", "validation.csv"

STEP_COLUMNS = (
    *("stage", "step", "samples", "loss", "learning_rate", "gradient_norm", "loss_scale"),
    *("samples_per_second", "waiting", "seconds"),
)
"""Of `steps.csv`. `waiting` is the share of the time that went by waiting for images, 0..1."""

VALIDATION_COLUMNS = (
    *("stage", "step", "samples", "loss", "map", "macro_f1", "macro_precision", "macro_recall"),
    *("micro_f1", "micro_precision", "micro_recall", "threshold", "images", "seconds"),
)
"""Of `validation.csv`. Precision, recall and F1 are those at the threshold."""

_SECONDS_BETWEEN_LINES = 30.0
"""Between two lines about steps where there is no terminal to draw a bar in."""

Row = Mapping[str, float | int]


class Sink(Protocol):
    """One place that a run tells."""

    def step(self, row: Row) -> None:
        """Tell of a step."""

    def validation(self, row: Row) -> None:
        """Tell of a measurement."""

    def note(self, text: str) -> None:
        """Tell a sentence."""

    def close(self) -> None:
        """Nothing more comes."""


class Logs:
    """All the places that a run tells.

    Args:
        sinks: They.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def step(self, row: Row) -> None:
        """Tell of a step.

        Args:
            row: A value for each of `STEP_COLUMNS`.
        """
        for sink in self._sinks:
            sink.step(row)

    def validation(self, row: Row) -> None:
        """Tell of a measurement.

        Args:
            row: A value for each of `VALIDATION_COLUMNS`.
        """
        for sink in self._sinks:
            sink.validation(row)

    def note(self, text: str) -> None:
        """Tell a sentence."""
        for sink in self._sinks:
            sink.note(text)


def open_logs(
    folder: Path,
    recipe: LogsRecipe,
    *,
    settings: Mapping[str, Any],
    samples: int,
    total: int,
    quiet: bool,
) -> Logs:
    """The logs of a run.

    Args:
        folder: Of the run.
        recipe: What was asked.
        settings: Of the whole recipe, for places that show them.
        samples: Where the run begins or goes on; rows after it are cut off.
        total: Where it ends.
        quiet: Tell nothing on the terminal.

    Raises:
        OutputError: A table cannot be written.
        UsageError: TensorBoard or Weights & Biases was asked for and is not installed.
    """
    sinks: list[Sink] = []
    try:
        if recipe.tensorboard:
            sinks.append(TensorBoard(folder / "tensorboard", samples))
        if recipe.wandb:
            sinks.append(WeightsAndBiases(folder, recipe.wandb, settings))
        sinks.append(Tables(folder, samples))
        if not quiet:
            sinks.append(Bar(samples, total) if sys.stderr.isatty() else Lines(total))
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    return Logs(sinks)


class Tables:
    """`steps.csv` and `validation.csv`.

    Args:
        folder: Where they are.
        samples: Rows after these are cut off.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self._steps = _Table(folder / STEPS, STEP_COLUMNS, samples)
        try:
            self._validation = _Table(folder / VALIDATION, VALIDATION_COLUMNS, samples)
        except OutputError:
            self._steps.close()
            raise

    def step(self, row: Row) -> None:
        """Write a row."""
        self._steps.append(row)

    def validation(self, row: Row) -> None:
        """Write a row."""
        self._validation.append(row)

    def note(self, text: str) -> None:
        """Tables hold numbers alone."""

    def close(self) -> None:
        """Close both."""
        self._steps.close()
        self._validation.close()


class _Table:
    """A CSV that grows by whole rows."""

    def __init__(self, path: Path, columns: Sequence[str], samples: int) -> None:
        self._columns = columns
        self._path = path
        try:
            kept = _rows_up_to(path, columns, samples)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(kept, encoding="utf-8", newline="")
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        self._writer = csv.writer(self._file, lineterminator="\n")

    def append(self, row: Row) -> None:
        try:
            self._writer.writerow([row[column] for column in self._columns])
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        with suppress(OSError):  # what could not be written has been told
            self._file.close()


def _rows_up_to(path: Path, columns: Sequence[str], samples: int) -> str:
    """The header and the whole rows of a table up to a number of samples."""
    head = ",".join(columns) + "\n"
    if not path.exists() or not samples:
        return head
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    place = columns.index("samples")
    kept = io.StringIO()
    writer = csv.writer(kept, lineterminator="\n")
    for row in list(csv.reader(io.StringIO(whole)))[1:]:
        if len(row) == len(columns) and row[place].isdecimal() and int(row[place]) <= samples:
            writer.writerow(row)
    return head + kept.getvalue()


class TensorBoard:
    """Files that TensorBoard shows.

    Args:
        folder: Where they are.
        samples: What was written after these is hidden.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "logs.tensorboard needs TensorBoard: pip install tensorboard, or say --set logs.tensorboard=false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=samples + 1 if samples else None)

    def step(self, row: Row) -> None:
        """Write each value."""
        self._write("train", row)

    def validation(self, row: Row) -> None:
        """Write each value."""
        self._write("validation", row)

    def note(self, text: str) -> None:
        """Only numbers are shown."""

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, group: str, row: Row) -> None:
        for name, value in row.items():
            if name not in ("samples", "step"):
                self._writer.add_scalar(f"{group}/{name}", value, int(row["samples"]))


class WeightsAndBiases:
    """Sends the rows to Weights & Biases; only where a recipe names a project.

    Args:
        folder: Of the run; the run's id there is kept in it, so that a continued run stays one.
        project: Where to.
        settings: Of the recipe.
    """

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise UsageError(
                "logs.wandb needs Weights & Biases: pip install wandb, or say --set logs.wandb=''"
            ) from error
        place = folder / "wandb_run.txt"
        known = place.read_text(encoding="utf-8").strip() if place.exists() else None
        try:
            self._run = wandb.init(
                project=project, id=known, resume="allow", dir=str(folder), config=dict(settings)
            )
        except Exception as error:  # it has many, such as for who is not logged in
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"logs.wandb: Weights & Biases cannot be had: {told}; or say WANDB_MODE=offline"
            ) from error
        place.write_text(str(self._run.id) + "\n", encoding="utf-8")

    def step(self, row: Row) -> None:
        """Send each value."""
        self._send("train", row)

    def validation(self, row: Row) -> None:
        """Send each value."""
        self._send("validation", row)

    def note(self, text: str) -> None:
        """Only numbers are sent."""

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _send(self, group: str, row: Row) -> None:
        self._run.log({f"{group}/{name}": value for name, value in row.items()})


class Lines:
    """Lines on standard error, where there is no terminal to draw a bar in.

    Args:
        total: Samples of the whole run.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._last = -_SECONDS_BETWEEN_LINES

    def step(self, row: Row) -> None:
        """Tell of a step, now and then."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or row["samples"] == self._total:
            self._last = now
            self.note(f"{row['samples']:,} of {self._total:,} samples, {_told_step(row)}")

    def validation(self, row: Row) -> None:
        """Tell of each."""
        self.note(_told_validation(row))

    def note(self, text: str) -> None:
        """Tell it."""
        _write_line(text)

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar on the terminal.

    Args:
        samples: Where the run begins or goes on.
        total: Where it ends.
    """

    def __init__(self, samples: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed:,} of {task.total:,} samples{task.fields[told]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("training", total=total, completed=samples, told="")
        self._bar.start()

    def step(self, row: Row) -> None:
        """Move the bar."""
        self._bar.update(
            self._task, completed=int(row["samples"]), told=f", {_told_step(row)}", refresh=False
        )

    def validation(self, row: Row) -> None:
        """Tell of it above the bar."""
        self.note(_told_validation(row))

    def note(self, text: str) -> None:
        """Tell it above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _told_step(row: Row) -> str:
    waiting = row["waiting"]
    told = f"loss {row['loss']:.4g}, {row['samples_per_second']:.1f}/s"
    return told + (f", {waiting:.0%} waiting for images" if waiting >= 0.05 else "")


def _told_validation(row: Row) -> str:
    return (
        f"validation after {row['samples']:,} samples: loss {row['loss']:.4g}, mAP {row['map']:.4f},"
        f" macro F1 {row['macro_f1']:.4f} and micro F1 {row['micro_f1']:.4f} at {row['threshold']:g}"
        f" ({row['images']:,} images in {row['seconds']:.0f} s)"
    )


def _write_line(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:  # whoever read has gone; the tables go on
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
