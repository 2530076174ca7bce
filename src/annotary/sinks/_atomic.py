"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from annotary.errors import OutputError


def write_atomically(path: Path, content: str | bytes, *, is_durable: bool = False) -> None:
    """Write a file so that a killed process leaves the old one or the new one, never a part.

    A link is followed; mode and extended attributes of an existing file are kept. The temporary file is named by its
    target, so one that a killed process left is used up by the next write.

    Args:
        path: The file; folders that are missing are made.
        content: Text is written as UTF-8, with its line ends as they are.
        is_durable: Whether the disk must have it before the old file goes, so that even a loss of power keeps one of
            them. It costs a wait for the disk.

    Raises:
        OutputError: It cannot be written; the old file, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    temporary = target.parent / f".annotary-{digest}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            # Flags of BSD and macOS may make a file that nobody can rename or remove: they are not copied.
            has_flags = getattr(target.stat(), "st_flags", 0) != 0
            (shutil.copymode if has_flags else shutil.copystat)(target, temporary)
            os.utime(temporary)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
