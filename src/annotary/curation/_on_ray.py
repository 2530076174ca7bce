"""Parts of a step as a Ray Data job: on the cluster that is there, or on one that lives as long as the job.

A part is a row of the data set and a task of its own, which does what a process of one machine does
(`annotary.curation._worker`), so that the result is the same to the byte. What a worker was at when it died, Ray gives
to another; as files appear whole or not at all, nothing is there twice and nothing is lost. Ray would try for ever: the
tries are counted in the folder, and a part that ends its worker each time is listed.

All machines must see the tables and the folder under the same paths, and have annotary.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotary.curation._worker import answer, prepare
from annotary.curation._workers import outcome_of
from annotary.curation.tables import BrokenPart, Part, first_line
from annotary.errors import AnnotaryError, MissingExtra, UsageError
from annotary.records import Failure

if TYPE_CHECKING:
    from annotary.curation.steps import Step, StepOptions

_TRIES = 3  # one more than on one machine: here machines may go, and not only processes

_MOST_BLOCKS = 10_000  # a block costs Ray a few kilobytes and the caller a millisecond

_STORE = 200 * 1024 * 1024  # bytes for what tasks hand each other, which are names and counts
_PATIENCE = 5.0  # seconds that a process of Ray may take to end
_LONGEST_PLACE = 40  # characters; names of sockets, of which 107 are left, are below it


def run_on_ray(
    step: Step,
    parts: Sequence[Part],
    folder: Path,
    options: StepOptions,
    finish: Callable[[Part, Any], None],
) -> None:
    """Do a step for parts on a Ray cluster.

    It is the one that this process is connected to, or that `RAY_ADDRESS` names, or that runs on this machine; where
    there is none, or `RAY_ADDRESS` is "local", one is started and ended.

    Args:
        step: What is done.
        parts: The parts.
        folder: Where it is written.
        options: `workers` is the most parts that are worked on at once; when nothing is said, all processors are used.
        finish: Is told what came of each part, as it is done.

    Raises:
        MissingExtra: Ray is not installed.
        UsageError: There is no cluster at `RAY_ADDRESS`.
        AnnotaryError: The step, or Ray, cannot go on.
    """
    ray = _imported()
    tries = folder / "_state" / f"tries-{uuid.uuid4().hex[:12]}"
    with _quiet(ray), _connected(ray, options.workers):
        tries.mkdir(parents=True, exist_ok=True)
        try:
            rows = ray.data.from_items(
                [
                    {"number": number, "part": pickle.dumps(part)}
                    for number, part in enumerate(parts)
                ],
                override_num_blocks=min(len(parts), _MOST_BLOCKS),
            )
            here = Path.cwd()
            done = rows.map(
                functools.partial(_do, step=step, folder=folder, tries=here / tries, here=here),
                compute=ray.data.TaskPoolStrategy(size=options.workers),
            )
            for row in done.iter_rows():
                finish(parts[row["number"]], outcome_of(*pickle.loads(row["answer"])))
        except ray.exceptions.RayError as error:
            raise AnnotaryError(f"Ray cannot go on: {first_line(error)}") from error
        finally:
            shutil.rmtree(tries, ignore_errors=True)


def _do(row: dict[str, Any], step: Step, folder: Path, tries: Path, here: Path) -> dict[str, Any]:
    """Do one part, in a worker of Ray."""
    prepare()
    with contextlib.suppress(OSError):
        os.chdir(here)  # paths start where the caller is, and workers may be elsewhere
    part = pickle.loads(row["part"])
    note = tries / str(row["number"])
    if note.exists() and note.stat().st_size >= _TRIES:
        told = f"{_TRIES} processes that worked on it were ended; is there enough memory?"
        found: tuple[str, Any] = ("done", Failure.of(part.file, BrokenPart(told)))
    else:
        with note.open("ab") as file:
            file.write(b".")
        found = answer(step, part, folder)
    note.unlink(missing_ok=True)
    return {"number": row["number"], "answer": pickle.dumps(found)}


def _imported() -> Any:
    """Ray, which says nothing to its makers.

    Raises:
        MissingExtra: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_USAGE_DISABLED"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data
    except ImportError as error:
        raise MissingExtra("Running on Ray", "ray") from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, workers: int | None) -> Iterator[None]:
    """A connection to a cluster, which is ended if it was begun here.

    The processes of a cluster listen on all addresses of this machine, as Ray has it; who has not the token that Ray
    keeps in the user's folder is refused (`RAY_AUTH_MODE`).
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    options = {"configure_logging": False, "log_to_driver": False}
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_short_folder())
        stack.callback(_restore, signal.getsignal(signal.SIGTERM))  # Ray puts its own in the place
        stack.callback(_shut_down, ray)
        if address != "local":
            try:
                ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                if address != "auto":
                    raise UsageError(
                        f"no Ray cluster can be reached at RAY_ADDRESS {address!r}: {first_line(error)}"
                    ) from error
        if not ray.is_initialized():
            try:
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_STORE,
                    _temp_dir=place,
                    **options,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise AnnotaryError(f"Ray cannot start: {first_line(error)}") from error
        yield


def _shut_down(ray: Any) -> None:
    """End a cluster and take leave of its processes: Ray does not wait for them, which Python complains of later."""
    node = getattr(ray._private.worker, "_global_node", None)
    found = getattr(node, "all_processes", {})
    processes = [one.process for those in found.values() for one in those]
    ray.shutdown()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


def _restore(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """A folder for what a cluster writes, which is removed with it."""
    place = tempfile.gettempdir()
    if len(place) > _LONGEST_PLACE and os.name == "posix":
        place = "/tmp"
    folder = tempfile.mkdtemp(prefix="ray-", dir=place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray prints nothing and draws no bars: standard output may be a pipe, and what happens to parts we tell."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")
        context = ray.data.DataContext.get_current()
        module = ray._private.worker
        for target, name in (
            (context, "enable_progress_bars"),
            (context, "print_on_execution_start"),
            (module, "_worker_logs_enabled"),  # else deaths of workers go to standard output
        ):
            if hasattr(target, name):
                stack.callback(setattr, target, name, getattr(target, name))
                setattr(target, name, False)
        for name in ("ray", "ray.data"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield
