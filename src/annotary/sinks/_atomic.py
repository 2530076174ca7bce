"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from annotary.errors import OutputError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never a part.

    Raises:
        OutputError: It cannot be written; the old file, if any, is as it was.
    """
    temporary = path.parent / f".annotary-{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
