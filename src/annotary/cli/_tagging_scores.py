"""Scores of taggers for images whose tags are known: worked out now, each image decoded once, or saved before."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.cli._options import made
from annotary.cli._output import tell
from annotary.cli._tagging_truth import Tagged, Truth
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.records import Failure, Item
from annotary.tasks.asking import AsksOneModel

if TYPE_CHECKING:
    from annotary.cards import Vocabulary
    from annotary.runtime import RuntimeOptions
    from annotary.tasks import Picture
    from annotary.tasks.tagging import Tagger

Scores = npt.NDArray[np.float32]

_AT_ONCE = 256
"""Images whose scores are handed on together."""

_HEADER = 128  # bytes before the rows of saved scores


class Batch(NamedTuple):
    """Some images and their scores.

    Attributes:
        numbers: int64[b], their places among the images whose tags are known.
        tags: Of each, places in the list of tags.
        scores: float32[b, v] of each model.
    """

    numbers: npt.NDArray[np.int64]
    tags: list[Sequence[int]]
    scores: list[Scores]


class Live:
    """A tagger that is asked now.

    Args:
        told: What the user calls it.
        options: How it runs.
    """

    def __init__(self, told: str, options: RuntimeOptions) -> None:
        from annotary.cli._annotating import loaded
        from annotary.tasks.tagging import tagger

        found = loaded(told, options)
        self.model: Tagger = tagger(found.model)
        self.told = told
        self.name: str = self.model.card.name
        self.id: str = self.model.card.id
        self.weights: str = found.weights
        self.vocabulary: Vocabulary = self.model.vocabulary


class Saved:
    """Scores that `--save-scores` has kept. Only the names of the images are held in memory.

    Args:
        folder: Of them.
    """

    def __init__(self, folder: Path) -> None:
        from annotary.evaluation.image_names import ImageNames
        from annotary.pipeline.scores import IMAGES_FILE, SCORES_FILE, SavedScores

        saved = SavedScores(folder)
        self.told = str(folder)
        self.folder = folder
        self.id: str = saved.source
        self.name: str = saved.source.partition("@")[0]
        self.weights = str(saved.settings.get("weights", ""))
        self.vocabulary: Vocabulary = saved.vocabulary
        names = _image_names(folder / IMAGES_FILE)
        width = len(self.vocabulary)
        path = folder / SCORES_FILE
        rows = min(len(names), max(0, path.stat().st_size - _HEADER) // (2 * width))
        if not rows:
            raise UsageError(f"{folder} holds the scores of no image")
        self._rows = np.memmap(path, "<f2", "r", offset=_HEADER, shape=(rows, width))
        self._names = ImageNames(names[:rows])

    def find(self, image: Tagged) -> int | None:
        """The row of an image; None where there is none."""
        found = self._names.find(image.item.image)
        return self._names.find(image.original) if found is None and image.original else found

    def rows(self, places: Sequence[int]) -> Scores:
        """Scores of some images, float32[b, v]."""
        return np.asarray(self._rows[np.asarray(places, np.int64)], dtype=np.float32)


class Scoring:
    """Scores of images whose tags are known, batch by batch.

    Args:
        models: Taggers, or their scores.
        truth: The images.
        values: The values of the options.

    Attributes:
        failures: What could not be had, and why; complete when all batches have been taken.
        without_scores: Images that have no saved scores.
    """

    def __init__(
        self, models: Sequence[Live | Saved], truth: Truth, values: Mapping[str, Any]
    ) -> None:
        self._models = models
        self._truth = truth
        self._values = values
        self.failures: list[Failure] = []
        self.without_scores = 0

    def batches(self) -> Iterator[Batch]:
        """The images, in their order."""
        held: list[tuple[int, Sequence[int], list[Any]]] = []
        rows = self._asked() if any(isinstance(one, Live) for one in self._models) else self._read()
        for row in rows:
            held.append(row)
            if len(held) == _AT_ONCE:
                yield self._batch(held)
                held = []
        if held:
            yield self._batch(held)

    def _batch(self, held: Sequence[tuple[int, Sequence[int], list[Any]]]) -> Batch:
        numbers, tags, found = zip(*held, strict=True)
        scores = [
            one.rows([row[place] for row in found])
            if isinstance(one, Saved)
            else np.stack([row[place] for row in found])
            for place, one in enumerate(self._models)
        ]
        return Batch(np.array(numbers, np.int64), list(tags), scores)

    def _read(self) -> Iterator[tuple[int, Sequence[int], list[Any]]]:
        """Images that all models have saved scores of: nothing is decoded."""
        for number, image in enumerate(self._truth):
            places = self._saved_places(image)
            if places is None:
                self.without_scores += 1
            else:
                yield number, image.tags, places

    def _asked(self) -> Iterator[tuple[int, Sequence[int], list[Any]]]:
        """Images that some models are asked about; others may have saved scores of them."""
        waiting: deque[tuple[int, Sequence[int], list[Any]]] = deque()

        def items() -> Iterator[Item | Failure]:
            for number, image in enumerate(self._truth):
                places = self._saved_places(image)
                if places is None:
                    self.without_scores += 1
                    continue
                waiting.append(
                    (number, image.tags, places)
                )  # results come in the order of the items
                yield image.item

        live = [(k, one) for k, one in enumerate(self._models) if isinstance(one, Live)]
        for record, _, beside in annotated(items(), live, len(self._truth), self._values):
            number, tags, places = waiting.popleft()
            if isinstance(record, Failure):
                self.failures.append(record)
                continue
            for k, _ in live:
                places[k] = beside[_key(k)]
            yield number, tags, places

    def _saved_places(self, image: Tagged) -> list[Any] | None:
        """The row of an image in all saved scores; None where one has none."""
        places = [one.find(image) if isinstance(one, Saved) else -1 for one in self._models]
        return None if None in places else places

    def add_failures(self, failures: Sequence[Failure]) -> None:
        """Tell images that could not be had when scores were saved as what they are, and not as without scores."""
        self.failures = [*failures, *self.failures]
        self.without_scores = max(0, self.without_scores - len(failures))

    def tell(self) -> None:
        """What was left out, on standard error."""
        if self.without_scores:
            tell(f"images without saved scores, which are left out: {self.without_scores:,}")
        for failure in self.failures[:5]:
            tell(f"{failure.image}: {failure.message}")
        if self.failures:
            tell(f"images that could not be read and count nowhere: {len(self.failures):,}")


class _Scores(AsksOneModel["Tagger"]):
    """The task of scoring for arithmetic: scores stay arrays, beside the record."""

    part = ""

    def __init__(self, model: Tagger, key: str) -> None:
        super().__init__(model)
        self._key = key

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        (batch,) = batches
        return [{self._key: scores} for scores in self._model.tag_scores(batch)]


def annotated(
    items: Iterator[Item | Failure],
    live: Sequence[tuple[int, Live]],
    count: int,
    values: Mapping[str, Any],
) -> Iterator[Any]:
    """What all models say of each image, which is decoded once: results of the pipeline.

    Args:
        items: The images.
        live: The models, each with its number.
        count: How many images there are.
        values: The values of the options.
    """
    from annotary.cli._progress import progress_bar
    from annotary.pipeline import Outcome
    from annotary.pipeline.local import annotate
    from annotary.sources import Reader, SourceOptions

    outcome = Outcome()
    tasks = [_Scores(one.model, _key(k)) for k, one in live]
    options = made(DecodeOptions, values), made(PipelineOptions, values)
    with (
        Reader(SourceOptions()) as reader,
        progress_bar("tagging", lambda: count, quiet=values["quiet"]) as bar,
    ):
        for record, item, beside in (
            (one.record, one.item, one.beside) for one in annotate(items, tasks, reader, *options)
        ):
            outcome.failed += isinstance(record, Failure)
            outcome.done += not isinstance(record, Failure)
            yield record, item, beside
            bar.update(outcome)


def saved_first(
    models: Sequence[Live | Saved],
    folder_of: Callable[[Live], Path],
    truth: Truth,
    values: Mapping[str, Any],
) -> tuple[list[Live | Saved], list[Failure]]:
    """Bring folders of scores up to date, and give them in the place of the models.

    What is there already is not worked out again, and a run that was stopped goes on.

    Args:
        models: Some of which are asked.
        folder_of: Where the scores of each go.
        truth: The images.
        values: The values of the options.

    Returns:
        All scores, and images that could not be had.

    Raises:
        OutputError: A folder holds something else, or scores of other weights or settings.
    """
    from annotary.pipeline import ScoreWriter

    decode = made(DecodeOptions, values)
    # As `annotary tag --save-scores` states them, so that one goes on with what the other began.
    decoding: dict[str, Any] = {"reduce": decode.reduce, "max_pixels": decode.max_pixels}
    if decode.transparency != "auto":
        decoding["transparency"] = decode.transparency
    live = [(k, one) for k, one in enumerate(models) if isinstance(one, Live)]
    failures: list[Failure] = []
    is_whole = False
    writers: list[tuple[int, ScoreWriter]] = []

    def close(writer: ScoreWriter) -> None:
        writer.close(complete=is_whole)

    with ExitStack() as stack:
        for k, one in live:
            settings = {"model": one.id, "weights": one.weights, **decoding}
            writer = ScoreWriter(folder_of(one), one.id, one.vocabulary, settings, overwrite=False)
            stack.callback(close, writer)
            writers.append((k, writer))

        def missing() -> Iterator[Item | Failure]:
            for image in truth:
                if not all(writer.holds(image.item.image) for _, writer in writers):
                    yield image.item

        for record, item, beside in annotated(missing(), live, len(truth), values):
            if isinstance(record, Failure):
                failures.append(record)
                continue
            for k, writer in writers:
                writer.write(item, record, beside[_key(k)].astype(np.float16))
        is_whole = True
    found: list[Live | Saved] = [
        Saved(folder_of(one)) if isinstance(one, Live) else one for one in models
    ]
    return found, failures


def _image_names(path: Path) -> list[str]:
    names = []
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                names.append(str(json.loads(line)["image"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path}: no image of saved scores: {line[:60]!r}") from error
    return names


def _key(place: int) -> str:
    return f"scores-{place}"
