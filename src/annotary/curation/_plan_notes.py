"""What is written down of the steps of a pipeline: what each was made from, and whether it is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from annotary.errors import OutputError
from annotary.sinks import write_atomically
from annotary.sources._paths import reason

NOTES = "_pipeline"
"""The folder of the notes, below that of all steps."""

_DIGESTED = (
    64 * 1024 * 1024
)  # bytes of a file up to which its content counts, and not the time of its last change
_FOR_OTHERS = (".parquet", ".npy", ".jsonl")  # endings of what a step writes for others


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step of a pipeline.

    Attributes:
        name: Of its folder.
        use: Of its kind.
        rows_in: Rows that came in; of `metadata` words and names.
        rows_out: Rows that went out; of `metadata` entries.
        dropped: Why rows were dropped to how many they are.
        failures: How many parts, rows and images were broken.
        seconds: How long the run took that came to its end.
        parts_failed: How many parts could not be done.
        is_of_entries: Whether what is counted are entries and not rows.
        was_done: Whether an earlier run did it.
    """

    name: str
    use: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    failures: int
    seconds: float
    parts_failed: int = 0
    is_of_entries: bool = False
    was_done: bool = False


class Note:
    """What is written down of a step: what it is made from, and whether it is done.

    Args:
        output: The folder of all steps.
        name: Of the step.
    """

    def __init__(self, output: Path, name: str) -> None:
        self._folder = output / name
        self._path = output / NOTES / f"{name}.json"
        self._known = self._read()

    @property
    def is_there(self) -> bool:
        """Whether the step was begun."""
        return self._known is not None

    @property
    def is_done(self) -> bool:
        """Whether the step is done, and what it wrote is still there."""
        known = self._known
        return bool(known and known.get("outcome") and known.get("output") == self._output())

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        assert self._known is not None
        return Outcome(**self._known["outcome"])

    @property
    def makes_tables(self) -> bool:
        """Whether the next step reads what it wrote."""
        return bool(self._known and self._known.get("makes_tables", True))

    def told_change(self, wanted: Mapping[str, Any]) -> str:
        """Why what is there must not be gone on with; empty where there is nothing, or it fits."""
        if self._known is None:
            return ""
        known = self._known.get("made_from")
        if not isinstance(known, dict):
            return "it was being thrown away"
        if known.get("use") != wanted["use"]:
            return f"it was {known.get('use')} and is {wanted['use']} now"
        before, now = known.get("options") or {}, wanted["options"]
        if before != now:
            return "; ".join(
                f"{key} was {shown(before.get(key))} and is {shown(now.get(key))} now"
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key)
            )
        files = known.get("files") or {}
        if files != wanted["files"]:
            changed = [key for key in wanted["files"] if files.get(key) != wanted["files"][key]]
            return f"what {', '.join(changed)} names has changed"
        return "" if known.get("input") == wanted["input"] else "its input has changed"

    def begin(self, wanted: Mapping[str, Any]) -> None:
        """Note what the step is made from."""
        self._write({"made_from": wanted})

    def end(self, outcome: Outcome, *, makes_tables: bool) -> None:
        """Note that it is done."""
        assert self._known is not None
        told = {**asdict(outcome), "dropped": dict(outcome.dropped)}
        self._write(
            {
                **self._known,
                "outcome": told,
                "makes_tables": makes_tables,
                "output": self._output(),
            }
        )

    def throw_away(self) -> None:
        """Remove what the step has written. The note goes last: without it nobody would know whose the folder is."""
        self._write({"made_from": None})
        try:
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
            self._path.unlink()
        except OSError as error:
            raise OutputError(f"cannot remove {self._folder}: {reason(error)}") from error
        self._known = None

    def _output(self) -> str:
        """What changes with any file that the step has written for others."""
        return digest_of_paths([str(self._folder)], endings=_FOR_OTHERS)

    def _read(self) -> dict[str, Any] | None:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        self._known = json.loads(json.dumps(known))
        write_atomically(self._path, json.dumps(known, indent=1, ensure_ascii=False))


def digest_of_paths(paths: Sequence[str], *, endings: tuple[str, ...] = ("",)) -> str:
    """What changes with files, and with the files of folders.

    Args:
        paths: Files and folders.
        endings: Of names in folders that count.
    """
    return digest([_signature(path, endings) for path in paths])


def _signature(path: str, endings: tuple[str, ...]) -> Any:
    if not os.path.isdir(path):  # noqa: PTH112
        return _signature_of_file(path)
    found = []
    for place, folders, files in os.walk(path):
        # What is below `_state` is what a step has for itself.
        folders[:] = sorted(name for name in folders if name != "_state")
        for name in sorted(files):
            if name.endswith(endings) and not name.startswith((".", "_failures")):
                file = os.path.join(place, name)  # noqa: PTH118
                found.append([os.path.relpath(file, path), *_stamp(file)])
    return found


def _signature_of_file(path: str) -> list[Any]:
    stamp = _stamp(path)
    if stamp and stamp[0] <= _DIGESTED:
        with contextlib.suppress(OSError):
            return [hashlib.sha256(Path(path).read_bytes()).hexdigest()]
    return stamp


def _stamp(path: str) -> list[Any]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def digest(value: Any) -> str:
    """32 hexadecimal digits that change with a value of JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def shown(value: Any) -> str:
    """A value of an option, for messages."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "not said" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
