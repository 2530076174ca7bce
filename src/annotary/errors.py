"""Every error that annotary raises on purpose.

    AnnotaryError
    ├── UsageError               the caller asked for something impossible; nothing was done
    │   ├── UnknownName          no such model, format or command; the message lists the known ones
    │   ├── NothingToDo          the inputs hold no image
    │   └── MissingExtra         an optional dependency is needed; the message is the pip command
    ├── ImageError               one image could not be had; a run records it and goes on
    │   ├── UnreadableImage      the bytes are no image that can be decoded
    │   ├── UnreachableImage     the bytes could not be read from disk or fetched
    │   └── SidecarError         there is no place for this image's own output file
    ├── OutputError              the output cannot be written, or belongs to another run
    └── ModelError               a model's files are missing, damaged or do not fit its card

The command line prints the message alone, on one line, and exits with 2 for all but `ImageError`.
"""

from __future__ import annotations

from collections.abc import Iterable


class AnnotaryError(Exception):
    """Parent of every error that annotary raises on purpose."""


class UsageError(AnnotaryError):
    """The caller asked for something impossible; nothing was done."""


class UnknownName(UsageError):
    """A name that nothing answers to.

    Args:
        kind: What was looked for, in the singular ("model", "format").
        name: What was asked.
        known: What exists.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"unknown {kind} {name!r}; known: {listed}")
        self.kind = kind
        self.name = name


class NothingToDo(UsageError):
    """The inputs hold no image."""


class MissingExtra(UsageError):
    """An optional dependency is needed and is not installed.

    Args:
        purpose: What it is needed for, as the start of a sentence ("Reading HEIC").
        extra: The extra of this package that brings it.
    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional part: pip install 'annotary[{extra}]'")
        self.extra = extra


class ImageError(AnnotaryError):
    """One image could not be had. A run records it as a `Failure` and goes on."""


class UnreadableImage(ImageError):
    """The bytes are no image that can be decoded."""


class UnreachableImage(ImageError):
    """The bytes could not be read from disk or fetched."""


class SidecarError(ImageError):
    """There is no place for this image's own output file: another image has it, or it cannot have its name."""


class OutputError(AnnotaryError):
    """The output cannot be written, or belongs to another run."""


class ModelError(AnnotaryError):
    """A model's files are missing, damaged or do not fit its card."""
