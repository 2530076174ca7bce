"""How sources look at paths: as they were typed, and without exceptions for what is not there."""

from __future__ import annotations

import os
import stat


def join(folder: str, name: str) -> str:
    """A name inside a folder, as a person would type it; a name that is absolute stays as it is."""
    return os.path.join(folder, name)  # noqa: PTH118 - Path would drop a leading "./"


def kind_of(path: str) -> str:
    """What a path leads to: "file", "folder", "other" (a pipe, a device), or "" for nothing."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a Path costs more than the look itself
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def is_there(path: str) -> bool:
    """Whether something has this name; a broken link counts."""
    try:
        os.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def reason(error: OSError) -> str:
    """What the system says went wrong, without error numbers."""
    return os.strerror(error.errno) if error.errno else str(error)
