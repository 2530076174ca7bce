"""Parts of batches for a training run: from the loader's arrays to tensors, and what became of images that broke."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.records import Failure, to_line
from annotary.training._learning import Part
from annotary.training.augmentation import AugmentationOptions
from annotary.training.dataset.index import Split, TagDataset
from annotary.training.distributed import Processes
from annotary.training.loading import Batch, Loader, LoadingOptions
from annotary.training.recipe import TaggerRecipe

FAILURES = "failures.jsonl"

_TRIED = 64
"""Images after which a run ends if it could have but a few of them: its dataset was moved, or a disk is not there."""


class Feed:
    """The images of a run, as one of its processes gets them.

    Args:
        dataset: Which.
        recipe: How.
        processes: Who shares them.
        failures: The file that images which could not be had are listed in; None lists none.

    Raises:
        UsageError: No image has tags enough.
    """

    def __init__(
        self,
        dataset: TagDataset,
        recipe: TaggerRecipe,
        processes: Processes,
        failures: Path | None = None,
    ) -> None:
        self._train = with_tags(dataset.train, recipe.data.minimum_tags)
        self._validation = dataset.validation
        self._recipe = recipe
        self._processes = processes
        self._failures = failures

    @property
    def images(self) -> int:
        """How many there are to learn from."""
        return len(self._train)

    def training(
        self,
        part_size: int,
        spec: PreprocessSpec,
        epoch: int = 0,
        place: int = 0,
        share: int | None = None,
    ) -> Training:
        """Images to learn from, without end; to be closed.

        Args:
            part_size: Images of a part, at most.
            spec: How the network wants them.
            epoch: Where to go on, which is where a step begins.
            place: Images of the epoch that were seen.
            share: Images of a step, which the parts come to; each part has `part_size` when nothing is said.
        """
        loader = self._loader(self._train, spec, part_size, share, is_training=True)
        loader.start_at(epoch, min(place, self.images))
        return Training(loader, self.images, is_pinned=self._is_pinned)

    def validation(self, part_size: int, spec: PreprocessSpec) -> Measuring:
        """Images to measure on, which may be gone through any number of times; to be closed.

        Args:
            part_size: Images of a part.
            spec: How the network wants them.
        """
        if not len(self._validation):
            return Measuring(None, is_pinned=False)
        loader = self._loader(self._validation, spec, part_size, is_training=False)
        return Measuring(loader, is_pinned=self._is_pinned)

    @property
    def _is_pinned(self) -> bool:
        return self._processes.device.type == "cuda"

    def _loader(
        self,
        images: Split | Chosen,
        spec: PreprocessSpec,
        part_size: int,
        share: int | None = None,
        *,
        is_training: bool,
    ) -> Loader:
        data = self._recipe.data
        options = LoadingOptions(
            batch_size=part_size,
            workers=data.workers,
            cache_mb=data.cache_mb if is_training else 0,
            shuffle=is_training,
            drop_last=False,
            is_joined=is_training,
            share=share,
        )
        return Loader(
            images,
            spec,
            options,
            augmentation=augmentation_of(self._recipe) if is_training else None,
            seed=data.seed,
            rank=self._processes.rank,
            world=self._processes.count,
            unknown=self._recipe.loss.unknown if is_training else 0.0,
            on_failure=self._note_failure,
        )

    def _note_failure(self, failure: Failure) -> None:
        if self._failures is not None:
            with suppress(OSError), self._failures.open("a", encoding="utf-8") as file:
                file.write(to_line(failure) + "\n")


class Training:
    """Parts to learn from, one after the other.

    Args:
        loader: Of the images.
        images: How many there are.
        is_pinned: Whether a GPU takes them.

    Attributes:
        had: How many could be had, counted as often as they came.
    """

    def __init__(self, loader: Loader, images: int, *, is_pinned: bool) -> None:
        self._loader = loader
        self._batches = iter(loader)
        self._images = images
        self._is_pinned = is_pinned
        self._tried = self.had = 0

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, and how many of its images were seen: where to go on."""
        return self._loader.position

    def __iter__(self) -> Iterator[Part]:
        """Itself."""
        return self

    def __next__(self) -> Part:
        """The next part.

        Raises:
            UsageError: Most images cannot be had.
        """
        batch = next(self._batches)
        self._tried += len(batch.weights)
        self.had += int((batch.weights > 0).sum())
        is_half = self._tried >= _TRIED and 2 * self.had < self._tried
        if is_half or (self._tried >= self._images and not self.had):
            raise self.error()
        return _part(batch, is_pinned=self._is_pinned)

    def error(self) -> UsageError:
        """What is told where too many images could not be had."""
        return UsageError(
            f"{self._tried - self.had} of the first {self._tried} images cannot be had{_example(self._loader)}"
        )

    def close(self) -> None:
        """End the workers."""
        self._loader.close()


def _example(loader: Loader) -> str:
    """An image that could not be had, for messages; another process may have met them all."""
    first = next(iter(loader.failures.values()), None)
    told = "" if first is None else f", such as {first.image}: {first.message}"
    return f"{told}; has the dataset been moved?"


class Measuring:
    """Parts to measure on.

    Args:
        loader: Of the images; None where there are none.
        is_pinned: Whether a GPU takes them.
    """

    def __init__(self, loader: Loader | None, *, is_pinned: bool) -> None:
        self._loader = loader
        self._is_pinned = is_pinned

    def __iter__(self) -> Iterator[Part]:
        """All of them, from the first on."""
        if self._loader is None:
            return
        self._loader.start_at(0, 0)
        for batch in self._loader.epoch():
            yield _part(batch, is_pinned=self._is_pinned)

    def error(self) -> UsageError:
        """What is told where no image could be had."""
        assert self._loader is not None
        return UsageError(
            "nothing can be measured: none of the"
            f" {self._loader.samples_per_epoch:,} validation images can be had{_example(self._loader)}"
        )

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            self._loader.close()


class Chosen:
    """Some of the images of a part of a dataset.

    Args:
        split: The part.
        rows: int64[n], which.
    """

    def __init__(self, split: Split, rows: npt.NDArray[np.int64]) -> None:
        self._split = split
        self._rows = rows
        self.ids: Sequence[str] = _Ids(split.ids, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def targets(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Which tags images have, uint8[b, t]."""
        return self._split.targets(self._rows[np.asarray(rows, np.int64)])

    def weights(
        self, rows: Sequence[int] | npt.NDArray[np.integer], unknown: float = 0.0
    ) -> npt.NDArray[np.float32] | None:
        """How much each target counts, float32[b, t]; None where all of them count 1."""
        return self._split.weights(self._rows[np.asarray(rows, np.int64)], unknown)

    def path(self, row: int) -> Path:
        """Where the picture of an image is."""
        return self._split.path(int(self._rows[row]))


class _Ids(Sequence[str]):
    """The ids of some images, looked up when they are asked for."""

    def __init__(self, ids: Sequence[str], rows: npt.NDArray[np.int64]) -> None:
        self._ids = ids
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        return self._ids[int(self._rows[place])]


def with_tags(split: Split, least: int) -> Split | Chosen:
    """The images of a part of a dataset that have so many tags.

    Raises:
        UsageError: There is none.
    """
    counts = np.diff(split.offsets)
    rows = np.flatnonzero(counts >= least)
    if not len(rows):
        raise UsageError(
            f"none of the {len(split):,} images to learn from has {least} tags; lower data.minimum_tags"
        )
    return split if len(rows) == len(split) else Chosen(split, rows.astype(np.int64))


def augmentation_of(recipe: TaggerRecipe) -> AugmentationOptions | None:
    """How images are changed by chance; None when they are not."""
    said = recipe.augmentation
    if said.kind == "none" and not said.flip and not said.cutout:
        return None
    return AugmentationOptions(
        kind=said.kind,
        operations=said.operations,
        magnitude=said.magnitude,
        flip=said.flip,
        cutout=said.cutout,
    )


def failed_images(path: Path) -> int:
    """How many different images a list of failures names; 0 where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    names = set()
    for line in lines:
        with suppress(ValueError, KeyError):
            names.add(json.loads(line)["image"])
    return len(names)


def _part(batch: Batch, *, is_pinned: bool) -> Part:
    arrays = [batch.images, batch.targets, batch.weights]
    if batch.target_weights is not None:
        arrays.append(batch.target_weights)
    tensors = [torch.from_numpy(one) for one in arrays]
    return Part(*(one.pin_memory() for one in tensors) if is_pinned else tensors)
