"""A model's card: where its weights come from, how images must be prepared for them, and what its outputs mean.

A model is a directory: `card.toml`, the files that the card lists with their sha256, and for a tagger a table of tags.
The card travels with the weights, so nobody ever types a mean or guesses a padding.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from annotary.errors import ModelError

CARD_FILE = "card.toml"
TAGS_FILE = "tags.csv"

Fit = Literal["squash", "pad", "crop"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
ChannelOrder = Literal["rgb", "bgr"]
Layout = Literal["nhwc", "nchw"]
NumberType = Literal["uint8", "float32"]

Preset = Literal["balanced", "precise", "broad"]

PRESETS: tuple[str, ...] = get_args(Preset)
"""The names of the threshold sets that a tagger may carry: best F1, few wrong tags, few missed tags."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an upright RGB image becomes the network's input. It is part of the weights.

    Attributes:
        size: Height and width of the input in pixels.
        fit: What happens to images of another shape: `squash` ignores the aspect ratio, `pad` fits the whole image in
            and fills the rest, `crop` resizes the shorter side and takes the middle.
        resample: The filter. All but `nearest` are antialiased when shrinking.
        pad_colour: RGB 0..255 of the rest, for `pad`.
        crop_share: For `crop`: the share of the resized shorter side that the middle takes, 0..1 (ImageNet: 0.875).
        channel_order: Order of the colours that the network expects.
        layout: Order of the axes that the network expects.
        dtype: `uint8` passes 0..255 through, for networks that normalise by themselves; `float32` normalises here.
        mean: Subtracted per channel of the network's order, on the scale 0..255.
        std: Divided by per channel, on the scale 0..255.
    """

    size: tuple[int, int]
    fit: Fit = "squash"
    resample: Resample = "bicubic"
    pad_colour: tuple[int, int, int] = (255, 255, 255)
    crop_share: float = 1.0
    channel_order: ChannelOrder = "rgb"
    layout: Layout = "nchw"
    dtype: NumberType = "float32"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        _check_choice("fit", self.fit, get_args(Fit))
        _check_choice("resample", self.resample, get_args(Resample))
        _check_choice("channel_order", self.channel_order, get_args(ChannelOrder))
        _check_choice("layout", self.layout, get_args(Layout))
        _check_choice("dtype", self.dtype, get_args(NumberType))
        if len(self.size) != 2 or not all(isinstance(s, int) and s > 0 for s in self.size):
            raise ValueError(f"size must be (height, width) in pixels, but got {self.size!r}")
        if not 0.0 < self.crop_share <= 1.0:
            raise ValueError(f"crop_share must be in 0..1, but got {self.crop_share!r}")
        numbers = all(isinstance(value, int | float) for value in (*self.mean, *self.std))
        if not numbers or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0.0:
            raise ValueError(f"mean and std must have 3 values, std > 0: {self.mean}, {self.std}")
        if len(self.pad_colour) != 3 or not all(0 <= value <= 255 for value in self.pad_colour):
            raise ValueError(f"pad_colour must be RGB 0..255, but got {self.pad_colour!r}")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The specification of a card's `[preprocess]` table.

        Raises:
            ValueError: A key is unknown, missing or out of range; the message names it.
        """
        _check_known("preprocess", table, cls)
        if "size" not in table:
            raise ValueError("preprocess needs size = [height, width]")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Card:
    """What a model is and where it comes from.

    Attributes:
        name: What users call it.
        version: Of the weights.
        family: The module of `annotary.models` that knows how to load it.
        licence: SPDX identifier of the weights' licence.
        description: One sentence.
        preprocess: How images are prepared.
        source: Where the weights come from: a repository, a registry package, a recipe.
        revision: Commit or version of the source.
        paper: Title or address of the paper.
        files: File name to sha256 (hex) for every file of the model.
        activation: What turns the network's output into probabilities: `sigmoid`, or `none` if the network does it.
    """

    name: str
    version: str
    family: str
    licence: str
    preprocess: PreprocessSpec
    description: str = ""
    source: str = ""
    revision: str = ""
    paper: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    activation: Literal["none", "sigmoid"] = "none"

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, ("none", "sigmoid"))
        for what in ("name", "version", "family", "licence"):
            value = getattr(self, what)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{what} must be text, but got {value!r}")
        if not isinstance(self.files, Mapping):
            raise ValueError("files must be a table of names and sha256")

    @property
    def id(self) -> str:
        """Name and version, as annotations cite the card: `starter@1.0`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tags of a tagger, in the order of its outputs.

    Attributes:
        names: One name an output; unique.
        categories: One category an output; empty where there is none.
        thresholds: Preset name to one threshold an output, 0..1. Empty when the weights carry none.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError("the names of a vocabulary must be unique and not empty")
        for preset, values in self.thresholds.items():
            if not all(0.0 <= value <= 1.0 for value in values):
                raise ValueError(f"the thresholds of {preset} must be in 0..1")
        for what, column in {"categories": self.categories, **self.thresholds}.items():
            if len(column) != len(self.names):
                raise ValueError(f"{what} must have {len(self.names)} rows, but got {len(column)}")

    def __len__(self) -> int:
        return len(self.names)


def read_card(directory: Path) -> Card:
    """Read `card.toml` of a model directory.

    Raises:
        ModelError: It is missing or does not hold what a card must hold; the message says what.
    """
    path = directory / CARD_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no model in {directory}: it has no {CARD_FILE}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    try:
        _check_known("card", table, Card)
        preprocess = PreprocessSpec.from_table(table.pop("preprocess", {}))
        return Card(preprocess=preprocess, **table)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def read_vocabulary(directory: Path) -> Vocabulary:
    """Read `tags.csv` of a model directory: columns `name`, `category` and any of the presets.

    Raises:
        ModelError: It is missing or malformed; the message says what.
    """
    path = directory / TAGS_FILE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "name" not in rows[0]:
            raise ValueError("it has no rows, or no column 'name'")
        presets = [preset for preset in PRESETS if rows and preset in rows[0]]
        return Vocabulary(
            names=tuple(row["name"] for row in rows),
            categories=tuple(row.get("category") or "" for row in rows),
            thresholds={preset: tuple(float(row[preset]) for row in rows) for preset in presets},
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"cannot read the tags of {path}: {error}") from error


def check_files(card: Card, directory: Path) -> None:
    """Compare the files of a model directory with the sha256 on its card.

    Raises:
        ModelError: A file is missing or differs; the message names it.
    """
    for name, expected in card.files.items():
        path = directory / name
        if not path.is_file():
            raise ModelError(f"{card.id}: {path} is missing")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ModelError(f"{card.id}: {path} is damaged: sha256 {found}, expected {expected}")


def fingerprint(directory: Path) -> str:
    """Twelve hexadecimal digits that change with any file of a model: the card, what it lists, and the usual ones.

    Raises:
        ModelError: A file cannot be read.
    """
    digest = hashlib.sha256()
    names = {CARD_FILE, TAGS_FILE, "model.onnx", *read_card(directory).files}
    try:
        for name in sorted(name for name in names if (directory / name).is_file()):
            with (directory / name).open("rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ModelError(f"cannot read {directory}: {error.strerror}") from error
    return digest.hexdigest()[:12]


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, but got {value!r}")


def _check_known(what: str, table: Mapping[str, Any], record: type) -> None:
    known = {entry.name for entry in fields(record)}
    unknown = set(table) - known
    if unknown:
        raise ValueError(f"{what} has unknown keys: {', '.join(sorted(unknown))}")
