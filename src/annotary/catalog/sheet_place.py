"""Where a contact sheet may be written: it replaces nothing but an earlier one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from annotary.errors import UsageError

MARK = b"annotary contact sheet"
"""Stands near the beginning of every sheet: the comment of a JPEG, a text of a PNG."""

_HEAD = 1024
"""Bytes in which the mark is looked for; Pillow writes it behind the first header."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def check_sheet_place(path: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse a place that holds anything but an earlier sheet: it may be somebody's photo.

    Args:
        path: The file that is to be written.
        inputs: What is read: files of these are refused even if they are earlier sheets. Others are passed over.

    Raises:
        UsageError: The place is taken.
    """
    if not os.path.exists(path):  # noqa: PTH110 - never raises
        return
    for told in inputs:
        name = os.fspath(told)
        if os.path.isfile(name) and os.path.samefile(name, path):  # noqa: PTH113, PTH121
            raise UsageError(f"--sheet {path} is read; name another file")
    if not is_sheet(path):
        raise UsageError(f"--sheet {path} is there and is no contact sheet; name another file")


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet that annotary made; false where one cannot look."""
    if not os.path.isfile(path):  # noqa: PTH113 - reading a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith(_BEGINNINGS) and MARK in head
