"""A process that does parts of a step: `python -m annotary.curation._worker`, as `_workers` starts it."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from pathlib import Path
from typing import Any

from annotary.errors import AnnotaryError, ImageError, ModelError, OutputError, UsageError
from annotary.runtime.children import serve


def main() -> None:
    """Take a step and a folder from standard input, then parts, and answer what came of each on standard output."""
    take, tell = serve()
    prepare()
    try:
        step, folder = take()
    except Exception as error:  # noqa: BLE001 - such as a step of a module that is not found here
        tell(_bug(error))
        return
    _import_what_is_needed()
    while True:
        tell(answer(step, take(), folder))


def prepare() -> None:
    """Let this process use one core: there are as many as cores."""
    with contextlib.suppress(ImportError):
        import pyarrow

        pyarrow.set_cpu_count(1)
        pyarrow.set_io_thread_count(1)


def _import_what_is_needed() -> None:
    """Import what reads and writes tables, while the parts are waited for."""
    with contextlib.suppress(ImportError):
        import pyarrow.compute
        import pyarrow.parquet  # noqa: F401

        from annotary.curation import _rows  # noqa: F401


def answer(step: Any, part: Any, folder: Path) -> tuple[str, Any]:
    """What came of a part, in a form that can go to another process; `_workers.outcome_of` takes it."""
    from annotary.curation.steps import do_part

    try:
        return "done", do_part(step, part, folder)
    except AnnotaryError as error:
        return "error", _plain(error)
    except Exception as error:  # noqa: BLE001 - it is raised again by the one that started us
        return _bug(error)


def _bug(error: Exception) -> tuple[str, Any]:
    return "bug", (_copy(error), "".join(traceback.format_exception(error)))


def _plain(error: AnnotaryError) -> AnnotaryError:
    """An error that can go to another process: those with arguments of their own are told as their parent."""
    copy = _copy(error)
    if isinstance(copy, AnnotaryError):
        return copy
    kinds = (UsageError, OutputError, ModelError, ImageError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), AnnotaryError)
    return kind(str(error))


def _copy(error: Exception) -> Exception | None:
    """An error, if it is the same in another process."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
        return copy if str(copy) == str(error) else None
    except Exception:  # noqa: BLE001 - whatever cannot be copied
        return None


if __name__ == "__main__":
    main()
