"""Where annotations go: one file each, and the folder is the registry.

A sink is a module; a new one is a new file (or a plugin, see `annotary.registry`):

    SUFFIXES: tuple[str, ...]
        File suffixes that `--output` chooses the format by; empty for formats that write one file an image.

    def open(output: Path | None, options: SinkOptions) -> Sink
        A sink that continues what is there. `output` is a file, or for one file an image a folder (None: beside the
        image).

Files whose names begin with an underscore are the room's machinery.
"""

from __future__ import annotations

from annotary.sinks._atomic import write_atomically
from annotary.sinks._contract import (
    Sink,
    SinkOptions,
    format_of,
    formats,
    open_sink,
    writes_one_file,
)
from annotary.sinks._names import NameSet

__all__ = [
    "NameSet",
    "Sink",
    "SinkOptions",
    "format_of",
    "formats",
    "open_sink",
    "write_atomically",
    "writes_one_file",
]
