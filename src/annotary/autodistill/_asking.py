"""What both models share: how images, ontologies and models are taken, and how a folder is labelled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.autodistill._imported import CaptionOntology
from annotary.datasets import BoxTask, Building, Dataset, DatasetOptions, Labelling, LabelTask
from annotary.errors import UnreadableImage, UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput, items_of
from annotary.models import Model, find, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Annotation
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks import Task
from annotary.tasks.label_sets import shortened
from annotary.tasks.text_cache import TextCache

ImageOrArray: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""What autodistill's users hand over: a path, a URL, a Pillow image, or an array of OpenCV: uint8[H, W, 3] in BGR,
[H, W] grey, [H, W, 4] in BGRA. (Elsewhere in annotary, arrays are RGB.)"""


def loaded_model(
    model: str | Model, runtime: RuntimeOptions
) -> tuple[Model, str, TextCache | None]:
    """A model, a text that changes with its weights, and what remembers its texts."""
    if not isinstance(model, str):
        return model, model.card.id, None
    found = find(model, runtime)
    weights, loaded = found.fingerprint(), load_model(found, runtime)
    return loaded, weights, TextCache.of(weights, loaded)


def pairs_of(ontology: CaptionOntology | Mapping[str, str]) -> dict[str, str]:
    """Prompts to classes.

    Raises:
        UsageError: It is no ontology.
    """
    if not isinstance(ontology, Mapping) and not hasattr(ontology, "promptMap"):
        raise UsageError(f"an ontology is like {{'a kitten': 'cat'}}, but got {ontology!r}")
    return dict(ontology if isinstance(ontology, Mapping) else ontology.promptMap)


def warn_of_cut(truncated: Sequence[str], source: str) -> None:
    """Tell of prompts that are not read to their end."""
    if truncated:
        named = ", ".join(map(shortened, truncated[:3])) + (", ..." if len(truncated) > 3 else "")
        warnings.warn(
            f"longer than {source} reads, so the end is left out: prompts of {named}", stacklevel=4
        )


def record_of(task: Task, image: ImageOrArray) -> Annotation:
    """What a task says of an image."""
    sources = SourceOptions()
    items = items_of(rgb_of(image), sources)
    with (
        Reader(sources) as reader,
        closing(annotate(items, [task], reader, DecodeOptions(), PipelineOptions())) as results,
    ):
        return only_record([result.record for result in results])


def labelled(
    input_folder: str | os.PathLike[str],
    extension: str | None,
    output_folder: str | os.PathLike[str] | None,
    form: str,
    options: DatasetOptions,
    describe: Callable[[], LabelTask | BoxTask],
    *,
    retry_failed: bool,
) -> Path:
    """Make a dataset; the arguments are those of `label`. Where it is."""
    told = os.fspath(input_folder)
    source = told.rstrip("/\\") or told
    output = Path(output_folder if output_folder is not None else f"{source}_labeled")
    only = () if extension is None else (f"*{either_case(extension)}",)
    sources = SourceOptions(include_files=only)
    items = open_sources([source], sources)
    items = chain(list(islice(items, 1)), items)  # where there is none, nothing is made
    task, description = describe()
    with Dataset(
        *(output, form, options, description, [source]), retry_failed=retry_failed
    ) as dataset:
        with Labelling(
            *(dataset, items, task, sources, DecodeOptions(), PipelineOptions())
        ) as labelling:
            for _ in labelling:
                pass
        for _ in Building(dataset):
            pass
    return output


def checked_share(confidence: float) -> float:
    if not isinstance(confidence, Real) or not 0.0 <= float(confidence) <= 1.0:
        raise ValueError(f"confidence must be in 0..1, but got {confidence!r}")
    return float(confidence)


def either_case(extension: str) -> str:
    """A pattern for an ending: ".jpg" is ".JPG", too."""
    ending = extension if extension.startswith(".") else f".{extension}"
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)


def rgb_of(image: ImageOrArray) -> ImageInput:
    """An input with the channels of OpenCV's arrays in the order that annotary takes."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4):
        order = [2, 1, 0, 3][: image.shape[2]]
        return np.ascontiguousarray(image[..., order])
    if isinstance(image, str | os.PathLike | bytes | np.ndarray | Image.Image):
        return image
    raise UsageError(
        f"an image is a path, a URL, a Pillow image or an array, but got {type(image).__name__}"
    )


def only_record(records: Sequence[Any]) -> Annotation:
    """The record of one image.

    Raises:
        UsageError: There is another number of them.
        ImageError: It cannot be read.
    """
    if len(records) != 1:
        raise UsageError(f"this takes one image at a time, but got {len(records)}; use label")
    (record,) = records
    if not isinstance(record, Annotation):
        raise UnreadableImage(f"{record.image}: {record.message}")
    return record
