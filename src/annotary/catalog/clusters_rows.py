"""Images that are put into clusters, in temporary files: their vectors, names and tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import OutputError


class Row(NamedTuple):
    """An image.

    Attributes:
        image: Its name.
        path: Its file, when it is one on this machine.
        tags: Its tags; None when nobody was asked for them.
    """

    image: str
    path: str | None
    tags: tuple[str, ...] | None


class ClusterRows:
    """Images with vectors, more of them than memory holds: they are written once and read again as often as need be.

    Args:
        folder: For the files; whoever made it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vector_file = (folder / "vectors").open("wb")
        self._row_file = (folder / "rows.jsonl").open("w", encoding="utf-8")
        self._dimensions = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        image: str,
        path: str | None,
        vector: npt.NDArray[np.float32],
        tags: Sequence[str] | None = None,
    ) -> None:
        """Add an image with its vector, float32[d] of length 1.

        Raises:
            OutputError: The disk is full.
            ValueError: The vector has another length than those before.
        """
        if self._count and len(vector) != self._dimensions:
            raise ValueError(
                f"vectors must have {self._dimensions} numbers, but {image} has {len(vector)}"
            )
        self._dimensions = len(vector)
        try:
            self._vector_file.write(np.ascontiguousarray(vector, np.float32).tobytes())
            self._row_file.write(json.dumps([image, path, tags]) + "\n")
        except OSError as error:
            raise _full(error) from error
        self._count += 1

    def close(self) -> None:
        """Close the files: after the last image, and whatever happens. Twice does no harm.

        Raises:
            OutputError: The disk is full.
        """
        try:
            self._vector_file.close()
            self._row_file.close()
        except OSError as error:
            raise _full(error) from error

    def vectors(self) -> npt.NDArray[np.float32]:
        """float32[n, d], in a file."""
        if not self._count:
            return np.empty((0, 1), np.float32)
        shape = (self._count, self._dimensions)
        return np.memmap(self._folder / "vectors", np.float32, "r", shape=shape)

    def __iter__(self) -> Iterator[Row]:
        """The images in their order."""
        with (self._folder / "rows.jsonl").open(encoding="utf-8") as file:
            for line in file:
                image, path, tags = json.loads(line)
                yield Row(image, path, None if tags is None else tuple(tags))


def _full(error: OSError) -> OutputError:
    return OutputError(
        f"cannot write temporary files ({error.strerror}); TMPDIR chooses where they are"
    )
