"""Which files fitted thresholds may be written over: those that were written so before, and nothing else is lost.

A model's own `tags.csv` is replaced only where all but its preset `balanced` stays. Its `card.toml` never is: the file
that is written has one table of it.
"""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

from annotary.cards import CARD_FILE, PRESETS, TAGS_FILE, Vocabulary
from annotary.errors import UsageError
from annotary.sources._paths import reason

_STATE_FILE = "training/checkpoint.json"  # states the sizes of all files of a checkpoint


def check_thresholds_file(path: Path) -> None:
    """Refuse to write thresholds over something else.

    Args:
        path: Where they are to go: `.toml`, `tags.csv`, or any other `.csv`.

    Raises:
        UsageError: It is a card, or a file that holds anything but thresholds; or it belongs to a model that would not
            be whole without it.
    """
    if path.name == CARD_FILE:
        raise UsageError(
            f"{path}: a card holds more than thresholds; choose another name, such as"
            " thresholds.toml, and put its table into the card"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason(error)}") from error
    except ValueError:
        text = "\0"
    if not text:
        return
    if path.suffix.lower() == ".toml":
        is_ours = _is_table(text)
    elif path.name == TAGS_FILE:
        is_ours = _is_vocabulary(text)
    else:
        is_ours = _is_list(text)
    if not is_ours:
        raise UsageError(
            f"{path} is there already and holds something else than what --save-thresholds writes;"
            " choose another name"
        )
    if path.name == TAGS_FILE:
        _check_unsealed(path)


def check_same_tags(path: Path, vocabulary: Vocabulary) -> None:
    """Refuse to write a model's `tags.csv` over one that says anything else of the tags.

    Args:
        path: Of the table that may be there.
        vocabulary: Of the model.

    Raises:
        UsageError: It has other tags, categories, or presets but `balanced`, which would be lost.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    known = {name: place for place, name in enumerate(vocabulary.names)}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                at = known[row["name"]]
                kept = [preset for preset in PRESETS if preset in row and preset != "balanced"]
                if (row.get("category") or "") != vocabulary.categories[at] or any(
                    float(row[preset]) != vocabulary.thresholds[preset][at] for preset in kept
                ):
                    raise ValueError
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{path} is there already and is of other tags than the model has, or says something"
            " else of them; choose another folder"
        ) from error


def _is_table(text: str) -> bool:
    """Whether a text in TOML has the thresholds of `balanced`, and nothing else."""
    if any(line.lstrip().startswith("#") for line in text.splitlines()):
        return False  # somebody's notes
    try:
        table = tomllib.loads(text)
        values = table["thresholds"]["balanced"].values()
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    is_alone = len(table) == len(table["thresholds"]) == 1
    return is_alone and all(isinstance(value, float | int) for value in values)


def _is_list(text: str) -> bool:
    """Whether a text is a table of `name,threshold`, with nothing else in any row."""
    try:
        head, *rows = csv.reader(text.splitlines(keepends=True), strict=True)
        return head == ["name", "threshold"] and all(0 <= float(value) <= 1 for _, value in rows)
    except (ValueError, csv.Error):
        return False


def _is_vocabulary(text: str) -> bool:
    """Whether a text begins as the tags of a model, with no column that is not known."""
    head = next(csv.reader(text.splitlines()[:1]), [])
    return head[:2] == ["name", "category"] and {*head[2:]} <= {*PRESETS}


def _check_unsealed(path: Path) -> None:
    """Refuse a `tags.csv` whose sha256 or size is written down, without which its folder is no model."""
    seal = path.parent / _STATE_FILE
    if seal.is_file():
        raise UsageError(
            f"{path} is part of a checkpoint that training goes on from; choose another folder, or"
            " another name for a table that --tag-thresholds takes"
        )
    try:
        card = tomllib.loads((path.parent / CARD_FILE).read_text(encoding="utf-8"))
        digest = card["files"][TAGS_FILE]
    except (OSError, KeyError, TypeError, ValueError):
        return
    if digest:
        raise UsageError(
            f"{path.parent / CARD_FILE} states the sha256 of {TAGS_FILE}, so the model would count"
            " as damaged; choose another folder, or another name for a table that --tag-thresholds"
            " takes"
        )
