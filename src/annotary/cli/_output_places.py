"""Where commands write at their end: looked at before the work is done, and written whatever becomes of the others."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from annotary.errors import AnnotaryError, OutputError, UsageError
from annotary.sources._paths import reason


def check_places(
    files: Mapping[str, Path | None], folders: Mapping[str, Path | None] | None = None
) -> None:
    """Refuse places where nothing can be written.

    Args:
        files: Option to the file that it asks for; None when it was not given.
        folders: The same of folders.

    Raises:
        UsageError: A folder or the like is where a file would go, a file where a folder would, or two files are one.
        OutputError: Nothing can be written there.
    """
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path is not None:
            check_place(path, option)
            real = os.path.realpath(path)
            if real in seen:
                raise UsageError(f"{seen[real]} and {option} are the same file, {path}")
            seen[real] = option
    for option, path in (folders or {}).items():
        if path is not None:
            _check_folder(Path(os.path.realpath(path)), path, option)


def check_place(path: Path, option: str) -> None:
    """Refuse a place where no file can be written.

    Args:
        path: Of the file; its folder need not be there.
        option: That asks for it, for messages.

    Raises:
        UsageError: Something that is no plain file is there, or its folder is none.
        OutputError: Nothing can be written there.
    """
    real = Path(os.path.realpath(path))
    try:
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise OutputError(f"cannot write {option} {path}: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{option} {path} is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{option} {path} is no plain file; name another")
    _check_folder(real.parent, path, option)


class Outputs:
    """Files that are written one after another: where one cannot be, the others are, and it is told at the end.

    Attributes:
        errors: What went wrong.
    """

    def __init__(self) -> None:
        self.errors: list[AnnotaryError] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Write a file; an error is kept for the end."""
        try:
            yield
        except AnnotaryError as error:
            self.errors.append(error)

    def finish(self) -> None:
        """Tell what could not be written.

        Raises:
            OutputError: That is something.
        """
        if self.errors:
            raise OutputError("; ".join(map(str, self.errors))) from self.errors[0]


def _check_folder(folder: Path, path: Path, option: str) -> None:
    """Refuse a folder that is none, or cannot be made, or cannot be written in."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    shown = _shown(nearest)
    if not nearest.is_dir():
        raise UsageError(f"cannot write {option} {path}: {shown} is no folder")
    try:
        # Whoever may do all, as in a container, still cannot write everywhere: only trying tells.
        with tempfile.TemporaryFile(dir=nearest, prefix=".annotary-"):
            pass
    except FileNotFoundError as error:  # of systems of files that only the kernel writes
        raise OutputError(f"cannot write {option} {path}: {shown} takes no files") from error
    except OSError as error:
        raise OutputError(f"cannot write {option} {path}: {shown}: {reason(error)}") from error


def _shown(folder: Path) -> str:
    """A folder as seen from where the command runs."""
    with contextlib.suppress(ValueError):
        return str(folder.relative_to(Path.cwd().resolve()))
    return str(folder)
