"""Reading outputs back, line by line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from annotary.errors import OutputError
from annotary.sinks._contract import SinkOptions, TagsOfImage

_SETTINGS = b'{\n "settings": '
"""What the settings of a run begin with; `dog.run.json` may also be the sidecar of `dog.run.jpg`."""


def read_lines(
    path: Path, tags_of: Callable[[bytes], TagsOfImage | None], skip: int = 0
) -> Iterator[TagsOfImage]:
    """The tags of every line that holds an image.

    Args:
        path: The file. A last line that was cut off is passed over.
        tags_of: Reads a line with its end; None for one that holds no image. What is wrong with it is a ValueError,
            KeyError or TypeError.
        skip: Lines at the beginning that are something else.

    Raises:
        OutputError: The file cannot be read, or a line is something else.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(islice(file, skip, None), start=skip + 1):
                if not line.endswith(b"\n") or not line.strip():
                    continue
                try:
                    found = tags_of(line)
                except (ValueError, KeyError, TypeError) as error:
                    told = str(error) or type(error).__name__
                    raise OutputError(f"{path}, line {number}, holds no image: {told}") from error
                if found is not None:
                    yield found
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error


def read_files(
    folder: Path, suffix: str, tags_of: Callable[[bytes], Sequence[tuple[str, float | None]]]
) -> Iterator[TagsOfImage]:
    """The tags of every sidecar in a folder and in its folders, in the order of their names.

    Args:
        folder: Where. Hidden files and the settings of runs are passed over.
        suffix: Of the files, with its dot.
        tags_of: Reads a file; what is wrong with it is a ValueError, KeyError or TypeError.

    Raises:
        OutputError: A file cannot be read, or is something else.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder of sidecars")
    for here, inner, names in os.walk(folder):
        inner.sort()
        for name in sorted(names):
            if not name.endswith(suffix) or name.startswith((".", "annotary.run.")):
                continue
            path = Path(here, name)
            try:
                content = path.read_bytes()
                if name.endswith(".run.json") and content.startswith(_SETTINGS):
                    continue
                tags = tuple(tags_of(content))
            except OSError as error:
                raise OutputError(f"cannot read {path}: {error.strerror}") from error
            except (ValueError, KeyError, TypeError) as error:
                told = str(error) or type(error).__name__
                raise OutputError(f"{path} holds no tags: {told}") from error
            yield TagsOfImage(str(path.relative_to(folder))[: -len(suffix)], tags)


def split_text(text: str, options: SinkOptions) -> list[str]:
    """The tags of a line of text, whatever stands around the separator."""
    mark = options.separator.strip() or options.separator
    return [name for part in text.split(mark) if (name := part.strip())]


def unscored(names: Sequence[str]) -> tuple[tuple[str, float | None], ...]:
    """Names without scores."""
    return tuple((name, None) for name in names)
