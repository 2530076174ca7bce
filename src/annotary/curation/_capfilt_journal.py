"""The journal of CapFilt: a line of JSON for each image that is done, so that a run that is killed loses none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from annotary.curation._capfilt_judging import Judged
from annotary.sinks._appending import AppendingRecords

SUFFIX = ".journal.jsonl"
"""It stands beside the output, and is named by it."""


class Journal(AppendingRecords):
    """Images that are done.

    Args:
        path: The file.
        take: Gets the name of each image that the file holds, and what was found of it.

    Raises:
        OutputError: The file cannot be read, or is something else.
    """

    def __init__(self, path: Path, take: Callable[[str, Judged], None]) -> None:
        super().__init__(path, _Lines(take))

    def write(self, image: str, judged: Judged) -> None:
        """Append an image.

        Raises:
            OutputError: It cannot be written; the file ends with the image before.
        """
        line = json.dumps({"image": image, **judged.to_json()})
        self.append(image, line.encode() + b"\n")


class _Lines:
    """A line of JSON for each image."""

    opening = b""
    between = b""
    closing = b""

    def __init__(self, take: Callable[[str, Judged], None]) -> None:
        self._take = take

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole line."""
        end = file.tell()
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                value = json.loads(line)
                image, judged = value["image"], Judged.from_json(value)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} is no record of an image") from error
            self._take(str(image), judged)
            yield str(image), end
