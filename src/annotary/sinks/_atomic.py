"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from annotary.errors import OutputError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a killed process leaves the old one or the new one, never a part.

    A link is followed and the mode of an existing file is kept. The temporary file is named by its target, so one that
    a killed process left is used up by the next write.

    Raises:
        OutputError: It cannot be written; the old file, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    temporary = target.parent / f".annotary-{digest}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
