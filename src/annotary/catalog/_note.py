"""What stands beside a catalogue's table: which models said what in it, and who is writing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotary.errors import OutputError
from annotary.sinks import write_atomically

NOTE_FILE = "catalog.json"
LOCK_FILE = "catalog.lock"

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Note:
    """Which models said what in a catalogue.

    Attributes:
        parts: Part of the records ("embedding", "tags") to what it depends on: `model` is the id of the card, `weights`
            changes with any of its files, and the rest are settings.
        is_indexed: Whether an index was asked for.
    """

    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it into the folder of a catalogue, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        value = {"annotary": "catalog", "parts": {name: dict(p) for name, p in self.parts.items()}}
        write_atomically(path / NOTE_FILE, json.dumps(value, indent=1) + "\n", is_durable=True)


def read_note(path: Path) -> Note | None:
    """The note of a catalogue; None where there is none.

    Raises:
        OutputError: It cannot be read.
    """
    place = path / NOTE_FILE
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
        if value["annotary"] != "catalog":
            raise ValueError("it is something else")
        return Note({str(name): dict(part) for name, part in value["parts"].items()})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"cannot read {place}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{place} is not one of annotary's: {error}") from error


@contextlib.contextmanager
def writing_alone(path: Path) -> Iterator[None]:
    """Hold a catalogue's lock: one process at a time writes. The system drops it with the process.

    Raises:
        OutputError: Another process is writing, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_FILE, _FLAGS, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        if not _locked(descriptor):
            raise OutputError(f"another process is writing {path}; wait for it, or stop it")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Take the lock of an open file; false when another process has it. Systems without such locks go unlocked."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system that has no locks
    return True
