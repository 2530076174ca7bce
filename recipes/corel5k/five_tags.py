"""Measures taggers as papers on Corel5k do: five tags for each photo that is kept aside, means over its words.

    python -m recipes.corel5k.five_tags --data ../shared/data --model starter --model dir:build/corel5k/probe/tagger

Two measures of each model are told: its scores as they are, and with a share of 0.4 of a word's frequency among the
other photos taken out of them ("shift", as the starter's scores come already). With `--share` the log-odds of the
first model are also mixed with those of each of the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import annotary
from recipes.starter.report import corel_protocol

Scores = npt.NDArray[np.float64]

ASIDE = 8
"""Photos whose number leaves this by nine are kept aside."""

STRENGTH, CENTRE = 0.4, 0.02
"""Of the shift; see `recipes.starter.calibrate.rank_shift`."""

_LEAST = 1e-6


def main() -> None:
    """Measure the models and tell a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corel5k.five_tags", description=__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds corel5k")
    parser.add_argument("--model", action="append", required=True, help="may be given again")
    parser.add_argument("--share", type=float, action="append", default=[], help="of the others")
    values = parser.parse_args()
    photos = read_photos(values.data / "corel5k")
    odds = {model: log_odds(model, photos) for model in values.model}
    for name, found in mixtures(odds, shift(photos.learned), values.share).items():
        print(told(name, found, photos.truth))


@dataclass(frozen=True)
class Photos:
    """Who has which word."""

    words: tuple[str, ...]
    """All of them, sorted."""

    aside: tuple[Path, ...]
    """The photos that are kept aside."""

    truth: npt.NDArray[np.bool_]
    """``[aside, words]``."""

    learned: npt.NDArray[np.bool_]
    """``[others, words]``."""


def read_photos(folder: Path) -> Photos:
    """Read the index of Corel5k."""
    lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    words = tuple(sorted({word for row in rows for word in row["tags"]}))
    truth = np.array([[word in row["tags"] for word in words] for row in rows])
    is_aside = np.arange(len(rows)) % 9 == ASIDE
    aside = tuple(folder / rows[place]["file"] for place in np.flatnonzero(is_aside))
    return Photos(words, aside, truth[is_aside], truth[~is_aside])


def log_odds(model: str, photos: Photos) -> Scores:
    """Log-odds ``[aside, words]`` of a model's scores; words that it does not know have the lowest."""
    place = {word: number for number, word in enumerate(photos.words)}
    scores = np.zeros(photos.truth.shape)
    for row, record in enumerate(annotary.load(model).tag(photos.aside, threshold=0.0)):
        if isinstance(record, annotary.Failure):
            raise SystemExit(f"{record.image}: {record.message}")
        for tag in record.tags:
            if tag.name in place:
                scores[row, place[tag.name]] = tag.score
    scores = scores.clip(_LEAST, 1 - _LEAST)
    return np.asarray(np.log(scores / (1 - scores)), np.float64)


def shift(truth: npt.NDArray[np.bool_]) -> Scores:
    """What rare words gain and frequent ones lose, ``[words]``, from who has them ``[photos, words]``."""
    share = (truth.sum(0) + 0.5) / (len(truth) + 1)
    moved: Scores = -STRENGTH * (np.log(share / (1 - share)) - np.log(CENTRE / (1 - CENTRE)))
    return np.where(truth.any(0), moved, -100.0)


def mixtures(
    odds: Mapping[str, Scores], moved: Scores, shares: Sequence[float]
) -> dict[str, Scores]:
    """Each model as it is and with the shift, and the first one, which has it already, with each of the others."""
    found: dict[str, Scores] = {}
    first, *others = odds
    for name, own in odds.items():
        found |= {name: own, f"{name}, shift": own + moved}
    for other in others:
        for share in shares:
            mixed = (1 - share) * odds[first] + share * (odds[other] + moved)
            found[f"{first} and {share:g} of {other}, shift"] = mixed
    return found


def told(name: str, scores: Scores, truth: npt.NDArray[np.bool_]) -> str:
    """One line: F1 of mean precision and recall, words recalled, and mAP over the words that occur."""
    found = corel_protocol(scores, truth)
    return (
        f"{name}: F1 {found['f1']:.3f}"
        f" (precision {found['precision']:.3f}, recall {found['recall']:.3f}),"
        f" {found['words_recalled']} words of {found['words']},"
        f" mAP {found['mean_average_precision']:.3f}"
    )


if __name__ == "__main__":
    main()
