"""What a report of balancing says: entries before and after, shares, and the curve of counts against rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.curation.probabilities import Counts, tail_share
from annotary.curation.steps import Tally


def shares(
    counts: Counts, kept: Counts, t: float, total: Tally, entries: Sequence[str] | None
) -> dict[str, Any]:
    """What a report of balancing says beside rows.

    Args:
        counts: How many texts match each entry.
        kept: How many of them were kept.
        t: As `BalanceOptions.t`.
        total: What happened to the rows.
        entries: Their texts, if they are known.
    """
    order = np.argsort(-counts.astype(np.int64), kind="stable")
    matched = int(total.beside.get("texts_matched", 0))
    texts = int(total.beside.get("texts", 0))

    def told(ids: npt.NDArray[Any]) -> list[dict[str, Any]]:
        return [
            {
                "id": int(one),
                "entry": None if entries is None else entries[one],
                "before": int(counts[one]),
                "after": int(kept[one]),
                "probability": float(f"{t / max(int(counts[one]), t):.6g}"),
            }
            for one in ids
        ]

    filled = order[: int(np.count_nonzero(counts))]
    return {
        "t": t,
        "entries": len(counts),
        "entries_unmatched": int((counts == 0).sum()),
        "entries_head": int((counts > t).sum()),
        "matches": int(counts.sum()),
        "matches_of_head_share": _share(int(counts[counts > t].sum()), int(counts.sum())),
        "tail_share": tail_share(counts, t) if counts.any() else 0.0,
        "matches_kept": int(kept.sum()),
        "tail_share_kept": _share(int(kept[counts < t].sum()), int(kept.sum())),
        "unmatched_share": _share(texts - matched, texts),
        "kept_share": _share(int(total.beside.get("texts_kept", 0)), texts),
        "head": told(filled[:40]),
        "tail": told(filled[-40:]),
        "curve": list(_curve(counts[filled], kept[filled])),
    }


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def _curve(before: Counts, after: Counts) -> Iterator[tuple[int, int, int]]:
    """Rank, texts before and after, at ranks that are spread evenly over a logarithmic scale."""
    if not len(before):
        return
    ranks = np.unique(np.geomspace(1, len(before), 200).round().astype(np.int64))
    for rank in ranks:
        yield int(rank), int(before[rank - 1]), int(after[rank - 1])
