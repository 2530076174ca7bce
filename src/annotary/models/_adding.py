"""How a folder with any tagger in ONNX becomes a model: it is run once, then its card and its tags are written."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from annotary.cards import (
    CARD_FILE,
    PRESETS,
    TAGS_FILE,
    Card,
    Layout,
    NumberType,
    PreprocessSpec,
    Vocabulary,
    card_text,
    check_file_name,
    digest_of,
    read_vocabulary,
    vocabulary_text,
)
from annotary.errors import ModelError, UsageError
from annotary.models._onnx_graph import NUMBER_TYPES, external_files, read_graph
from annotary.models.onnx_tagger import OnnxTagger
from annotary.models.wd import CATEGORIES
from annotary.preprocess import to_batch
from annotary.runtime import RuntimeOptions, open_onnx

GREY = 128
"""What a network is tried with: an image of this value."""


@dataclass(frozen=True, slots=True)
class Network:
    """What an ONNX file says of the images that it takes.

    Attributes:
        path: The file.
        layout: Order of the axes; None where the file leaves it open.
        size: Height and width in pixels; None where the file leaves them open.
        dtype: Number type of the input.
    """

    path: Path
    layout: Layout | None
    size: tuple[int, int] | None
    dtype: NumberType


@dataclass(frozen=True, slots=True)
class Added:
    """What was written.

    Attributes:
        card: The model's card.
        tags: How many it has.
        lowest: Score that a grey image got, 0..1.
        highest: Score that a grey image got, 0..1.
    """

    card: Card
    tags: int
    lowest: float
    highest: float


def network_of(directory: Path, name: str | None = None) -> Network:
    """What the ONNX file of a folder says.

    Args:
        directory: The folder.
        name: Of the file; the only one when nothing is said.

    Raises:
        UsageError: There is none, or there are several.
        ModelError: It is damaged, or takes no images.
    """
    if not directory.is_dir():
        raise UsageError(f"no folder {os.fspath(directory)!r}")
    if name is not None and Path(name).name != name:
        raise UsageError(f"--network takes the name of a file in {directory}: {name!r}")
    present = sorted(path.name for path in directory.iterdir() if path.suffix.lower() == ".onnx")
    if name is None and len(present) != 1:
        found = f"{len(present)}: {', '.join(present)}" if present else "none"
        raise UsageError(f"{directory} needs one ONNX file, but has {found}; --network says which")
    path = directory / (name or present[0])
    graph = read_graph(path)
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs)
        raise ModelError(f"{path} takes {names}, not images alone")
    value = graph.inputs[0]
    dtype = NUMBER_TYPES.get(value.element)
    if len(value.shape) not in (0, 4) or dtype not in ("uint8", "float32"):
        shape = list(value.shape)
        raise ModelError(
            f"{path} takes {value.name} {shape} of {dtype or 'other numbers'}, no images"
        )
    layout, size = _layout(value.shape)
    return Network(path, layout, size, "uint8" if dtype == "uint8" else "float32")


def _layout(shape: tuple[int | None, ...]) -> tuple[Layout | None, tuple[int, int] | None]:
    """Where the three colours are tells the layout; the two other axes are the size."""
    if len(shape) != 4 or (shape[1] == 3) == (shape[3] == 3):
        return None, None
    is_first = shape[1] == 3
    height, width = (shape[2], shape[3]) if is_first else (shape[1], shape[2])
    known = (height, width) if height is not None and width is not None else None
    return ("nchw" if is_first else "nhwc"), known


def read_tags(path: Path) -> Vocabulary:
    """The tags of a file, in the order of the network's outputs.

    A CSV has a column `name`, and may have `category` and the presets; where it has `tag_id`, too, it is a WD tagger's,
    and its numbers of categories become names. JSON is a list, or an object of index to name or name to index. Any
    other file is a text with one tag on each line.

    Raises:
        UsageError: It cannot be read, or holds no tags.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return _from_rows(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix.lower() == ".json":
            names = _from_json(json.loads(text))
        else:
            names = [line.strip() for line in text.split("\n") if line.strip()]
        if not names:
            raise ValueError("it has no tags")
        return Vocabulary(tuple(names), ("",) * len(names))
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UsageError(f"cannot read the tags of {path}: {error}") from error


def _from_rows(rows: csv.DictReader[str]) -> Vocabulary:
    if "name" not in (rows.fieldnames or ()):
        raise ValueError("it has no column 'name'")
    table = list(rows)
    if not table:
        raise ValueError("it has no tags")
    presets = [preset for preset in PRESETS if preset in (rows.fieldnames or ())]
    categories = [row.get("category") or "" for row in table]
    if "tag_id" in (rows.fieldnames or ()):  # of selected_tags.csv
        categories = [CATEGORIES.get(category.strip(), category) for category in categories]
    return Vocabulary(
        tuple(row["name"] or "" for row in table),
        tuple(categories),
        {preset: tuple(float(row[preset]) for row in table) for preset in presets},
    )


def _from_json(held: Any) -> list[str]:
    if isinstance(held, list):
        names: Iterable[Any] = held
    elif isinstance(held, Mapping) and all(isinstance(value, str) for value in held.values()):
        places = {int(key): value for key, value in held.items()}
        names = _in_order(places)
    elif isinstance(held, Mapping):
        names = _in_order({value: key for key, value in held.items()})
    else:
        raise ValueError("it is neither a list of tags nor an object of index and tag")
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        raise ValueError("not all of its tags are texts")
    return found


def _in_order(places: Mapping[Any, str]) -> list[str]:
    if set(places) != set(range(len(places))):
        raise ValueError(f"its indices are not 0 to {len(places) - 1}, each once")
    return [places[index] for index in range(len(places))]


def add(
    directory: Path,
    network: Network,
    vocabulary: Vocabulary,
    preprocess: PreprocessSpec,
    *,
    name: str,
    licence: str,
    activation: Literal["none", "sigmoid"],
    about: Mapping[str, str],
    threshold: float | None = None,
    can_overwrite: bool = False,
) -> Added:
    """Run a network on a grey image, and when that goes well, write the model's card and table of tags.

    Args:
        directory: Of the model.
        network: Its network, in the directory.
        vocabulary: Its tags, in the order of the network's outputs.
        preprocess: How images are prepared.
        name: What it is called.
        licence: Of its weights, an SPDX identifier.
        activation: What makes probabilities of its outputs.
        about: `version`, `description`, `source`, `revision` and `paper`, as far as they are known.
        threshold: For all tags, 0..1, where the tags have none of their own.
        can_overwrite: Replace a card and a table that are there.

    Raises:
        UsageError: A card is there already, or something makes no sense.
        ModelError: The network does not run so, or what it gives are not probabilities of these tags. Nothing was
            written.
    """
    has_table = _holds(directory, vocabulary)
    if not can_overwrite:
        _check_free(directory, has_table=has_table)
    weights = (network.path.name, *external_files(network.path))
    try:
        check_file_name(network.path.name, folders=0)
        card = Card(
            name=name,
            version=about.get("version") or "1.0",
            family="onnx_tagger",
            licence=licence,
            preprocess=preprocess,
            activation=activation,
            thresholds={} if threshold is None else {"balanced": {"*": threshold}},
            description=about.get("description", ""),
            source=about.get("source", ""),
            revision=about.get("revision", ""),
            paper=about.get("paper", ""),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    scores = _tried(card, network, vocabulary)
    if not has_table:
        _write(directory / TAGS_FILE, vocabulary_text(vocabulary))
    files = {entry: digest_of(directory / entry) for entry in (*weights, TAGS_FILE)}
    card = replace(card, files=files)
    _write(directory / CARD_FILE, card_text(card))
    return Added(card, len(vocabulary), float(scores.min()), float(scores.max()))


def _tried(card: Card, network: Network, vocabulary: Vocabulary) -> np.ndarray[Any, Any]:
    session = open_onnx(network.path, RuntimeOptions(device="cpu"), name=card.name)
    grey = np.full((*card.preprocess.size, 3), GREY, np.uint8)
    try:
        model = OnnxTagger(card, vocabulary, session)
        return model.tag_scores(to_batch([grey], card.preprocess))
    except ModelError as error:
        raise ModelError(f"{error} (tried with a grey image; nothing was written)") from error


def _holds(directory: Path, vocabulary: Vocabulary) -> bool:
    """Whether the table of tags that is there is read as these tags; then it can stay as it is written."""
    try:
        return read_vocabulary(directory) == vocabulary
    except ModelError:
        return False


def _check_free(directory: Path, *, has_table: bool) -> None:
    card, table = directory / CARD_FILE, directory / TAGS_FILE
    if card.exists():
        raise UsageError(f"{card} exists; --overwrite replaces it")
    if table.exists() and not has_table:
        raise UsageError(f"{table} exists and holds something else; --overwrite replaces it")


def _write(path: Path, text: str) -> None:
    """Write a file, all or nothing."""
    try:
        with tempfile.NamedTemporaryFile(
            "wb", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text.encode("utf-8"))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(file.name, 0o666 & ~mask)  # noqa: PTH101
        os.replace(file.name, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
