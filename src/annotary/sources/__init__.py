"""Where images come from: one file each, and the folder is the registry.

A source is a module with two functions; a new one is a new file (or a plugin, see
`annotary.registry`):

    def accepts(argument: str) -> bool
        Whether an argument is this source's: by its look alone, or by one look at the disk.

    def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure | None]
        The images of the argument, lazily and in a stable order. What cannot be named for reading
        (a folder without permission, a broken row of a list) is a `Failure`, so that nothing is
        lost silently. A failure that stands for many images has the argument's name, or another
        that the source accepts.

        A source need not know of shards: `open_sources` leaves out what belongs to other machines.
        One that reads images may spare itself that with `annotary.sources._shard` and give None
        for an image that it left out.

It may also have:

    def looked_for(options: SourceOptions) -> str
        What it takes, for the message that nothing was found.

    def check(argument: str, options: SourceOptions) -> None
        Raise a `UsageError` for what can be known to be wrong before the first image is given.

    READS_IMAGES: bool
        Going through its images reads them, so they are not counted beforehand.

    IS_LAST_RESORT: bool
        It takes an argument only when no other source does: a plain file is an image unless some
        source knows how to open it.

Files whose names begin with an underscore are the room's machinery.
"""

from __future__ import annotations

from annotary.sources._options import SourceOptions
from annotary.sources._reading import Reader
from annotary.sources._resolve import can_be_counted, open_sources

__all__ = ["Reader", "SourceOptions", "can_be_counted", "open_sources"]
