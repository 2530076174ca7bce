"""The vectors of images, from a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.curation._dedup_vectors import VectorWriter
from annotary.curation._row_images import RowImages, image_column
from annotary.curation.looks import LooksStep
from annotary.curation.steps import Tally
from annotary.curation.tables import Part, Rows
from annotary.models import find, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Failure, Item
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.encoding import ImageEncoder, image_encoder


class Encoder(NamedTuple):
    """A model that embeds images.

    Attributes:
        model: It.
        fingerprint: A text that changes with its files.
    """

    model: ImageEncoder
    fingerprint: str


@lru_cache(maxsize=1)
def encoder(name: str, options: RuntimeOptions) -> Encoder:
    """A model by name, loaded once in a process.

    Raises:
        UsageError: There is none, or it does not embed images.
    """
    found = find(name, options)
    return Encoder(image_encoder(load_model(found, options)), found.fingerprint())


@dataclass(slots=True)
class EmbedStep:
    """The step that embeds the images of tables. An image that cannot be had has no vector.

    The model takes all cores itself, so parts are best done one after the other.

    Attributes:
        model: A name of a model.
        looks: Which column holds the images, and how they are read and decoded.
        runtime: How the network runs.
        name: Of the step.
    """

    model: str
    looks: LooksStep
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    name: str = "dedup embedding"

    def settings(self) -> dict[str, Any]:
        """What vectors depend on."""
        told = self.looks.settings()
        return {
            "model": encoder(self.model, self.runtime).fingerprint,
            "image_column": told["image_column"],
            "images": told["images"],
            "decode": asdict(self.looks.decode),
        }

    def run(self, part: Part, target: Path) -> Tally:
        """Write the vectors of a part, each with the number of its row.

        Raises:
            BrokenPart: It cannot be read.
            UsageError: It has no column of images.
        """
        source = self.looks.source
        column = image_column(part, Rows(part).schema, source.image_column)
        folder = self.looks.pictures.images
        rows, tally = Rows(part, [column]), Tally()
        task = _Vectors(encoder(self.model, self.runtime).model)
        with (
            RowImages(part, None if folder is None else str(folder), source) as images,
            Reader(source) as reader,
            VectorWriter(part.file, column, target) as writer,
        ):
            results = annotate(
                _items(images, rows), [task], reader, self.looks.decode, PipelineOptions()
            )
            for row, result in enumerate(results):
                tally.rows_out += 1
                if "vector" in result.beside:
                    writer.write(np.array([row]), np.array([result.beside["vector"]], np.float32))
        tally.rows_in = tally.rows_out
        tally.skip(rows.skipped)
        return tally


class _Vectors(AsksOneModel[ImageEncoder]):
    """The task of embedding for arithmetic: vectors stay arrays, beside the record."""

    part = ""

    def annotate(
        self,
        pictures: Sequence[Picture],
        *batches: npt.NDArray[np.generic],
    ) -> list[Mapping[str, Any]]:
        (batch,) = batches
        return [{"vector": vector} for vector in self._model.embed_images(batch)]


def _items(images: RowImages, rows: Rows) -> Iterator[Item | Failure]:
    number = 0
    for batch in rows.batches():
        for cell in batch.column(0):
            yield images.of(number, cell)
            number += 1
