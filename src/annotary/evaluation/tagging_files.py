"""The files of numbers that JoyTag published, written and read: `full-metrics.txt` and `detailed_metrics.txt`.

`full-metrics.txt` has a record for each tag, the best F1 first, with a blank line after each and no head:

    Tag: saber_(fate) (1024) (cnt: 9000)
    Precision: 0.9000
    Recall: 0.8000
    F1: 0.8471
    TP: 36, TN: 32719, FP: 4, FN: 9

The number in the first brackets is the tag's place in `top_tags.txt`, the count that of training images. Names may hold
brackets, so that the last two count. `detailed_metrics.txt` compares models on the same images, tag by tag:

    saber_(fate)
    JoyTag              : Precision 0.9, Recall 0.8, F1 0.8470588235294118, AP 0.91
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from annotary.errors import UsageError
from annotary.evaluation.tagging import TagCounts
from annotary.sources._paths import reason

_TAG = re.compile(r"Tag: (.+) \((\d+)\) \(cnt: (\d+)\)")
_RATES = tuple(re.compile(rf"{name}: (\d\.\d+)") for name in ("Precision", "Recall", "F1"))
_COUNTS = re.compile(r"TP: (\d+), TN: (\d+), FP: (\d+), FN: (\d+)")
_NUMBER = r"([-+\w.]+)"
_MODEL = re.compile(rf"(.*\S) *: Precision {_NUMBER}, Recall {_NUMBER}, F1 {_NUMBER}, AP {_NUMBER}")
_LABEL_WIDTH = 20


class TagRecord(NamedTuple):
    """What a model made of one tag.

    Attributes:
        name: Of the tag.
        place: In the model's list of tags.
        trained: Training images that have it.
        true_positives: Images that have it and were given it.
        true_negatives: Images that have it not and were not given it.
        false_positives: Images that were given it and have it not.
        false_negatives: Images that have it and were not given it.
    """

    name: str
    place: int
    trained: int
    true_positives: int
    true_negatives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """In 0..1; 0 where it was never given."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """In 0..1; 0 where no image has it."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """In 0..1; 0 where it is neither there nor given."""
        errors = self.false_positives + self.false_negatives
        return _share(2 * self.true_positives, 2 * self.true_positives + errors)


class ModelRates(NamedTuple):
    """What a model reaches at one tag.

    Attributes:
        precision: In 0..1.
        recall: In 0..1.
        f1: In 0..1.
        average_precision: In 0..1; NaN where no image has the tag.
    """

    precision: float
    recall: float
    f1: float
    average_precision: float


def records_of(
    counts: TagCounts, names: Sequence[str], indices: Sequence[int], trained: Sequence[int]
) -> list[TagRecord]:
    """Counts as records, the best F1 first; of equals the lower place.

    Args:
        counts: Of the tags, [t].
        names: Of the tags.
        indices: The place of each in the model's list.
        trained: Training images of each.
    """
    columns = (
        counts.true_positives,
        counts.true_negatives,
        counts.false_positives,
        counts.false_negatives,
    )
    rows = zip(names, indices, trained, *(column.tolist() for column in columns), strict=True)
    found = [TagRecord(name, int(index), int(count), *rest) for name, index, count, *rest in rows]
    return sorted(found, key=lambda record: (-record.f1, record.place))


def counts_of(records: Sequence[TagRecord]) -> TagCounts:
    """The counts of records, in their order.

    Raises:
        ValueError: There are none.
    """
    counts = TagCounts(len(records))
    counts.true_positives[:] = [one.true_positives for one in records]
    counts.true_negatives[:] = [one.true_negatives for one in records]
    counts.false_positives[:] = [one.false_positives for one in records]
    counts.false_negatives[:] = [one.false_negatives for one in records]
    return counts


def full_metrics_text(records: Iterable[TagRecord]) -> str:
    """Records as the text of a `full-metrics.txt`, in their order."""
    return "".join(
        f"Tag: {one.name} ({one.place}) (cnt: {one.trained})\n"
        f"Precision: {one.precision:.4f}\nRecall: {one.recall:.4f}\nF1: {one.f1:.4f}\n"
        f"TP: {one.true_positives}, TN: {one.true_negatives},"
        f" FP: {one.false_positives}, FN: {one.false_negatives}\n\n"
        for one in records
    )


def read_full_metrics(path: Path) -> list[TagRecord]:
    """The records of a `full-metrics.txt`; one at its end that is cut off is left out.

    Raises:
        UsageError: It cannot be read, or holds something else; the message names the line.
    """
    found: list[TagRecord] = []
    for number, lines in _blocks(path):
        tag = _TAG.fullmatch(lines[0])
        patterns = (*_RATES, _COUNTS)
        read = [one.fullmatch(line) for one, line in zip(patterns, lines[1:], strict=False)]
        if tag is None or None in read or len(lines) > 5:
            raise UsageError(
                f"{path}, line {number}: expected a record of five lines that begins with 'Tag: ',"
                f" but got {lines[0][:60]!r}"
            )
        if len(lines) < 5:
            continue
        true, negative, called, missed = (int(one) for one in read[3].groups())  # type: ignore[union-attr]
        record = TagRecord(tag[1], int(tag[2]), int(tag[3]), true, negative, called, missed)
        told = [float(one[1]) for one in read[:3] if one is not None]
        if any(abs(a - b) > 1e-4 for a, b in zip(told, _rates(record), strict=True)):
            raise UsageError(
                f"{path}, line {number}: the rates of {record.name!r} are not its counts'"
            )
        found.append(record)
    return found


def detailed_metrics_text(rates: Mapping[str, Mapping[str, ModelRates]]) -> str:
    """Rates as the text of a `detailed_metrics.txt`.

    Args:
        rates: Tag to model to what it reaches.
    """
    return "".join(
        f"{tag}\n"
        + "".join(
            f"{model:<{_LABEL_WIDTH}}: Precision {one.precision!r}, Recall {one.recall!r},"
            f" F1 {one.f1!r}, AP {one.average_precision!r}\n"
            for model, one in models.items()
        )
        + "\n"
        for tag, models in rates.items()
    )


def read_detailed_metrics(path: Path) -> dict[str, dict[str, ModelRates]]:
    """Tag to model to what it reaches, of a `detailed_metrics.txt`.

    Raises:
        UsageError: It cannot be read, or holds something else; the message names the line.
    """
    found: dict[str, dict[str, ModelRates]] = {}
    for number, (tag, *lines) in _blocks(path):
        read = [_MODEL.fullmatch(line) for line in lines]
        try:
            found[tag] = {
                one[1]: ModelRates(*map(float, one.groups()[1:])) for one in read if one is not None
            }
        except ValueError:
            read = [None]
        if None in read or not read:
            raise UsageError(
                f"{path}, line {number}: expected a tag and a line for each model, but got {tag[:60]!r}"
            )
    return found


def mean_rates(rates: Mapping[str, Mapping[str, ModelRates]]) -> dict[str, ModelRates]:
    """Model to the means over the tags, as the table of JoyTag's arena has them; NaN counts nowhere."""
    models = list(dict.fromkeys(model for row in rates.values() for model in row))
    found = {}
    for model in models:
        table = np.array([row[model] for row in rates.values() if model in row])
        known = [column[~np.isnan(column)] for column in table.T]
        found[model] = ModelRates(*(float(one.mean()) if len(one) else math.nan for one in known))
    return found


def _rates(record: TagRecord) -> tuple[float, float, float]:
    return record.precision, record.recall, record.f1


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines that stand together, without blank ones, and the number of the first of them."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    held: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            held.append(line)
        elif held:
            yield number - len(held), held
            held = []


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
