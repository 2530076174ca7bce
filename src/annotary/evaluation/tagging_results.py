"""What is told of a tagger that was measured: means of every kind side by side, slices, curves and every tag."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.evaluation.tagging import Booleans, Floats, Integers, Summary, TagCounts, _ratio
from annotary.evaluation.tagging_streams import BINS, BoundedPrecision, ScoreHistograms, edges

FREQUENCIES = (0, 10, 50, 100, 500, 2_000, 5_000, 20_000, 100_000)
"""Where slices by training images begin; from 2,000 on those that JoyTag's own metrics were looked at by."""

_CURVE_POINTS = 97


@dataclass(frozen=True, eq=False)
class Tags:
    """The tags that are measured.

    Attributes:
        names: Of them, [t].
        categories: Of them, [t]; empty where there is none.
        indices: Their places in the model's list, [t].
        trained: Training images of each, [t]; None where nobody knows.
        minimum_support: Images that must have a tag for it to count in means and slices.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    indices: Integers
    trained: Integers | None
    minimum_support: int


def counted(counts: TagCounts, tags: Tags) -> Booleans:
    """Which tags count in means, bool[t]."""
    return counts.support >= tags.minimum_support


def means(counts: TagCounts, chosen: Booleans, pooled: Booleans | None = None) -> dict[str, Any]:
    """Macro, micro and support-weighted rates of some tags, always side by side.

    Args:
        counts: Of all tags.
        chosen: bool[t], which of them count in the means over tags.
        pooled: bool[t], which of them count in the micro rates: also those that no image has and that are given
            wrongly; those that are chosen when nothing is said.
    """
    part, whole = _part(counts, chosen), _part(counts, chosen if pooled is None else pooled)
    kinds = {
        "macro": None if part is None else part.macro(),
        "micro": None if whole is None else whole.micro(),
        "weighted": None if part is None else part.weighted(),
    }
    return {name: _summary(one) for name, one in kinds.items()}


def mean_precision(
    precision: BoundedPrecision, histograms: ScoreHistograms, chosen: Booleans
) -> dict[str, Any]:
    """Mean average precision over some tags, macro, micro and weighted, and how wrong the macro one may be.

    Args:
        precision: Of each tag.
        histograms: Of all tags, which all count in the micro value; it is of scores rounded to their bins.
        chosen: bool[t], which tags.
    """
    known = chosen & ~np.isnan(precision.value)
    if not known.any():
        return {"macro": None, "micro": None, "weighted": None, "macro_bounds": None}
    weights = histograms.support[known]
    bounds = [float(one[known].mean()) for one in (precision.low, precision.high)]
    return {
        "macro": float(precision.value[known].mean()),
        "micro": histograms.pooled().average_precision(),
        "weighted": float(precision.value[known] @ weights / weights.sum()),
        "macro_bounds": bounds,
    }


def slices(
    counts: TagCounts, precision: BoundedPrecision, tags: Tags
) -> dict[str, list[dict[str, Any]]]:
    """Means by category, and by how many training images tags have (or, if unknown, images here)."""
    chosen = counted(counts, tags)
    categories = np.asarray(tags.categories, dtype=object)
    by_category = [
        _slice(name or "(none)", categories == name, chosen, counts, precision)
        for name in dict.fromkeys(tags.categories)
    ]
    number = counts.support if tags.trained is None else tags.trained
    ends = (*FREQUENCIES[1:], math.inf)
    by_frequency = [
        _slice(_range(low, high), (number >= low) & (number < high), chosen, counts, precision)
        for low, high in zip(FREQUENCIES, ends, strict=True)
    ]
    return {
        "category": [one for one in by_category if one["tags"]],
        "frequency": [one for one in by_frequency if one["tags"]],
    }


def per_tag(
    counts: TagCounts,
    precision: BoundedPrecision,
    tags: Tags,
    thresholds: npt.NDArray[np.float32],
) -> list[dict[str, Any]]:
    """Everything about each tag, in the order of the tags."""
    rates = counts.rates()
    found = []
    for tag, name in enumerate(tags.names):
        found.append(
            {
                "tag": name,
                "category": tags.categories[tag],
                "index": int(tags.indices[tag]),
                "trained": None if tags.trained is None else int(tags.trained[tag]),
                "support": int(rates.support[tag]),
                "threshold": round(float(thresholds[tag]), 6),
                "tp": int(counts.true_positives[tag]),
                "tn": int(counts.true_negatives[tag]),
                "fp": int(counts.false_positives[tag]),
                "fn": int(counts.false_negatives[tag]),
                "precision": float(rates.precision[tag]),
                "recall": float(rates.recall[tag]),
                "f1": float(rates.f1[tag]),
                "ap": _number(precision.value[tag]),
                "ap_low": _number(precision.low[tag]),
                "ap_high": _number(precision.high[tag]),
            }
        )
    return found


def precision_recall(
    histograms: ScoreHistograms, chosen: Booleans, pooled: Booleans | None = None
) -> list[dict[str, float]]:
    """Precision, recall and F1 of one threshold for all tags, at thresholds spread evenly over logits.

    Args:
        histograms: Of all tags.
        chosen: bool[t], the tags that count in the means.
        pooled: bool[t], those that count in micro rates; the same when nothing is said.
    """
    odds = 2.0 ** np.linspace(-20, 14, _CURVE_POINTS)
    places = np.unique(np.searchsorted(edges(), odds / (1 + odds)).clip(0, BINS - 1))
    totals = np.zeros((3, len(places)))
    micro = np.zeros((3, len(places)))
    for rows, called, hits in histograms.curves():
        c, h, total = called[:, places], hits[:, places], hits[:, :1]
        own, whole = chosen[rows], (chosen if pooled is None else pooled)[rows]
        totals += [
            one[own].sum(axis=0)
            for one in (_ratio(h, c), _ratio(h, total), _ratio(2 * h, c + total))
        ]
        positives = np.full(len(places), total[whole].sum())
        micro += [c[whole].sum(axis=0), h[whole].sum(axis=0), positives]
    totals /= max(int(chosen.sum()), 1)
    rates = _ratio(micro[1], micro[0]), _ratio(micro[1], micro[2])
    f1 = _ratio(2 * micro[1], micro[0] + micro[2])
    return [
        {
            "threshold": float(edges()[place]),
            "micro_precision": float(rates[0][i]),
            "micro_recall": float(rates[1][i]),
            "micro_f1": float(f1[i]),
            "macro_precision": float(totals[0][i]),
            "macro_recall": float(totals[1][i]),
            "macro_f1": float(totals[2][i]),
        }
        for i, place in enumerate(places)
    ]


def calibration(histograms: ScoreHistograms, bins: int = 15) -> dict[str, Any]:
    """How scores and what came true agree, in bins of equally many entries and in ten of equal width.

    Bins of equal mass give the error; as almost all entries have low scores, plots are of bins of equal width.
    """
    found = histograms.reliability(bins)
    size = histograms.all.sum(axis=0, dtype=np.int64)
    true = histograms.true.sum(axis=0, dtype=np.int64)
    place = np.minimum((edges()[:-1].astype(np.float64) * 10).astype(np.int64), 9)
    entries = np.bincount(place, weights=size, minlength=10)
    filled = entries > 0
    columns = [
        _ratio(np.bincount(place, weights=histograms.sums, minlength=10), entries)[filled],
        _ratio(np.bincount(place, weights=true, minlength=10), entries)[filled],
        entries[filled].astype(np.int64),
    ]
    return {"error": found.error, "bins": bins, "by_width": _bins(columns)}


def trap_of(rules: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that warns of comparing numbers of different kinds."""
    first = rules[0]
    macro, micro = first["macro"]["f1"], first["micro"]["f1"]
    if macro is None:
        return ""
    return (
        f"Macro F1 {macro:.3f} and micro F1 {micro:.3f} are of the same scores and thresholds: compare only"
        " numbers of one kind, at one rule, over the same tags."
    )


def _bins(columns: Sequence[npt.NDArray[Any]]) -> list[dict[str, float]]:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [{"score": a, "frequency": b, "entries": c} for a, b, c in rows]


def _slice(
    name: str,
    within: Booleans,
    chosen: Booleans,
    counts: TagCounts,
    precision: BoundedPrecision,
) -> dict[str, Any]:
    own = within & chosen
    known = own & ~np.isnan(precision.value)
    return {
        "name": name,
        "tags": int(own.sum()),
        "support": int(counts.support[own].sum()),
        "map": float(precision.value[known].mean()) if known.any() else None,
        **means(counts, own, within),
    }


def _range(low: int, high: float) -> str:
    if not low:
        return f"< {high:,.0f}"
    return f"{low:,} to {high - 1:,.0f}" if high < math.inf else f"{low:,} and more"


def _part(counts: TagCounts, chosen: Booleans) -> TagCounts | None:
    if not chosen.any():
        return None
    part = TagCounts(int(chosen.sum()))
    part.true_positives = counts.true_positives[chosen]
    part.false_positives = counts.false_positives[chosen]
    part.false_negatives = counts.false_negatives[chosen]
    part.true_negatives = counts.true_negatives[chosen]
    return part


def _summary(summary: Summary | None) -> dict[str, float | None]:
    if summary is None:
        return {"precision": None, "recall": None, "f1": None}
    return {"precision": summary.precision, "recall": summary.recall, "f1": summary.f1}


def _number(value: Floats | float) -> float | None:
    return None if math.isnan(value) else float(value)
