"""Text sidecars: the tags of `photo.jpg` in `photo.txt`, beside it or mirrored in another folder.

This is what trainers of diffusion models read. Each file is written whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

from annotary.errors import OutputError, SidecarTaken, UsageError
from annotary.records import Annotation, Item
from annotary.sinks._atomic import write_atomically
from annotary.sinks._contract import SinkOptions
from annotary.sinks._names import NameSet

SUFFIXES = ()


class TextSidecars:
    """Writes one text file an image.

    Args:
        folder: Where the files go, under the images' paths below the folder that was asked for; None: beside each
            image.
        options: What to do with existing files, and how tags are joined.
    """

    def __init__(self, folder: Path | None, options: SinkOptions) -> None:
        self._folder = folder
        self._options = options
        self._written = NameSet()

    def place(self, item: Item) -> Path:
        """The sidecar of an image.

        Raises:
            UsageError: The image is no file and no folder was given.
        """
        if self._folder is not None:
            image = self._folder / (item.relative or _safe_name(item.image))
        elif item.path is not None:
            image = item.path
        else:
            raise UsageError(
                f"{item.image} is no file to put a sidecar beside; say --output FOLDER"
            )
        if self._options.full_names:
            return image.with_name(image.name + ".txt")
        return image.with_suffix(".txt")

    def holds(self, item: Item) -> bool:
        """Whether the sidecar exists and is to be left alone."""
        return self._options.on_existing == "skip" and os.path.lexists(self.place(item))

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write the sidecar; a person's tags in it stay first when appending."""
        place = self.place(item)
        if not self._written.add(os.fspath(place)):
            raise SidecarTaken(
                f"another image has the sidecar {place}; --full-names gives each its own"
            )
        separator = self._options.separator
        names = [tag.name for tag in annotation.tags]
        if self._options.on_existing == "append":
            kept = _existing(place, separator)
            names = kept + [name for name in names if name not in kept]
        write_atomically(place, separator.join(names) + "\n")

    def close(self) -> None:
        """Nothing is open."""


def open(output: Path | None, options: SinkOptions) -> TextSidecars:  # noqa: A001
    """A sink that writes into a folder, or beside the images."""
    return TextSidecars(output, options)


def _existing(place: Path, separator: str) -> list[str]:
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"cannot read {place}, so nothing is appended to it: {error}") from error
    mark = separator.strip() or separator
    return [name for part in text.split(mark) if (name := part.strip())]


def _safe_name(image: str) -> str:
    """A file name for an image that has no path: the last part of its address, without the query."""
    last = image.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    return last.replace("\\", "_").replace("\0", "_") or "image"
