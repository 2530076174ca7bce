"""What lets a run be continued, and keeps two runs apart: a small file beside the output that names its settings.

    out.jsonl              the records, whole at every moment but for a tail that the next run cuts off
    out.jsonl.run.json     the settings that the records depend on; locked while a run goes on
    failures.jsonl         the images that could not be annotated

Which images are done is read from the output itself, so nothing can disagree with it. The settings file may be
deleted when the output is finished.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from annotary.errors import OutputError
from annotary.sinks import OPEN_FLAGS

FAILURES_FILE = "failures.jsonl"
STATE_SUFFIX = ".run.json"


class RunState:
    """The claim of a run on its output.

    Args:
        output: The file, or the folder of a format that writes one file an image.
        settings: What the records depend on: two runs with equal settings may continue each other.
        overwrite: Whether an output that is there may be thrown away.

    Raises:
        OutputError: The output belongs to another run, or to nobody known, or another process is writing it.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], *, is_folder: bool, overwrite: bool
    ) -> None:
        self.output = output
        self.path = output / f"annotary{STATE_SUFFIX}" if is_folder else _beside(output)
        self._settings = json.loads(json.dumps(settings))
        self._descriptor: int | None
        self._descriptor, is_new = self._open()
        try:
            self._claim(is_folder=is_folder, overwrite=overwrite)
        except BaseException:
            self.release()
            if is_new:
                self.path.unlink(missing_ok=True)
            raise

    def release(self) -> None:
        """Let other processes have the output."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _claim(self, *, is_folder: bool, overwrite: bool) -> None:
        found = self._read()
        exists = self.output.is_file() and self.output.stat().st_size > 0
        if is_folder and self.output.exists() and not self.output.is_dir():
            raise OutputError(f"{self.output} is a file, and this format needs a folder")
        if not is_folder and self.output.is_dir():
            raise OutputError(f"{self.output} is a folder; --output must be a file for this format")
        if overwrite:
            if not is_folder:
                self.output.unlink(missing_ok=True)
            self._forget_failures(found)
            found = None
        elif exists and found is None:
            raise OutputError(
                f"{self.output} was not written by annotary, or its {self.path.name} is gone;"
                " choose another --output, or say --on-existing overwrite"
            )
        elif found is not None and (exists or is_folder):
            self._compare(found["settings"])
        else:
            self._forget_failures(found)
            found = None
        self.failures = self.path.parent / (found["failures"] if found else self._free_name())
        if found is None:
            self._write({"settings": self._settings, "failures": self.failures.name})

    def _compare(self, found: Mapping[str, Any]) -> None:
        names = sorted({*found, *self._settings})
        changed = [name for name in names if found.get(name) != self._settings.get(name)]
        if changed:
            told = "; ".join(
                f"{name} was {found.get(name)!r}, now {self._settings.get(name)!r}"
                for name in changed
            )
            raise OutputError(
                f"{self.output} holds results of other settings ({told}); choose another --output,"
                " or say --on-existing overwrite"
            )

    def _free_name(self) -> str:
        """`failures.jsonl`, unless it is there or another output's run has claimed it."""
        folder = self.path.parent
        taken = (folder / FAILURES_FILE).exists() or any(
            json.dumps(FAILURES_FILE) in other.read_text(encoding="utf-8", errors="replace")
            for other in folder.glob(f"*{STATE_SUFFIX}")
            if other != self.path
        )
        return f"{self.output.name}.{FAILURES_FILE}" if taken else FAILURES_FILE

    def _forget_failures(self, found: Mapping[str, Any] | None) -> None:
        if found is not None:
            (self.path.parent / found["failures"]).unlink(missing_ok=True)

    def _open(self) -> tuple[int, bool]:
        """Open and lock the settings file; also whether it is new. The system drops the lock with the process."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            descriptor = os.open(self.path, OPEN_FLAGS, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        if not _lock(descriptor):
            os.close(descriptor)
            raise OutputError(f"another process is writing {self.output}; wait for it, or stop it")
        return descriptor, is_new

    def _read(self) -> dict[str, Any] | None:
        """The settings and the name of the failure file; None for a file that was just made."""
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        text = os.read(self._descriptor, 1 << 20)
        if not text:
            return None
        try:
            state = json.loads(text)
            return {"settings": dict(state["settings"]), "failures": str(state["failures"])}
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.path} is damaged; choose another --output") from error

    def _write(self, state: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        data = (json.dumps(state, indent=1) + "\n").encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, 0)
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


def _lock(descriptor: int) -> bool:
    """Take the lock of an open file; false when another process has it. Systems without such locks go unlocked."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beside(output: Path) -> Path:
    return output.with_name(output.name + STATE_SUFFIX)
