"""Photos to calibrate with and to compare on: a fair sample of what is given, prepared as the model's card says."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from annotary import images, preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import ImageError, UsageError
from annotary.export._options import FEWEST
from annotary.images import DecodeOptions
from annotary.records import Failure, Item
from annotary.sources import Reader, SourceOptions, open_sources

_SHARE_COMPARED = 3
"""One photo of so many is held apart, and compared on."""

_SEED = 0


@dataclass(frozen=True, slots=True)
class _Split:
    calibrated: list[Item]
    compared: list[Item]


class Photos:
    """A sample of the photos in some places, in two parts. Use it as a context manager.

    Only names are kept, so that memory does not grow with the photos; they are read again whenever they are needed.

    Args:
        places: Files, folders, lists and whatever else is a source.
        spec: How they are prepared.
        samples: How many calibrate; half as many more are compared on.

    Raises:
        UsageError: There are too few that can be read.
    """

    def __init__(self, places: Sequence[str], spec: PreprocessSpec, samples: int) -> None:
        options = SourceOptions()
        self._spec = spec
        self._reader = Reader(options)
        wanted = samples + -(-samples // (_SHARE_COMPARED - 1))
        try:
            chosen = _sample(open_sources(list(places), options), wanted)
            readable = [item for item in chosen if self._pixels(item) is not None]
            if len(readable) < FEWEST:
                raise UsageError(
                    f"calibration needs at least {FEWEST} photos that can be read, but there are {len(readable)}"
                )
        except BaseException:
            self._reader.close()
            raise
        # Too few are shared out in the same way.
        count = min(samples, len(readable) - len(readable) // _SHARE_COMPARED)
        self._split = _Split(readable[:count], readable[count:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    @property
    def calibrated(self) -> int:
        """How many calibrate."""
        return len(self._split.calibrated)

    def calibrating(self) -> Iterator[npt.NDArray[Any]]:
        """Those that calibrate, as batches of one."""
        return self._batches(self._split.calibrated)

    def comparing(self) -> Iterator[npt.NDArray[Any]]:
        """Those that are held apart, as batches of one."""
        return self._batches(self._split.compared)

    def _batches(self, items: Iterable[Item]) -> Iterator[npt.NDArray[Any]]:
        for item in items:
            pixels = self._pixels(item)
            if pixels is not None:
                yield preprocess.to_batch([pixels], self._spec)

    def _pixels(self, item: Item) -> npt.NDArray[np.uint8] | None:
        """The fitted picture; None if it cannot be read."""
        needed = preprocess.needed_by_all(self._spec)
        try:
            if item.pixels is not None:
                return preprocess.fit(item.pixels, self._spec)
            data = self._reader.read(item)
            decoded = images.decode(data, at_least=needed, options=DecodeOptions())
            return preprocess.fit(decoded.pixels, self._spec, (decoded.width, decoded.height))
        except ImageError:
            return None


def _sample(items: Iterable[Item | Failure], count: int) -> list[Item]:
    """So many of the items, each with the same chance, and the same ones every time (algorithm R of Vitter, 1985)."""
    chosen: list[Item] = []
    generator = random.Random(_SEED)
    seen = 0
    for item in items:
        if isinstance(item, Failure):
            continue
        seen += 1
        if len(chosen) < count:
            chosen.append(item)
        elif (place := generator.randrange(seen)) < count:
            chosen[place] = item
    generator.shuffle(chosen)
    return chosen


def drawn(spec: PreprocessSpec, count: int) -> Iterator[npt.NDArray[Any]]:
    """Pictures that are made up, the same every time, as batches of one: coloured gradients with grain.

    They stand in for photos where only two forms of the same arithmetic are compared.
    """
    generator = np.random.default_rng(_SEED)
    height, width = spec.size
    rows, columns = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[:, None]
    for _ in range(count):
        middle, across, down = generator.normal(0, 60, (3, 3))
        grain = generator.normal(0, 20, (height, width, 3))
        picture = 128 + middle + across * columns + down * rows + grain
        yield preprocess.to_batch([np.clip(picture, 0, 255).astype(np.uint8)], spec)
