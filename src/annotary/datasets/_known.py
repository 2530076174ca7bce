"""What another dataset says of images, so that other thresholds or splits are tried without running the network."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from annotary.datasets._journal import JOURNAL_FILE
from annotary.errors import OutputError, UsageError

STATE_FILE = "annotary.run.json"

FLOOR = "floor"
"""The setting that says down to which score boxes are written down."""

_CALLED = {
    "bias": "another calibration (--calibration)",
    "compose": "another --compose, or classifier of it",
    "floor": "higher thresholds, so that boxes below them are not in it",
    "labels": "other labels or prompts",
    "labels_of_image": "other labels of single images (--labels-from)",
    "multi_label": "the other choice of --multi-label",
    "precision": "another precision (--precision)",
    "reduce": "another --reduce",
    "temperature": "another calibration (--calibration)",
    "task": "another --task",
    "top": "another --top",
    "weights": "other weights or precision",
}
"""What a setting is called in a message; others are called by their names."""


class KnownLabels:
    """The labelled files of another dataset: 16 bytes of each are kept in memory.

    Args:
        folder: The other dataset.
        settings: What labels depend on; it must have been the same there. Thresholds need not be, as the labels that
            are written down are those from before them.

    Raises:
        UsageError: The folder is no dataset, or its labels depend on something else.
        OutputError: It cannot be read.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = os.path.realpath(folder)
        self._path = Path(self._folder, JOURNAL_FILE)
        _check(folder, settings)
        digests, offsets = array("Q"), array("q")
        end = 0
        try:
            with self._path.open("rb") as file:
                for line in file:
                    value = _value(line)
                    if value is not None:
                        digests.append(_digest(self._place(value)))
                        offsets.append(end)
                    end += len(line)
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {error.strerror}") from error
        order = np.argsort(np.frombuffer(digests, np.uint64), kind="stable")
        self._digests = np.frombuffer(digests, np.uint64)[order]
        self._offsets = np.frombuffer(offsets, np.int64)[order]

    def find(self, path: str) -> dict[str, Any] | None:
        """The line of a file, by its absolute path; None when it is not known.

        Raises:
            OutputError: The other dataset cannot be read.
        """
        digest = np.uint64(_digest(path))
        place = int(np.searchsorted(self._digests, digest))
        if place == len(self._digests) or self._digests[place] != digest:
            return None
        try:
            with self._path.open("rb") as file:
                file.seek(int(self._offsets[place]))
                value = _value(file.readline())
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {error.strerror}") from error
        return value if value is not None and self._place(value) == path else None

    def _place(self, value: Mapping[str, Any]) -> str:
        return os.path.normpath(os.path.join(self._folder, value["image"]))  # noqa: PTH118


def _check(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse labels that depend on something else."""
    try:
        text = (folder / STATE_FILE).read_text(encoding="utf-8")
        found = json.loads(text)["settings"]
        is_dataset = found["command"] == "label" and (folder / JOURNAL_FILE).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        is_dataset = False
    if not is_dataset:
        raise UsageError(f"--labels-of {folder}: this is no dataset of annotary label")
    wanted = json.loads(json.dumps(dict(settings)))
    names = {"compose", "task", *wanted} - {"thresholds"}
    other = sorted(name for name in names if not _agrees(name, found.get(name), wanted.get(name)))
    if other:
        told = dict.fromkeys(_CALLED.get(name, f"another {name}") for name in other)
        raise UsageError(
            f"--labels-of {folder}: what it holds was made with {', and '.join(told)};"
            " label without it, or as there"
        )


def _agrees(name: str, found: Any, wanted: Any) -> bool:
    """Whether labels of one setting serve for another."""
    if name == FLOOR and found is not None and wanted is not None:
        return bool(found <= wanted)  # there is more than is wanted, and thresholds sort it out
    return (found or None) == (wanted or None)


def _value(line: bytes) -> dict[str, Any] | None:
    """The line of a file; None for images that are no files, and for a tail that was cut off."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else {}
        is_file = value.get("is_file") is True and isinstance(value.get("image"), str)
    except (ValueError, AttributeError):
        return None
    return value if is_file else None


def _digest(path: str) -> int:
    encoded = path.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
