"""The local executor: reading, decoding, the network and the caller's writing go on at once, on this machine.

    feeder ──▶ fetchers ──▶ decoders ──▶ batcher ──▶ network ──▶ caller
    (1 thread) (16, for     (1 a core)   (1 thread)  (streams)   (in the order of the input)
                addresses)

The feeder takes a slot for every image and the caller gives it back, so that no more than a fixed number of images is
under way, however many there are. Queues between the stages hold futures in the order of the input, so nothing is
sorted and a slow image delays only the order, not the work behind it.
"""

from __future__ import annotations

import hashlib
import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary import images, preprocess
from annotary.cards import Alpha, PreprocessSpec
from annotary.errors import ImageError
from annotary.images import Decoded, DecodeOptions
from annotary.records import Annotation, Failure, Item, Record
from annotary.runtime import available_cores
from annotary.sources import Reader
from annotary.tasks import Picture, Task

Pixels: TypeAlias = npt.NDArray[np.uint8]

FETCHERS = 16
"""Threads that download: servers are waited for. They hand what they got to the decoders, which are few, because every
thread that decodes keeps memory of its own."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How the work is spread."""

    batch_size: int | None = None
    """Images that the network takes at once; the model's own choice when nothing is said."""

    decoders: int | None = None
    """Images decoded at once; the number of cores when nothing is said."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}")


class Result(NamedTuple):
    """What became of one image.

    Attributes:
        item: The image; None for a failure of a source.
        record: What was said of it, or why it could not be.
        beside: What tasks found that is no part of the record, by name.
    """

    item: Item | None
    record: Record
    beside: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An image that is ready for the networks: one input for each way of preparing."""

    item: Item
    width: int
    height: int
    inputs: dict[PreprocessSpec, Pixels]
    digest: str = ""
    pixels: Pixels | None = None


@dataclass(slots=True)
class _Batch:
    """Images on their way through the networks, and the failures between them, in the order of the input."""

    entries: list[_Prepared | tuple[Item | None, Failure]] = field(default_factory=list)
    parts: Future[list[dict[str, Any]]] | None = None


_FOUND = frozenset(field.name for field in fields(Annotation)) - {
    *("image", "width", "height", "sources")
}
"""The fields of a record that tasks fill."""

_END = object()


def annotate(
    items: Iterable[Item | Failure],
    tasks: Sequence[Task],
    reader: Reader,
    decode_options: DecodeOptions,
    options: PipelineOptions,
    *,
    keeps_bytes: bool = False,
    keeps_digest: bool = False,
) -> Generator[Result, None, None]:
    """Annotate images.

    Args:
        items: The images; what a source could not name is passed on. They are taken in a thread of their own.
        tasks: What is asked of each image; it is decoded once for all of them.
        reader: Reads the bytes.
        decode_options: How bytes are decoded.
        options: How the work is spread.
        keeps_bytes: Whether items come back with their encoded bytes, as `Item.data`, for outputs that hold images.
        keeps_digest: Whether the sha256 of the encoded bytes comes beside the record, as `sha256` in hexadecimal
            digits; of pixels in memory it is that of the pixels.

    Yields:
        What became of each image, in the order of the input.

    Raises:
        AnnotaryError: The source or a model fails; what was yielded before stands.
    """
    executor = _Executor(
        tasks,
        reader,
        decode_options,
        options,
        keeps_bytes=keeps_bytes,
        keeps_digest=keeps_digest,
    )
    try:
        yield from executor.results(items)
    finally:
        executor.stop()


class _Executor:
    def __init__(
        self,
        tasks: Sequence[Task],
        reader: Reader,
        decode_options: DecodeOptions,
        options: PipelineOptions,
        *,
        keeps_bytes: bool,
        keeps_digest: bool,
    ) -> None:
        self._tasks = tasks
        self._keeps_bytes = keeps_bytes
        self._keeps_digest = keeps_digest
        self._specs = tuple({spec: None for task in tasks for spec in task.inputs})
        self._keeps_pixels = any(getattr(task, "needs_pixels", False) for task in tasks)
        self._needed = _whole if self._keeps_pixels else preprocess.needed_by_all(*self._specs)
        self._reader = reader
        self._decode_options = decode_options
        self._alphas = tuple({decode_options.alpha_of(spec.alpha): None for spec in self._specs})
        cores = options.decoders or available_cores()
        streams = max(task.streams for task in tasks)
        self._batch_size = options.batch_size or max(task.batch_size for task in tasks)
        # Pictures in full size are large: of those no more wait than keep everybody busy.
        waiting = cores if self._keeps_pixels else 2 * FETCHERS
        self._slots = threading.Semaphore(waiting + (streams + 2) * self._batch_size)
        self._stopped = threading.Event()
        self._fetch_pool = ThreadPoolExecutor(FETCHERS, "annotary-fetch")
        self._decode_pool = ThreadPoolExecutor(cores, "annotary-decode")
        self._network_pool = ThreadPoolExecutor(streams, "annotary-network")
        self._streams = streams
        self._at_work: list[Future[Any]] = []
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def results(self, items: Iterable[Item | Failure]) -> Iterator[Result]:
        for name, work in (("feed", lambda: self._feed(items)), ("collect", self._collect)):
            threading.Thread(target=work, name=f"annotary-{name}", daemon=True).start()
        while (batch := self._running.get()) is not _END:
            if isinstance(batch, BaseException):
                raise batch
            for result in self._finish(batch):
                self._slots.release()
                yield result

    def stop(self) -> None:
        """Let all threads end; work that has not begun is dropped."""
        self._stopped.set()
        if sys.is_finalizing():
            # The threads are gone, and with them whoever held a pool's lock.
            return
        self._slots.release()
        self._fetch_pool.shutdown(wait=False, cancel_futures=True)
        self._decode_pool.shutdown(wait=False, cancel_futures=True)
        self._network_pool.shutdown(wait=False, cancel_futures=True)

    def _feed(self, items: Iterable[Item | Failure]) -> None:
        """Hand every item on, no faster than results are taken."""
        try:
            for item in items:
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                if isinstance(item, Failure):
                    self._waiting.put(item)
                elif item.url is not None:
                    self._waiting.put(self._fetch_pool.submit(self._fetch, item))
                else:
                    self._waiting.put(self._decode_pool.submit(self._prepare, item))
            self._waiting.put(_END)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the caller sees it
            # When Python ends, the pools take nothing any more; nobody waits for results then.
            self._waiting.put(error)

    def _prepare(self, item: Item) -> _Prepared | tuple[Item | None, Failure]:
        """Read, decode and fit one image; in a decoder's thread."""
        try:
            if item.pixels is not None:
                height, width = item.pixels.shape[:2]
                pixels = dict.fromkeys(self._alphas, item.pixels)
                return self._fit(item, pixels, width, height, self._digest(item.pixels))
            return self._decode(item, self._reader.read(item))
        except (ImageError, MemoryError) as error:
            return item, _failure(item, error)

    def _fetch(self, item: Item) -> _Prepared | tuple[Item | None, Failure]:
        """Download one image, and wait until it is decoded; in a fetcher's thread."""
        try:
            data = self._reader.read(item)
            return self._decode_pool.submit(self._decode, item, data).result()
        except (ImageError, MemoryError) as error:
            return item, _failure(item, error)

    def _decode(self, item: Item, data: bytes) -> _Prepared:
        decoded = self._decoded(data, self._alphas[0])
        pixels = dict.fromkeys(self._alphas, decoded.pixels)
        if decoded.is_transparent:  # else it is the same for all
            pixels |= {alpha: self._decoded(data, alpha).pixels for alpha in self._alphas[1:]}
        digest = self._digest(data)
        if self._keeps_bytes:
            item = replace(item, path=None, url=None, data=data)
        return self._fit(item, pixels, decoded.width, decoded.height, digest)

    def _decoded(self, data: bytes, alpha: Alpha) -> Decoded:
        options = self._decode_options
        return images.decode(data, at_least=self._needed, options=options, alpha=alpha)

    def _digest(self, data: bytes | Pixels) -> str:
        if not self._keeps_digest:
            return ""
        if isinstance(data, np.ndarray):
            data = repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()
        return hashlib.sha256(data).hexdigest()

    def _fit(
        self, item: Item, pixels: Mapping[Alpha, Pixels], width: int, height: int, digest: str
    ) -> _Prepared:
        alpha_of, full = self._decode_options.alpha_of, (width, height)
        inputs = {
            spec: preprocess.fit(pixels[alpha_of(spec.alpha)], spec, full) for spec in self._specs
        }
        kept = pixels[self._alphas[0]] if self._keeps_pixels else None
        return _Prepared(item, width, height, inputs, digest, kept)

    def _collect(self) -> None:
        """Gather prepared images into batches. A batch is not waited for when the source is slow."""
        batch, size = _Batch(), 0
        while True:
            arrived = self._waiting.get()
            if arrived is _END or isinstance(arrived, BaseException):
                self._submit(batch)
                self._running.put(arrived)
                return
            if batch.entries and isinstance(arrived, Future) and self._is_waited_for(arrived):
                # Nothing that is ready waits for an image that is slow to come.
                self._submit(batch)
                batch, size = _Batch(), 0
            try:
                entry = (None, arrived) if isinstance(arrived, Failure) else arrived.result()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the caller sees it
                self._running.put(error)
                return
            batch.entries.append(entry)
            size += isinstance(entry, _Prepared)
            if size == self._batch_size or self._waiting.empty():
                self._submit(batch)
                batch, size = _Batch(), 0

    def _is_waited_for(self, image: Future[Any]) -> bool:
        """Whether networks could work now, and an image is not ready; while all are at work, it may become so."""
        while not image.done():
            at_work = self._still_at_work()
            if len(at_work) < self._streams:
                return True
            wait([image, *at_work], return_when=FIRST_COMPLETED)
        return False

    def _still_at_work(self) -> list[Future[Any]]:
        return [batch for batch in self._at_work if not batch.done()]

    def _submit(self, batch: _Batch) -> None:
        ready = [entry for entry in batch.entries if isinstance(entry, _Prepared)]
        if ready and not self._stopped.is_set():
            try:
                batch.parts = self._network_pool.submit(self._run_networks, ready)
                self._at_work = [*self._still_at_work(), batch.parts]
            except (
                RuntimeError
            ) as error:  # Python ends, and so do the pools; nobody waits for results
                self._stopped.set()
                self._running.put(error)
                return
        self._running.put(batch)

    def _run_networks(self, ready: list[_Prepared]) -> list[dict[str, Any]]:
        """The parts of every image's annotation; in a network thread."""
        found: list[dict[str, Any]] = [{} for _ in ready]
        seen = [Picture(image.item, image.width, image.height, image.pixels) for image in ready]
        batches: dict[PreprocessSpec, npt.NDArray[np.generic]] = {}
        for task in self._tasks:
            for spec in task.inputs:
                if spec not in batches:
                    pictures = [image.inputs[spec] for image in ready]
                    batches[spec] = preprocess.to_batch(pictures, spec)
            answers = task.annotate(seen, *(batches[spec] for spec in task.inputs))
            for parts, answer in zip(found, answers, strict=True):
                parts.update(answer)
        return found

    def _finish(self, batch: _Batch) -> Iterator[Result]:
        found = iter(batch.parts.result() if batch.parts is not None else ())
        sources = {task.part: task.source for task in self._tasks if task.part}
        for entry in batch.entries:
            if isinstance(entry, tuple):
                yield Result(*entry, {})
                continue
            beside = dict(next(found))
            parts = {name: beside.pop(name) for name in _FOUND if name in beside}
            if self._keeps_digest:
                beside["sha256"] = entry.digest
            item = entry.item
            annotation = Annotation(item.image, entry.width, entry.height, **parts, sources=sources)
            yield Result(item, annotation, beside)


def _whole(width: int, height: int) -> tuple[int, int]:
    """The size of a picture in full, as `preprocess.needed_by_all` says sizes."""
    return height, width


def _failure(item: Item, error: ImageError | MemoryError) -> Failure:
    if isinstance(error, ImageError):
        return Failure.of(item.image, error)
    return Failure(item.image, "UnreadableImage", "there is not enough memory for it")
