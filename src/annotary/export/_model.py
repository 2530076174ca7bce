"""Exporting: from a model's name to a complete model directory in another form, or to nothing at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import (
    CARD_FILE,
    TAGS_FILE,
    Card,
    Vocabulary,
    card_text,
    digest_of,
    vocabulary_text,
)
from annotary.errors import ModelError, OutputError, UsageError
from annotary.export._graphs import (
    name_outputs,
    read_model,
    without_integers,
    write_torch,
)
from annotary.export._options import ExportOptions
from annotary.export._parity import Parity, Tagger, compare
from annotary.export._photos import Photos, drawn
from annotary.export._quantise import quantise
from annotary.models import find, load_model
from annotary.models.starter import TEXT_FILE, TOKENIZER_FILE
from annotary.runtime import RuntimeOptions, precision_of

if TYPE_CHECKING:
    from torch import nn

    from annotary.models.vision_tagger import VisionTagger

MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.json"
TORCH_FILES = ("model.safetensors", "model.pt")
IN_TORCH = ("joytag", "vision_tagger")
"""Families whose networks in torch can be written down."""

DEFAULT_PRESET = "balanced"
DEFAULT_THRESHOLD = 0.4
"""For vocabularies without thresholds, as in tagging."""

DRAWN = 4
"""Pictures that are made up where no photos are given."""

FAITHFUL = 1e-4
"""Scores of a network that was only written down in another format may differ by so much (1e-6 is usual)."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        directory: Of the new model; `dir:` and its path is its name.
        card: Of the new model.
        size: Of its network, in bytes.
        size_before: Of the network or weights that it came from, in bytes.
        parity: How close it is to the one it came from.
    """

    directory: Path
    card: Card
    size: int
    size_before: int
    parity: Parity


@dataclass(frozen=True, slots=True)
class _Source:
    """A model as it is found.

    Attributes:
        name: As the user calls it.
        card: What it is.
        weights: Its ONNX file, or its weights for torch.
        is_torch: Whether they are for torch.
        precision: What it computes in, `fp32`, `fp16` or `int8`.
        tagger: It, ready to run, in its own precision.
    """

    name: str
    card: Card
    weights: Path
    is_torch: bool
    precision: str
    tagger: Tagger


def export_model(name: str, options: ExportOptions, output: Path | None = None) -> Exported:
    """Make a model directory in another form.

    Args:
        name: Of the model, as for `annotary.load`.
        options: What is made of it.
        output: The new directory; `NAME-PRECISION` in the working folder when nothing is said.

    Raises:
        UsageError: Something makes no sense, or there are too few photos; nothing was written.
        ModelError: The model cannot be read, or not be made so; nothing was written.
        OutputError: The directory exists, or cannot be written.
    """
    if options.precision == "int8" and not options.calibrate:
        raise UsageError(
            "int8 needs --calibrate PHOTOS: a folder of photos like those to be tagged"
        )
    source = _source(name)
    if options.precision == "int8" and source.precision == "int8":
        raise UsageError(f"{source.card.id} computes in int8 already")
    if options.precision == "fp32" and source.precision == "fp16":
        raise UsageError(f"{source.card.id} computes in fp16, and fp32 cannot be made of it")
    new_name = f"{source.card.name}-{options.precision}"
    target = output or Path(new_name.replace("/", "-"))
    _check_free(target)
    spec = source.card.preprocess
    given = Photos(options.calibrate, spec, options.samples) if options.calibrate else nullcontext()
    with given as photos, _beside(target) as folder:
        plain = _written(source, folder)
        thresholds = _thresholds(source.tagger.vocabulary, options.threshold)
        calibrated_on = 0
        if photos is not None and options.precision == "int8":
            if source.is_torch:
                # What goes wrong when it is written down is not to be taken for the rounding of integers.
                _describe(source, folder, new_name, "fp32")
                made = cast(Tagger, load_model(f"dir:{folder}", _exact()))
                _check_faithful(
                    source,
                    compare(source.tagger, made, drawn(spec, DRAWN), thresholds, calibrated_on=0),
                )
                del made
            quantise(plain, folder / "integers.onnx", photos.calibrating, photos.calibrated)
            os.replace(folder / "integers.onnx", plain)
            calibrated_on = photos.calibrated
        card = _describe(source, folder, new_name, options.precision)
        run = _exact() if options.precision == "fp32" else RuntimeOptions(device="cpu")
        made = cast(Tagger, load_model(f"dir:{folder}", run))
        parity = compare(
            source.tagger,
            made,
            drawn(spec, DRAWN) if photos is None else photos.comparing(),
            thresholds,
            calibrated_on=calibrated_on,
            is_made_up=photos is None,
        )
        if options.precision == "fp32" and source.precision == "fp32":
            _check_faithful(source, parity)
        (folder / PARITY_FILE).write_text(parity.to_json(), encoding="utf-8")
        sizes = plain.stat().st_size, _size(source.weights)
        del made
        _publish(folder, target)
    return Exported(target, card, *sizes, parity)


def _size(weights: Path) -> int:
    """Bytes of a network, with those of the files beside it that hold weights of it."""
    from annotary.models._onnx_graph import external_files

    beside = external_files(weights) if weights.suffix.lower() == ".onnx" else ()
    return sum((weights.parent / name).stat().st_size for name in (weights.name, *beside))


def _source(name: str) -> _Source:
    """The model that is exported, with its own precision."""
    found = find(name)
    weights, is_torch = _weights(found.directory, found.card)
    precision = "fp32" if is_torch else precision_of(weights)
    exact = _exact() if precision == "fp32" else RuntimeOptions(device="cpu")
    model = load_model(found, exact)
    if not hasattr(model, "tag_scores"):
        raise UsageError(f"{found.card.id} is no tagger; only taggers can be exported")
    return _Source(name, found.card, weights, is_torch, precision, cast(Tagger, model))


def _exact() -> RuntimeOptions:
    return RuntimeOptions(device="cpu", precision="fp32")


def _weights(directory: Path, card: Card) -> tuple[Path, bool]:
    """The file that holds a model's network, and whether it is for torch."""
    listed = [name for name in card.files if name.lower().endswith(".onnx")]
    names = [*(listed if len(listed) == 1 else ()), MODEL_FILE]
    for name in names:
        if (directory / name).is_file():
            return directory / name, False
    for name in TORCH_FILES:
        if card.family in IN_TORCH and (directory / name).is_file():
            return directory / name, True
    raise ModelError(f"{card.id} has no network that can be exported: it needs {MODEL_FILE}")


def _written(source: _Source, folder: Path) -> Path:
    """The network in fp32, or as it is, as `model.onnx` of the new directory."""
    from annotary.models._onnx_graph import head_input, read_graph

    target = folder / MODEL_FILE
    if source.is_torch:
        network, names = _in_torch(source)
        try:
            write_torch(network, names, source.card.preprocess.size, target)
        except ModelError as error:
            raise ModelError(f"{source.card.id} cannot be written as ONNX: {error}") from error
        return target
    model = read_model(source.weights)
    outputs = [value.name for value in read_graph(source.weights).outputs]
    if source.precision == "int8":
        without_integers(model)
    if "scores" not in outputs:
        try:
            features: str | None = head_input(source.weights, outputs[0])
        except (
            ModelError
        ):  # it does not end with a linear layer, so nothing is known to be the embedding
            features = None
        name_outputs(model, outputs[0], features)
    import onnx

    onnx.save(model, target)
    return target


def _in_torch(source: _Source) -> tuple[nn.Module, tuple[str, ...]]:
    """A network in torch for use, and the names of what it gives."""
    if source.card.family == "vision_tagger":
        return cast("VisionTagger", source.tagger).network, ("scores", "features")
    from annotary.models._joytag_vit import load_network

    network = load_network(source.weights.parent)
    return network, ("scores",) if network.config.head_mean_after else ("scores", "features")


def _describe(source: _Source, folder: Path, name: str, precision: str) -> Card:
    """Write the tags and the card."""
    (folder / TAGS_FILE).write_text(vocabulary_text(source.tagger.vocabulary), encoding="utf-8")
    texts: tuple[str, ...] = ()
    if source.card.family == "starter":  # which knows texts, too; their tower stays as it is
        texts = (TEXT_FILE, TOKENIZER_FILE)
        for entry in texts:
            shutil.copyfile(source.weights.parent / entry, folder / entry)
    what = f"{source.card.description} In {precision}, made by annotary export.".strip()
    card = replace(
        source.card,
        name=name,
        family="starter" if texts else "onnx_tagger",
        description=what,
        source=source.card.id,
        files={entry: digest_of(folder / entry) for entry in (MODEL_FILE, TAGS_FILE, *texts)},
        sizes={},
        similarity=source.card.similarity if texts else None,
        thresholds={},
    )
    (folder / CARD_FILE).write_text(card_text(card), encoding="utf-8")
    return card


def _thresholds(vocabulary: Vocabulary, asked: float | None) -> npt.NDArray[np.float32]:
    """One a tag, float32[t]: as asked, or the model's own."""
    if asked is None and DEFAULT_PRESET in vocabulary.thresholds:
        return np.asarray(vocabulary.thresholds[DEFAULT_PRESET], np.float32)
    return np.full(len(vocabulary), DEFAULT_THRESHOLD if asked is None else asked, np.float32)


def _check_faithful(source: _Source, parity: Parity) -> None:
    if parity.largest_difference > FAITHFUL:
        raise ModelError(
            f"{source.card.id} gives other scores in ONNX, by up to {parity.largest_difference:.2g};"
            " nothing was written"
        )


def _check_free(target: Path) -> None:
    """Refuse to touch what is there; an empty folder is fine."""
    if target.is_symlink() or (
        target.exists() and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise OutputError(f"{target} exists; choose another --output")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder next to a directory, on the same disk, which goes whatever happens."""
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".annotary-export-", dir=target.absolute().parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield Path(folder)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Give the finished folder its name; until then there is nothing of it."""
    _check_free(target)
    if target.is_dir():
        target.rmdir()
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(folder, 0o777 & ~mask)  # noqa: PTH101 - temporary folders are for their owner alone
    for entry in folder.iterdir():
        os.chmod(entry, 0o666 & ~mask)  # noqa: PTH101
    os.replace(folder, target)
