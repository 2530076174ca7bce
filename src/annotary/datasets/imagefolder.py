"""Hugging Face's imagefolder: folders with a `metadata.jsonl` in each part, and a README that says which part is which.

`datasets.load_dataset(FOLDER)` gives the parts as splits with the columns image, label, score and original. Without the
README it would guess parts from names, and a label such as "test tube" would be a part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from annotary.datasets._contract import Row
from annotary.datasets._split import UNSURE
from annotary.datasets._tables import LineFiles
from annotary.sinks import write_atomically

PLACES_IMAGES = True

_SPLITS: Mapping[str, str] = {"val": "validation", "valid": "validation"}
"""What parts are called in Hugging Face's datasets, where they have names of their own."""

_BEGINNING = "---\nconfigs:\n- config_name: default\n  data_files:\n"
_END = "\n---\n"


class ImageFolder:
    """The metadata of all parts, and the README.

    Args:
        output: The dataset.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._lines = LineFiles(lambda part: output / part / "metadata.jsonl", _line)
        self._parts: dict[str, None] = {}

    def add(self, row: Row) -> None:
        """Write a row."""
        self._parts[row.part] = None
        self._lines.add(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.__exit__(kind, error, trace)
        if error is None:
            self._write_readme()

    def _write_readme(self) -> None:
        """Write the README, unless somebody has written into it."""
        path = self._output / "README.md"
        try:
            before = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            before = ""
        except (OSError, ValueError):
            return
        if not before or (before.startswith(_BEGINNING) and before.endswith(_END)):
            write_atomically(path, _readme(self._parts))


def open(output: Path) -> ImageFolder:  # noqa: A001
    """The metadata of all parts."""
    return ImageFolder(output)


def _line(row: Row) -> bytes:
    values = {
        "file_name": row.file.partition("/")[2],  # below the part's folder
        "label": row.label,
        "score": row.score,
        "original": row.original,
    }
    text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _readme(parts: Mapping[str, None]) -> str:
    lines = []
    for part in sorted(set(parts) - {UNSURE}):
        split = _SPLITS.get(part, part.replace("-", "_"))
        lines += [f"  - split: {split}", f'    path: "{part}/**"']
    return _BEGINNING + "\n".join(lines) + _END
