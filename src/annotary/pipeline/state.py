"""What lets a run be continued, and keeps two runs apart: a small file beside the output that names its settings.

    out.jsonl              the records, whole at every moment but for a tail that the next run cuts off
    out.jsonl.run.json     the settings that the records depend on; locked while a run goes on
    failures.jsonl         the images that could not be annotated

Which images are done is read from the output itself, so nothing can disagree with it. The settings file may be
deleted when the output is finished; then nothing is added to the output any more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from annotary.errors import OutputError
from annotary.records import Failure, from_line

FAILURES_FILE = "failures.jsonl"
STATE_SUFFIX = ".run.json"

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the settings file holds."""

    settings: Mapping[str, Any]
    """What the records depend on."""
    failures: str
    """The name of the list of failures, in the same folder."""
    complete: bool
    """Whether the run came to its end."""
    overwriting: bool = False
    """Whether it began by throwing earlier results away."""


class RunState:
    """The claim of a run on its output.

    Args:
        output: The file, or the folder of a format that writes one file an image.
        settings: What the records depend on: two runs with equal settings may continue each other.
        is_folder: Whether the format writes one file an image.
        overwrite: Whether results of annotary that are there may be thrown away. A run that was stopped while it
            overwrote is continued.

    Attributes:
        failures: The list of failures of this output.
        continues: Whether what is there is continued, rather than begun anew.
        is_known: Whether settings of an earlier run were there.

    Raises:
        OutputError: The output belongs to another run, or to nobody known, or another process is writing it.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], *, is_folder: bool, overwrite: bool
    ) -> None:
        if output.is_symlink():
            output = Path(os.path.realpath(output))
        self.output = output
        self.path = output / f"annotary{STATE_SUFFIX}" if is_folder else _beside(output)
        self._settings = json.loads(json.dumps(settings))
        _check_place(output, is_folder=is_folder)
        self._descriptor, self._is_new = self._open()
        try:
            with _folder_lock(self.path.parent):
                self.failures = self._claim(is_folder=is_folder, overwrite=overwrite)
        except BaseException:
            self.abandon()
            raise

    def release(self, *, complete: bool) -> None:
        """Let other processes have the output.

        Args:
            complete: Whether the run came to its end.
        """
        try:
            if complete:
                self._write(replace(self._claimed, complete=True))
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Give the output up before anything was written to it; a settings file that was new goes with it."""
        if self._is_new:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _claim(self, *, is_folder: bool, overwrite: bool) -> Path:
        """Decide whether to continue, to begin anew or to refuse; the list of failures."""
        found = self._read()
        self.is_known = found is not None
        exists = self.output.exists()
        if found is None and exists and not is_folder and self.output.stat().st_size > 0:
            raise OutputError(
                f"{self.output} was not written by annotary, or its {self.path.name} is gone;"
                " move it away, or choose another --output"
            )
        is_equal = found is not None and exists and _said(found.settings) == _said(self._settings)
        was_stopped_overwriting = found is not None and found.overwriting and not found.complete
        if found is not None and exists and not overwrite:
            if not is_equal:
                raise OutputError(self._told_changes(found.settings))
            if is_folder and was_stopped_overwriting:
                raise OutputError(
                    f"{self.output} holds old results between new ones, for a run that overwrote"
                    " was stopped; say --on-existing overwrite again"
                )
        continues = is_equal and (not overwrite or was_stopped_overwriting)
        self.continues = continues
        if found is not None and overwrite and not continues:
            self._throw_away(found, is_folder=is_folder)
        name = found.failures if found is not None and continues else self._free_name()
        self._claimed = _Claim(self._settings, name, complete=False, overwriting=overwrite)
        self._write(self._claimed)
        return self.path.parent / name

    def _throw_away(self, found: _Claim, *, is_folder: bool) -> None:
        """Remove what an earlier run of annotary wrote."""
        if not is_folder:
            self.output.unlink(missing_ok=True)
        failures = self.path.parent / found.failures
        if is_list_of_failures(failures):
            failures.unlink()

    def _told_changes(self, before: Mapping[str, Any]) -> str:
        names = sorted({*before, *self._settings})
        changes = "; ".join(
            told_change(name, before.get(name), self._settings.get(name))
            for name in names
            if (before.get(name) or None) != (self._settings.get(name) or None)
        )
        return (
            f"{self.output} holds results of other settings ({changes}); choose another --output,"
            " or say --on-existing overwrite"
        )

    def _free_name(self) -> str:
        """`failures.jsonl`, unless it is there or another output has claimed it."""
        folder = self.path.parent
        others = (path for path in folder.glob(f"*{STATE_SUFFIX}") if path != self.path)
        own = f"{self.output.name}.{FAILURES_FILE}"
        is_taken = (
            self.output.name == FAILURES_FILE
            or (folder / FAILURES_FILE).exists()
            or any(_names_failures(other) for other in others)
        )
        if not is_taken:
            return FAILURES_FILE
        number = 2
        while (folder / own).exists():
            own = f"{self.output.name}.{number}.{FAILURES_FILE}"
            number += 1
        return own

    def _open(self) -> tuple[int, bool]:
        """Open and lock the settings file; also whether it is new. The system drops the lock with the process."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(self.path, _FLAGS, 0o666)
                if not _lock(descriptor):
                    os.close(descriptor)
                    break
                if _is_still(descriptor, self.path):
                    return descriptor, os.fstat(descriptor).st_size == 0
                os.close(descriptor)  # somebody gave it up and removed it before we had the lock
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        raise OutputError(f"another process is writing {self.output}; wait for it, or stop it")

    def _read(self) -> _Claim | None:
        """What an earlier run wrote; None for a file that is new, or that a crash of the system has damaged."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        size = os.fstat(self._descriptor).st_size
        text = os.read(self._descriptor, size).decode("utf-8", "replace")
        try:
            # A longer content of before may stand behind ours, if we were killed before it was cut off.
            state, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return None
        if (
            isinstance(state, dict)
            and state
            and not state.keys() & {"settings", "failures", "complete"}
        ):
            raise OutputError(
                f"{self.path} is not one of annotary's; move it away, or choose another --output"
            )
        try:
            claim = _Claim(
                dict(state["settings"]),
                str(state["failures"]),
                complete=bool(state["complete"]),
                overwriting=bool(state.get("overwriting")),
            )
        except (ValueError, KeyError, TypeError):
            return None
        name = claim.failures
        is_ours = name.endswith(FAILURES_FILE) and Path(name).name == name and name.isprintable()
        return claim if is_ours else None

    def _write(self, claim: _Claim) -> None:
        state = {
            "settings": claim.settings,
            "failures": claim.failures,
            "complete": claim.complete,
            "overwriting": claim.overwriting,
        }
        data = (json.dumps(state, indent=1) + "\n").encode()
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._descriptor, len(data))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


def is_list_of_failures(path: Path) -> bool:
    """Whether a file holds failures of annotary and nothing else, but for a tail that a crash cut off."""
    try:
        with path.open("rb") as file:
            return all(line_kind(line) != "foreign" for line in file)
    except OSError:
        return False


def line_kind(line: bytes) -> Literal["failure", "tail", "foreign"]:
    """What a line of a list of failures is; a tail is a failure of ours that was cut off."""
    try:
        return "failure" if isinstance(from_line(line), Failure) else "foreign"
    except ValueError:
        beginning = b'{"image": "'
        is_ours = line.startswith(beginning) or beginning.startswith(line)
        return "tail" if is_ours and not line.endswith(b"\n") else "foreign"


def claims_failures(folder: Path) -> bool:
    """Whether an output in a folder has claimed `failures.jsonl`."""
    return any(_names_failures(state) for state in folder.glob(f"*{STATE_SUFFIX}"))


def _beside(output: Path) -> Path:
    return output.with_name(output.name + STATE_SUFFIX)


def _check_place(output: Path, *, is_folder: bool) -> None:
    """Refuse what can never become the output."""
    if is_folder and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, and this format needs a folder")
    if not is_folder and output.is_dir():
        raise OutputError(f"{output} is a folder, and this format needs a file")
    if not is_folder and output.exists() and not output.is_file():
        raise OutputError(f"{output} is no ordinary file; --json prints on standard output")


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that nothing was said of, so that options that come later change nothing for old runs."""
    return {
        name: value
        for name, value in settings.items()
        if value or (value == 0 and value is not False)
    }


_DIGESTS = {
    "weights": "the files of the model differ",
    "labels": "the labels or their prompts differ",
    "labels_of_image": "the labels of single images differ",
    "policy": "the policy differs",
}
"""What is said of settings that are kept as digests, which say nothing to people."""


def told_change(name: str, before: Any, now: Any) -> str:
    """What changed in a setting."""
    if name in _DIGESTS and before is not None and now is not None:
        return _DIGESTS[name]
    return f"{name} was {_shown(before)}, now {_shown(now)}"


def _shown(value: object) -> str:
    return "not said" if value is None else repr(value)


def _names_failures(state: Path) -> bool:
    """Whether another output's settings name `failures.jsonl`; one that cannot be read may."""
    try:
        return json.dumps(FAILURES_FILE) in state.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """Take the lock of an open file; false when another process has it. Systems without such locks go unlocked."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time choose names in a folder, where the system can lock folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
