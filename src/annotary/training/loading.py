"""Batches of a dataset's images, in an order that follows from the seed and the epoch, from any sample on.

An image is read, decoded (JPEGs much larger than needed at reduced scale), brought to the network's size by
`preprocess`, and changed by chance by `augmentation`, all in worker processes; pictures come as uint8, and the network
normalises them where it runs. Where training stands is two numbers, the epoch and how many samples of it were seen by
all processes of training together, so that it goes on with the very same batches, also with another number of workers.

An image that cannot be had becomes a white picture of weight 0 without tags, is told once, and is counted: every batch
has the images that it would have had, whatever became of them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.records import Failure
from annotary.training._loading_processes import Here, Processes, Task, Workers
from annotary.training._preparing import Broken, Layout, Preparation, Wanted
from annotary.training.augmentation import AugmentationOptions

NO_ROW = -1
"""The row of a place in a batch that only fills up, so that all processes of training have batches of one size."""

_CHUNK = 16  # pictures that a worker makes at a time, at most

OnFailure = Callable[[Failure], None]


class Images(Protocol):
    """Images with tags, such as `dataset.index.Split`."""

    @property
    def ids(self) -> Sequence[str]:
        """What each image is known by."""

    def __len__(self) -> int:
        """How many there are."""

    def targets(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Which tags images have, uint8[b, t], 0 or 1."""

    def weights(
        self, rows: Sequence[int] | npt.NDArray[np.integer], unknown: float = 0.0
    ) -> npt.NDArray[np.float32] | None:
        """How much each target counts, float32[b, t]; None where all of them count 1."""

    def path(self, row: int) -> Path:
        """Where the file of an image is."""


@dataclass(frozen=True, slots=True)
class LoadingOptions:
    """How images are loaded."""

    batch_size: int = 32
    """Images in a batch of one process of training, at most."""

    workers: int | None = field(default=None, metadata={"metavar": "N"})
    """Processes that read images; 0 lets training do it itself. Otherwise one for each core but one."""

    prefetch: int = 3
    """Batches that are made ahead, at most."""

    cache_mb: int = field(default=0, metadata={"metavar": "MB"})
    """Memory for pictures that are kept from epoch to epoch in the network's size, in megabytes; 0 keeps none. It is of
    no use to the augmentation sw, which begins with the whole picture."""

    shuffle: bool = True
    """Mix the images anew in every epoch; otherwise they come in the dataset's order, as for validation."""

    drop_last: bool = True
    """Leave out the images at the end of an epoch that fill no batch; otherwise there is a smaller one."""

    is_joined: bool = False
    """Fill the last batch of an epoch with the first images of the next, when batches come without end: no image is
    left out, and their order is the same whatever the size of a batch and the number of processes."""

    share: int | None = None
    """Of joined batches: images of a process that as few batches as can be come to exactly, again and again. They are
    as even as can be, the larger ones first. When nothing is said all batches are of `batch_size`."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prefetch", 1), ("cache_mb", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.share is not None and (self.share < 1 or not self.is_joined):
            raise ValueError("share must be at least 1, and is of joined batches alone")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, but got {self.workers}")

    @property
    def process_count(self) -> int:
        """How many workers there are."""
        return max(1, (os.cpu_count() or 1) - 1) if self.workers is None else self.workers


class Batch(NamedTuple):
    """Images and what is to be said of them. The arrays belong to whoever gets it.

    Attributes:
        images: uint8[b, h, w, 3], RGB.
        targets: uint8[b, t], 0 or 1.
        weights: float32[b], 1; 0 for what is no image: one that could not be had, or what only fills up.
        rows: int64[b], of the dataset; `NO_ROW` for what only fills up.
        epoch: 0 for the first.
        place: How many samples of the epoch came before it, in all processes of training together.
        target_weights: float32[b, t], how much each target counts if there is an image; None where all count 1.
    """

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    epoch: int
    place: int
    target_weights: npt.NDArray[np.float32] | None = None


class Throughput(NamedTuple):
    """What the loader brought.

    Attributes:
        samples: Images.
        seconds: From when the first was asked for to when the last was there.
        waited: Seconds of it that the caller waited.
    """

    samples: int
    seconds: float
    waited: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def waited_share(self) -> float:
        """The share of the time that the caller waited, 0..1: near 0 the loader is fast enough."""
        return self.waited / self.seconds if self.seconds else 0.0


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order of an epoch, a permutation int64[count].

    Args:
        seed: Any integer of at least 0.
        epoch: Any integer of at least 0.
        count: How many images there are.
    """
    # Bits of a generator stay the same with every version of NumPy, unlike its permutations (NEP 19).
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


class Loader:
    """Gives batches; it is to be closed, or used in a `with`.

    Args:
        images: The dataset's.
        spec: How the network wants them; of it the size, the fit and the filter matter.
        options: How they are loaded.
        augmentation: How they are changed by chance; None leaves them.
        seed: Of the order and of what is drawn, at least 0.
        rank: Which process of training this is, from 0.
        world: How many there are. A batch of all together is the one that a single process with a batch so many times
            larger would have.
        unknown: What a tag counts that an image has not where nobody knows, 0..1.
        on_failure: Is told of each image that cannot be had, once.
        decode: Limits and speed.

    Attributes:
        failures: The images that could not be had, by id.

    Raises:
        UsageError: There are no images, or too few for a batch.
    """

    def __init__(
        self,
        images: Images,
        spec: PreprocessSpec,
        options: LoadingOptions = LoadingOptions(),
        *,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        unknown: float = 0.0,
        on_failure: OnFailure | None = None,
        decode: DecodeOptions | None = None,
    ) -> None:
        self._images = images
        self._options = options
        self._seed = seed
        self._rank = rank
        self._world = world
        self._unknown = unknown
        self._on_failure = on_failure
        self._preparation = Preparation(spec, augmentation, seed, decode or DecodeOptions())
        self._layout = _layout(images, spec, options, augmentation)
        self._position = (0, 0)
        self._workers: Workers | None = None
        self._seconds = self._waited = 0.0
        self._samples = 0
        self.failures: dict[str, Failure] = {}
        if not 0 <= rank < world:
            raise UsageError(f"rank must be in 0..{world - 1}, but got {rank}")
        if spec.is_in_patches or spec.resample == "gaussian":
            raise UsageError("training needs pictures of one size in whole numbers; choose a fit")
        if not self.samples_per_epoch:
            raise UsageError(
                f"{len(images):,} images are too few for a batch of {options.batch_size * world:,};"
                " choose a smaller batch"
            )

    @property
    def samples_per_epoch(self) -> int:
        """Images of an epoch, in all processes of training together."""
        count, size = len(self._images), self._options.batch_size * self._world
        return count - count % size if self._drops_last else count

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, when it is begun at its beginning."""
        return -(-self.samples_per_epoch // (self._options.batch_size * self._world))

    @property
    def _least(self) -> int:
        """Images that must be left of an epoch for another batch."""
        return self._options.batch_size * self._world if self._drops_last else 1

    @property
    def _drops_last(self) -> bool:
        return self._options.drop_last and not self._options.is_joined

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, and the place in it, of the batch after the one that was given last: where to go on."""
        return self._position

    @property
    def worker_ids(self) -> tuple[int, ...]:
        """The ids of the worker processes that run."""
        return self._workers.ids if isinstance(self._workers, Processes) else ()

    def start_at(self, epoch: int, place: int) -> None:
        """Go on at any sample, with the next iteration that is begun.

        Args:
            epoch: 0 for the first.
            place: How many samples of the epoch were seen, in all processes of training together.

        Raises:
            ValueError: There is no such place.
        """
        if epoch < 0 or not 0 <= place <= len(self._images):
            raise ValueError(f"no sample {place} of epoch {epoch}: there are {len(self._images)}")
        is_over = place + self._least > len(self._images)
        self._position = (epoch + 1, 0) if is_over else (epoch, place)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch."""
        return self._batches(is_endless=True)

    def epoch(self) -> Iterator[Batch]:
        """Batches to the end of the epoch; then the position is the beginning of the next."""
        return self._batches(is_endless=False)

    def take_throughput(self) -> Throughput:
        """What came since this was last asked."""
        found = Throughput(self._samples, self._seconds, self._waited)
        self._samples, self._seconds, self._waited = 0, 0.0, 0.0
        return found

    def close(self) -> None:
        """End the workers."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _batches(self, *, is_endless: bool) -> Iterator[Batch]:
        workers = self._started()
        plans = (
            self._joined_plans(*self._position)
            if is_endless and self._options.is_joined
            else self._plans(*self._position, is_endless=is_endless)
        )
        slots = deque(range(self._layout.slots))
        under_way: deque[_UnderWay] = deque()

        def begin() -> None:
            while slots and (plan := next(plans, None)) is not None:
                under_way.append(self._begin(workers, plan, slots.popleft()))

        counted = time.perf_counter()
        try:
            while True:
                asked = time.perf_counter()
                if self._workers is not workers:
                    raise UsageError("the loader was closed while batches were taken from it")
                begin()
                if not under_way:
                    return
                first = under_way.popleft()
                batch = self._finish(workers, first)
                slots.append(first.slot)
                if self._options.process_count:  # they go on while this batch is trained on
                    begin()
                self._position = first.plan.next
                now = time.perf_counter()
                self._samples += int((batch.rows != NO_ROW).sum())
                self._waited += now - asked
                self._seconds += now - counted
                counted = now
                yield batch
        finally:
            # Nobody may write into a slot that another iteration takes.
            for part in (part for one in under_way for part in one.parts):
                if not part.cancel() and self._workers is workers:
                    part.exception()

    def _started(self) -> Workers:
        if self._workers is None:
            count = self._options.process_count
            if count:
                self._workers = Processes(self._preparation, self._layout, self._wanted, count)
            else:
                self._workers = Here(self._preparation, self._layout, self._wanted)
        return self._workers

    def _wanted(self, rows: Sequence[int]) -> list[Wanted]:
        images = self._images
        return [Wanted(row, images.ids[row], str(images.path(row))) for row in rows]

    def _plans(self, epoch: int, place: int, *, is_endless: bool) -> Iterator[_Plan]:
        """The batches from a place on, of this process of training."""
        size = self._options.batch_size * self._world
        count = len(self._images)
        while True:
            order = self._order(epoch)
            while place + self._least <= count:
                together = order[place : place + size]
                rows = np.full(-(-len(together) // self._world), NO_ROW, np.int64)
                own = together[self._rank :: self._world]
                rows[: len(own)] = own
                end = place + len(together)
                is_over = end + self._least > count
                epochs = np.full(len(rows), epoch)
                yield _Plan(epoch, place, rows, epochs, (epoch + 1, 0) if is_over else (epoch, end))
                place = end
            epoch, place = epoch + 1, 0
            if not is_endless:
                return

    def _joined_plans(self, epoch: int, place: int) -> Iterator[_Plan]:
        """The same, where a batch may begin in an epoch and end in a later one."""
        order = self._order(epoch)
        own = slice(self._rank, None, self._world)
        for part in _sizes(self._options):
            size = part * self._world
            begun, rows, epochs = (epoch, place), np.empty(size, np.int64), np.empty(size, np.int64)
            filled = 0
            while filled < size:
                taken = order[place : place + size - filled]
                rows[filled : filled + len(taken)] = taken
                epochs[filled : filled + len(taken)] = epoch
                filled, place = filled + len(taken), place + len(taken)
                if place == len(order):
                    epoch, place = epoch + 1, 0
                    order = self._order(epoch)
            yield _Plan(*begun, rows[own], epochs[own], (epoch, place))

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        count = len(self._images)
        return epoch_order(self._seed, epoch, count) if self._options.shuffle else np.arange(count)

    def _begin(self, workers: Workers, plan: _Plan, slot: int) -> _UnderWay:
        rows = plan.rows[plan.rows != NO_ROW].tolist()
        parts = max(1, min(self._options.process_count, len(rows)))
        step = min(_CHUNK, -(-len(rows) // parts)) or 1
        # A task is of one epoch, as what is drawn depends on it.
        turns = np.flatnonzero(np.diff(plan.epochs[: len(rows)])) + 1
        begins = sorted({*range(0, len(rows), step), *turns.tolist()})
        tasks = [
            Task(slot, first, int(plan.epochs[first]), tuple(rows[first:end]))
            for first, end in pairwise([*begins, len(rows)])
        ]
        return _UnderWay(plan, slot, [workers.submit(task) for task in tasks])

    def _finish(self, workers: Workers, made: _UnderWay) -> Batch:
        broken = [one for part in made.parts for one in part.result()]
        plan = made.plan
        is_image = plan.rows != NO_ROW
        images = workers.pictures.slots[made.slot, : len(plan.rows)].copy()
        images[~is_image] = 255
        weights = is_image.astype(np.float32)
        for place, failure in broken:
            weights[place] = 0.0
            if failure.image not in self.failures:
                self.failures[failure.image] = failure
                if self._on_failure is not None:
                    self._on_failure(failure)
        rows = np.where(is_image, plan.rows, 0)
        targets = self._images.targets(rows)
        targets[weights == 0.0] = 0
        of_targets = self._images.weights(rows, self._unknown)
        return Batch(images, targets, weights, plan.rows, plan.epoch, plan.place, of_targets)


def _sizes(options: LoadingOptions) -> Iterator[int]:
    """Images of the joined batches of a process, without end."""
    share = options.share or options.batch_size
    parts = -(-share // options.batch_size)
    least, larger = divmod(share, parts)
    while True:
        yield from (least + (part < larger) for part in range(parts))


class _Plan(NamedTuple):
    """A batch that is to be made: where it begins, its rows with the epoch of each, and the position after it."""

    epoch: int
    place: int
    rows: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    next: tuple[int, int]


class _UnderWay(NamedTuple):
    """A batch that is being made."""

    plan: _Plan
    slot: int
    parts: list[Future[list[Broken]]]


def _layout(
    images: Images,
    spec: PreprocessSpec,
    options: LoadingOptions,
    augmentation: AugmentationOptions | None,
) -> Layout:
    is_kept = augmentation is None or augmentation.begins_fitted
    most = options.cache_mb * 2**20 // (prod(spec.size) * 3 + 1) if is_kept else 0
    slots = options.prefetch if options.process_count else 1
    return Layout(spec.size, options.batch_size, slots, min(len(images), most))
