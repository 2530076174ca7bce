"""Runs of `annotary train tagger` as curves, from the tables that they write: one picture for one run or several."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from annotary.errors import UsageError
from annotary.evaluation._line_plot import Axis, Colour, Line, line_plot, picture_file
from annotary.evaluation._report_style import COLOURS

STEPS, VALIDATION = "steps.csv", "validation.csv"
_COLOURS: tuple[Colour, ...] = ("one", "two", "three", "four", "five")
MOST_RUNS = len(_COLOURS)
"""Runs that one picture can tell apart."""

MARK = "<!-- annotary train curves -->"
"""Stands in each picture; nothing else is replaced by one."""

_POINTS = 80
"""Points of a curve of losses: each is the mean of the steps around it."""

_MEASURES = {
    "loss": "loss on validation images",
    "map": "mAP on validation images",
    "macro_f1": "macro F1 on validation images, at the threshold",
}

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class RunCurves:
    """What a run has written down.

    Attributes:
        name: Of its folder.
        loss: Images seen and loss of a step, for each step.
        measured: Column of `validation.csv` to images seen and value, for each measurement.
    """

    name: str
    loss: Points
    measured: Mapping[str, Points]


def read_curves(folder: Path) -> RunCurves:
    """The curves of a run, also of one that goes on.

    Args:
        folder: The output of `annotary train tagger`.

    Raises:
        UsageError: It holds no run, or none that has made a step.
    """
    steps = folder / STEPS
    if not steps.is_file():
        raise UsageError(f"{folder} holds no run of train tagger: there is no {STEPS}")
    loss = tuple(_columns(steps, "loss"))
    if not loss:
        raise UsageError(f"{folder} has made no step yet")
    file = folder / VALIDATION
    measured = {name: tuple(_columns(file, name)) if file.is_file() else () for name in _MEASURES}
    return RunCurves(folder.resolve().name, loss, measured)


def curves_picture(runs: Sequence[RunCurves]) -> str:
    """An SVG file: losses of the steps, and what was measured, over the images that were seen.

    Args:
        runs: 1 to `MOST_RUNS`.

    Raises:
        UsageError: There are none, or too many.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise UsageError(f"a picture shows 1 to {MOST_RUNS} runs, but got {len(runs)}")
    last = max(run.loss[-1][0] for run in runs)
    across = Axis("images seen", 0.0, _above(last))
    drawn = {"loss of a step": [smooth(run.loss) for run in runs]}
    drawn |= {told: [run.measured[name] for run in runs] for name, told in _MEASURES.items()}
    plots = []
    for told, curves in drawn.items():
        values = [value for points in curves for _, value in points]
        if not values:
            continue
        lines = [
            Line(run.name, points, colour)
            for run, points, colour in zip(runs, curves, _COLOURS, strict=False)
        ]
        # The first steps of a loss lie far above all others, which would be one flat line below them.
        high = _above(_usual_most(values) if "loss" in told else max(values))
        low = _below(min(values), high) if "loss" in told else 0.0
        high = max(high, 0.05)
        plots.append(line_plot(told, across, Axis(told, low, high), lines))
    return picture_file(COLOURS, plots) + MARK + "\n"


def check_picture(path: Path) -> None:
    """Refuse to write a picture over anything but an earlier one.

    Raises:
        UsageError: Something else is there.
    """
    if not path.exists():
        return
    if not path.is_file() or MARK.encode() not in path.read_bytes()[-100:]:
        raise UsageError(f"{path} is there already, and no picture of annotary train curves")


def curves_table(runs: Sequence[RunCurves]) -> list[tuple[str, int, dict[str, float]]]:
    """For each run its name, the images that it has seen, and its last and best measurements.

    Args:
        runs: Any number.

    Returns:
        Of the values: `loss`, `map` and `macro_f1` as last measured, and `best_map`; nothing where nothing was.
    """
    rows = []
    for run in runs:
        values = {name: points[-1][1] for name, points in run.measured.items() if points}
        if points := run.measured["map"]:
            values["best_map"] = max(value for _, value in points)
        rows.append((run.name, int(run.loss[-1][0]), values))
    return rows


def curves_json(runs: Sequence[RunCurves]) -> str:
    """The table as JSON, a list with an object for each run."""
    rows = [{"run": name, "samples": seen, **values} for name, seen, values in curves_table(runs)]
    return json.dumps(rows, ensure_ascii=False)


def smooth(points: Points, most: int = _POINTS) -> Points:
    """Curves of at most so many points: each the mean of those around it.

    Args:
        points: In order.
        most: 1 or more.
    """
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    )


def _columns(path: Path, name: str) -> Iterator[tuple[float, float]]:
    """Images seen, and a number of the table, row by row; what is no finite number is left out."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    seen, value = float(row["samples"]), float(row[name])
                except (KeyError, TypeError, ValueError):  # a row that is being written
                    continue
                if math.isfinite(value):
                    yield seen, value
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _usual_most(values: Sequence[float]) -> float:
    """The highest value but for the twentieth that is highest."""
    return sorted(values)[max(0, math.ceil(0.95 * len(values)) - 1)]


def _above(value: float) -> float:
    """A round number that is not below: 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    fits = (
        step for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.9999
    )
    return next(fits) * power


def _below(value: float, high: float) -> float:
    """Where an axis of losses begins: at no, one, two or three quarters of its end, below the value."""
    return min(3, max(0, math.floor(4 * value / high))) * high / 4
