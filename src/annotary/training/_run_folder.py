"""The folder of a training run: what it is a run of, so that it is only continued as the same, and by one at a time.

run.json            the recipe with all its values, and what the dataset holds; locked while a run goes on
steps.csv           a row for each step
validation.csv      a row for each measurement
checkpoints/        the last ones and the best: each a model that annotary opens
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from annotary.errors import OutputError, UsageError
from annotary.training.dataset.index import TagDataset
from annotary.training.recipe import changes

RUN = "run.json"
CHECKPOINTS = "checkpoints"

_LAYOUT = 1


@contextlib.contextmanager
def run_folder(
    output: Path,
    recipe: Mapping[str, Any],
    dataset: TagDataset,
    *,
    must_exist: bool = False,
    has_come: Callable[[Path], bool] = Path.exists,
) -> Iterator[bool]:
    """Make a folder a run's own while the context lasts.

    Args:
        output: The folder; it is made.
        recipe: What is done: all settings of a recipe, as JSON.
        dataset: What it is done with.
        must_exist: Refuse to begin a new run.
        has_come: Tells of the folder whether a run that was begun in it has come to anything. One that has not, such as
            one whose network could not be, gives way to other settings.

    Yields:
        Whether the run was begun before.

    Raises:
        OutputError: The folder holds something else, or a run of other settings, or cannot be written, or another
            process trains there.
        UsageError: There is no run, but there must be one.
    """
    place = output / RUN
    descriptor = _opened(output, must_exist=must_exist)
    try:
        if not _locked(descriptor):
            raise OutputError(f"another process trains in {output}; wait for it, or stop it")
        settings = {"layout": _LAYOUT, "recipe": dict(recipe), "dataset": _told(dataset)}
        before = _read(place)
        if before is not None and has_come(output):
            _refuse_others(output, before, settings)
        _write(place, settings)
        yield before is not None
    finally:
        os.close(descriptor)


def check_folder(output: Path, *, must_exist: bool = False) -> None:
    """Make sure that a folder can be a run's, before anything is done that takes long.

    Args:
        output: As for `run_folder`; it is made.
        must_exist: As there.

    Raises:
        OutputError: As there.
        UsageError: As there.
    """
    os.close(_opened(output, must_exist=must_exist))


def _opened(output: Path, *, must_exist: bool) -> int:
    """The file that is locked while a run goes on, in a folder that holds nothing else than a run."""
    place = output / RUN
    if must_exist and not place.exists():
        raise UsageError(f"{output} holds no run to go on with; leave --resume away to begin one")
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not place.exists() and any(not one.name.startswith(".") for one in output.iterdir()):
            raise OutputError(
                f"{output} holds something else; choose an empty or a new folder as --output"
            )
        return os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error


def _told(dataset: TagDataset) -> dict[str, Any]:
    """What tells a dataset from another: its tags and its images, wherever it lies."""
    digest = hashlib.sha256("\n".join(dataset.tags).encode())
    for split in (dataset.train, dataset.validation):
        digest.update(split.sha256.tobytes())
        digest.update(split.offsets.tobytes())
        digest.update(split.tags.tobytes())
        if split.sources is not None and split.absent is not None:
            digest.update(split.sources.tobytes())
            digest.update(split.absent.tobytes())
    return {
        "tags": len(dataset.tags),
        "train": len(dataset.train),
        "validation": len(dataset.validation),
        "sha256": digest.hexdigest(),
    }


def _refuse_others(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of other settings.

    Raises:
        OutputError: They differ; the message names what has changed.
    """
    changed = changes(before["recipe"], now["recipe"])
    if before["dataset"] != now["dataset"]:
        names = [
            f"{name} were {before['dataset'].get(name)} and are now {count}"
            for name, count in now["dataset"].items()
            if name != "sha256" and before["dataset"].get(name) != count
        ]
        changed.append("the dataset: " + (", ".join(names) or "other images or tags"))
    if changed:
        told = "; ".join(changed[:6]) + (
            f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        )
        raise OutputError(
            f"{output} holds a run of other settings ({told}); choose another --output, or the settings of before"
        )


def _read(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        if found["layout"] == _LAYOUT and found["recipe"] and found["dataset"]:
            return dict(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"{place} is damaged, or of another version; choose another --output")


def _write(place: Path, settings: Mapping[str, Any]) -> None:
    temporary = place.with_name(f".{place.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror or error}") from error


def _locked(descriptor: int) -> bool:
    """Take the lock of an open file; false when another process has it. Systems without such locks go unlocked."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
