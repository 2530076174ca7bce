"""A model's card: where its weights come from, how images must be prepared for them, and what its outputs mean.

A model is a directory: `card.toml`, the files that the card lists with their sha256, and for a tagger a table of tags.
The card travels with the weights, so nobody ever types a mean or guesses a padding. Models that are known by name and
are fetched when they are needed have their card in this package.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

from annotary.errors import ModelError

CARD_FILE = "card.toml"
TAGS_FILE = "tags.csv"

Fit = Literal["squash", "pad", "crop"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "gaussian"]
ChannelOrder = Literal["rgb", "bgr"]
Layout = Literal["nhwc", "nchw"]
NumberType = Literal["uint8", "float32"]
CropCorner = Literal["round", "floor"]
PadPlace = Literal["middle", "corner"]
Alpha = Literal["white", "drop", "key"]

Preset = Literal["balanced", "precise", "broad"]

PRESETS: tuple[str, ...] = get_args(Preset)
"""The names of the threshold sets that a tagger may carry: best F1, few wrong tags, few missed tags."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an upright RGB image becomes the network's input. It is part of the weights.

    Attributes:
        size: Height and width of the input in pixels; for `patches`, of one patch.
        fit: What happens to images of another shape: `squash` ignores the aspect ratio, `pad` fits the whole image in
            and fills the rest, `crop` resizes the shorter side and takes the middle, `patches` keeps the aspect ratio
            and gives as many whole patches as fit into `patches`.
        resample: The filter. All but `nearest` are antialiased when shrinking. `gaussian` blurs before it takes what
            lies between pixels, as scikit-image does, and is for `pad` with the picture in the corner.
        pad_colour: RGB 0..255 of the rest, for `pad`.
        pad_place: For `pad`: whether the picture lies in the middle of the rest or in its upper left corner.
        crop_share: For `crop`: the share of the resized shorter side that the middle takes, 0..1 (ImageNet: 0.875).
        crop_corner: For `crop`: where half a pixel goes. `round` is torchvision's rule (half to even), `floor` that of
            transformers' image processors.
        patches: For `patches`: the most of them that an image becomes, 1 or more; else 0.
        alpha: What becomes of transparency: `white` shows the picture on white, `drop` shows the colours that are
            hidden under it, as Pillow's `convert("RGB")` does; `key` is like `drop`, but one colour that stands for
            transparent (GIF, some PNG) becomes white, which transformers' pipelines come to.
        channel_order: Order of the colours that the network expects.
        layout: Order of the axes that the network expects.
        dtype: `uint8` passes 0..255 through, for networks that normalise by themselves; `float32` normalises here.
        scale: Pixel values are divided by this first; then `mean` and `std` are on the scale that results. It is there
            because the order of operations decides the last bit of the result.
        mean: Subtracted per channel of the network's order, on the scale 0..255 (or `scale` less).
        std: Divided by per channel, on the same scale.
    """

    size: tuple[int, int]
    fit: Fit | Literal["patches"] = "squash"
    resample: Resample = "bicubic"
    pad_colour: tuple[int, int, int] = (255, 255, 255)
    crop_share: float = 1.0
    crop_corner: CropCorner = "round"
    patches: int = 0
    alpha: Alpha = "white"
    channel_order: ChannelOrder = "rgb"
    layout: Layout = "nchw"
    dtype: NumberType = "float32"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    # What came later is not in the text that fingerprints of weights are made of, unless it is said.
    pad_place: PadPlace = field(default="middle", repr=False)

    def __post_init__(self) -> None:
        _check_choice("fit", self.fit, (*get_args(Fit), "patches"))
        _check_choice("crop_corner", self.crop_corner, get_args(CropCorner))
        _check_choice("alpha", self.alpha, get_args(Alpha))
        _check_choice("resample", self.resample, get_args(Resample))
        _check_choice("pad_place", self.pad_place, get_args(PadPlace))
        _check_choice("channel_order", self.channel_order, get_args(ChannelOrder))
        _check_choice("layout", self.layout, get_args(Layout))
        _check_choice("dtype", self.dtype, get_args(NumberType))
        if len(self.size) != 2 or not all(_is_whole(side) and side > 0 for side in self.size):
            raise ValueError(f"size must be (height, width) in pixels, but got {self.size!r}")
        if not _is_number(self.crop_share) or not 0.0 < self.crop_share <= 1.0:
            raise ValueError(f"crop_share must be in 0..1, but got {self.crop_share!r}")
        numbers = all(_is_number(value) for value in (*self.mean, *self.std))
        if not numbers or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0.0:
            raise ValueError(f"mean and std must have 3 values, std > 0: {self.mean}, {self.std}")
        if not _is_number(self.scale) or self.scale <= 0.0:
            raise ValueError(f"scale must be a number above 0, but got {self.scale!r}")
        if (
            not _is_whole(self.patches)
            or self.patches < 0
            or bool(self.patches) != self.is_in_patches
        ):
            raise ValueError(
                f'patches must be 1 or more for fit = "patches" and 0 otherwise: {self.patches!r}'
            )
        if self.is_in_patches and (self.dtype != "float32" or self.layout != "nchw"):
            raise ValueError('fit = "patches" needs dtype = "float32" and layout = "nchw"')
        if self.resample == "gaussian" and (self.fit, self.pad_place) != ("pad", "corner"):
            raise ValueError('resample = "gaussian" needs fit = "pad" and pad_place = "corner"')
        whole = all(_is_whole(value) and 0 <= value <= 255 for value in self.pad_colour)
        if not whole or len(self.pad_colour) != 3:
            raise ValueError(f"pad_colour must be RGB 0..255, but got {self.pad_colour!r}")

    @property
    def is_in_patches(self) -> bool:
        """Whether the network takes a row of patches and where each of them is, and not a rectangle."""
        return self.fit == "patches"

    @property
    def later(self) -> dict[str, Any]:
        """Of the fields that are not in the text of a specification, those that say something else than usual."""
        hidden = [entry for entry in fields(self) if not entry.repr]
        return {
            entry.name: value
            for entry in hidden
            if (value := getattr(self, entry.name)) != entry.default
        }

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
class Similarity:
    """How the cosine of an image and a text becomes a score, in weights that embed both. It is part of the weights.

    Attributes:
        kind: `softmax` compares the texts of one image with each other (CLIP, MetaCLIP); `sigmoid` says of each text by
            itself how probably it fits (SigLIP).
        scale: The cosine is multiplied by this: the exponential of what checkpoints call `logit_scale`.
        bias: Added after that (`logit_bias`); 0 for softmax, where it would change nothing.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 100.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, ("softmax", "sigmoid"))
        if not _is_number(self.scale) or self.scale <= 0.0:
            raise ValueError(f"scale must be a number above 0, but got {self.scale!r}")
        if not _is_number(self.bias):
            raise ValueError(f"bias must be a number, but got {self.bias!r}")


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
        source: Where the weights come from: a repository (`hf:owner/name`), a registry package, a recipe.
        revision: Commit, branch or version of the source.
        paper: Title or address of the paper.
        files: File name to sha256 (hex) for every file of the model. Of a model that is fetched it may be empty: then
            what the first fetch brings is taken for right from there on.
        sizes: File name to bytes, for lists; of files that are fetched.
        thresholds: Preset name to thresholds 0..1 by category, for weights without thresholds of their own; `*` is
            every category that is not named.
        activation: What turns the network's output into probabilities: `sigmoid`, or `none` if the network does it.
        similarity: How image and text are compared, for weights that embed both and do not say it themselves.
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
    sizes: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    activation: Literal["none", "sigmoid"] = "none"
    similarity: Similarity | None = None

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, ("none", "sigmoid"))
        for what in ("name", "version", "family", "licence"):
            value = getattr(self, what)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{what} must be text, but got {value!r}")
        for what in ("description", "source", "revision", "paper"):
            if not isinstance(getattr(self, what), str):
                raise ValueError(f"{what} must be text, but got {getattr(self, what)!r}")
        if not isinstance(self.files, Mapping) or not isinstance(self.sizes, Mapping):
            raise ValueError("files must be a table of names and sha256, sizes of names and bytes")
        for name, digest in self.files.items():
            check_file_name(name)
            if not isinstance(digest, str) or not re.fullmatch(r"([0-9a-f]{64})?", digest):
                raise ValueError(f"the sha256 of {name} must be 64 digits 0..9a..f: {digest!r}")
        if not all(_is_whole(size) and size >= 0 for size in self.sizes.values()):
            raise ValueError("sizes must be bytes, 0 or more")
        _check_thresholds(self.thresholds)

    @property
    def id(self) -> str:
        """Name and version, as annotations cite the card: `starter@1.1`."""
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

    def with_thresholds(self, presets: Mapping[str, Mapping[str, float]]) -> Vocabulary:
        """The vocabulary with thresholds by category, where it has none of its own.

        Args:
            presets: As `Card.thresholds`.

        Raises:
            ValueError: A category has no threshold.
        """
        if self.thresholds or not presets:
            return self
        known: dict[str, tuple[float, ...]] = {}
        for preset, table in presets.items():
            bare = (
                {name for name in self.categories if name not in table} if "*" not in table else ()
            )
            if bare:
                raise ValueError(f"{preset} has no threshold for {', '.join(sorted(bare))}")
            known[preset] = tuple(
                float(table[name] if name in table else table["*"]) for name in self.categories
            )
        return Vocabulary(self.names, self.categories, known)


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
        if "similarity" in table:
            _check_known("similarity", table["similarity"], Similarity)
            table["similarity"] = Similarity(**table["similarity"])
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
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ModelError(f"cannot read the tags of {path}: {error}") from error


def check_files(card: Card, directory: Path, remedy: str = "") -> None:
    """Compare the files of a model directory with the sha256 on its card.

    Args:
        card: Tells the files. Those without a sha256 must be there.
        directory: Where they are.
        remedy: What to do about a file that is damaged, for the message.

    Raises:
        ModelError: A file is missing or differs; the message names it.
    """
    for name, expected in card.files.items():
        path = directory / name
        if not path.is_file():
            raise ModelError(f"{card.id}: {path} is missing{remedy}")
        if expected and (found := digest_of(path)) != expected:
            told = f"sha256 {found}, expected {expected}"
            raise ModelError(f"{card.id}: {path} is damaged: {told}{remedy}")


def fingerprint(directory: Path, names: Collection[str] = (), *, extra: str = "") -> str:
    """Twelve hexadecimal digits that change with any file of a model: the card, what it lists, and the usual ones.

    Args:
        directory: Of the model.
        names: Its files, where it has no card that lists them.
        extra: What else the results depend on, such as a card that is elsewhere.

    Raises:
        ModelError: A file cannot be read.
    """
    digest = hashlib.sha256(extra.encode())
    if names:
        chosen = {CARD_FILE, *names}
    else:
        chosen = {CARD_FILE, TAGS_FILE, "model.onnx", *read_card(directory).files}
    for name in sorted(name for name in chosen if (directory / name).is_file()):
        digest.update(name.encode() + bytes.fromhex(digest_of(directory / name)))
    return digest.hexdigest()[:12]


def digest_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits. A file that did not change is read once.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        state = path.stat()
        return _digest(os.fspath(path), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=256)
def _digest(path: str, _size: int, _modified: int, _inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file_name(name: str, *, folders: int = 1) -> None:
    """Check that a name is that of a file in a model's directory, or in a folder of it, on every system.

    Args:
        name: With `/` between a folder and a file.
        folders: How many folders it may go down.

    Raises:
        ValueError: It leads elsewhere, or no file can have it.
    """
    parts = name.split("/") if isinstance(name, str) else []
    plain = [
        re.fullmatch(r"[\w][\w.+@ -]*", part) is not None and not part.endswith((".", " "))
        for part in parts
    ]
    if not plain or not all(plain) or len(parts) > folders + 1 or len(name) > 200:
        raise ValueError(f"{name!r} cannot be the name of a model's file")


def _check_thresholds(presets: Mapping[str, Mapping[str, float]]) -> None:
    for preset, table in presets.items():
        _check_choice("a table of thresholds", preset, PRESETS)
        if not isinstance(table, Mapping) or not table:
            raise ValueError(f"thresholds.{preset} must be a table of categories and numbers")
        for category, value in table.items():
            if not _is_number(value) or not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"the threshold of {category!r} in {preset} must be in 0..1: {value!r}"
                )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, but got {value!r}")


def _check_known(what: str, table: Mapping[str, Any], record: type) -> None:
    known = {entry.name for entry in fields(record)}
    unknown = set(table) - known
    if unknown:
        raise ValueError(f"{what} has unknown keys: {', '.join(sorted(unknown))}")


def card_text(card: Card) -> str:
    """A card as the text of a `card.toml`, which `read_card` reads as the same card."""
    plain = ("name", "version", "family", "licence", "description", "source", "revision", "paper")
    lines = [f"{key} = {_toml(getattr(card, key))}" for key in plain if getattr(card, key)]
    lines.append(f"activation = {_toml(card.activation)}")
    for preset, table in card.thresholds.items():
        lines += ["", f"[thresholds.{preset}]"]
        lines += [f"{_toml(category)} = {_toml(value)}" for category, value in table.items()]
    lines += ["", "[preprocess]"]
    for entry in fields(PreprocessSpec):
        lines.append(f"{entry.name} = {_toml(getattr(card.preprocess, entry.name))}")
    if card.similarity is not None:
        lines += ["", "[similarity]"]
        for entry in fields(Similarity):
            lines.append(f"{entry.name} = {_toml(getattr(card.similarity, entry.name))}")
    for name, listed in (("sizes", card.sizes), ("files", card.files)):
        if listed:
            lines += ["", f"[{name}]", *(f"{_toml(k)} = {_toml(v)}" for k, v in listed.items())]
    return "\n".join(lines) + "\n"


def vocabulary_text(vocabulary: Vocabulary) -> str:
    """A vocabulary as the text of a `tags.csv`, which `read_vocabulary` reads as the same vocabulary."""
    text = io.StringIO()
    # The writer quotes a carriage return only where it ends lines, but the reader ends a line there.
    has_return = any("\r" in part for part in (*vocabulary.names, *vocabulary.categories))
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    )
    writer.writerow(("name", "category", *vocabulary.thresholds))
    writer.writerows(
        zip(vocabulary.names, vocabulary.categories, *vocabulary.thresholds.values(), strict=True)
    )
    return text.getvalue()


def _toml(value: Any) -> str:
    """A value in TOML, whose texts, whole numbers and lists are those of JSON but for the character DEL."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
