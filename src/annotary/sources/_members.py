"""Files inside archives: which are taken, and under which path, so that none can lead out of its archive."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from annotary.sources._options import SourceOptions
from annotary.sources._patterns import matcher
from annotary.sources.folder import has_image_suffix

OUTSIDE = "its path in the archive leads outside of it"
"""Why a member with such a path is a failure."""

_HIDDEN = re.compile(r"\.(?!\.(?:\\|$))")  # but not "..", which leads outside


def inner_path(name: str) -> str:
    """The path of a member below its archive, with "/" between its parts; empty when it leads outside.

    Outside leads what is absolute or has "..", on any system: an archive may come from another.
    """
    parts = name.split("/")
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or "\0" in name:
        return ""
    if ".." in re.split(r"[/\\]", name):
        return ""
    return "/".join(part for part in parts if part not in ("", "."))


def chooser(options: SourceOptions) -> Callable[[str], bool]:
    """A test whether a member is taken, by its path: as a file in a folder would be.

    Hidden members are left out, and what Macs add to archives. `options.recursive` is for folders: a member's folder is
    a part of its name.

    Raises:
        UsageError: A pattern is empty.
    """
    is_included = matcher(options.include_files) if options.include_files else has_image_suffix
    is_excluded = matcher(options.exclude_files)

    def is_taken(path: str) -> bool:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if any(map(_HIDDEN.match, parts)) or parts[:1] == ["__MACOSX"]:
            return False
        plain = "/".join(parts)
        return is_included(plain) and not (
            is_excluded(plain) or (bool(options.exclude_files) and _folder_is(is_excluded, parts))
        )

    return is_taken


def _folder_is(is_excluded: Callable[[str], bool], parts: Sequence[str]) -> bool:
    """Whether a folder on the way to a member is left out."""
    folders = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return any(is_excluded(folder) or is_excluded(folder + "/") for folder in folders)
