"""The records that flow through annotary: where an image is, and what was said of it.

All are frozen and validated when made, and `Annotation` and `Failure` survive a round trip through JSON: the same
line is what a `.jsonl` file, `--json`, the HTTP API and the catalogue hold.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One image that waits to be annotated: a name and exactly one place to read it from.

    Attributes:
        image: The name that results carry: the path as it was given, the URL, or a name made up for data in memory.
        path: A file on this machine.
        url: An http or https address.
        data: The encoded bytes (JPEG, PNG, ...).
        pixels: uint8[H, W, 3], RGB, upright.
        relative: Where the image lies below the folder that was asked for ("2024/a.jpg"), for outputs that mirror the
            folder; the file's own name when it was asked for by itself; empty when it is no file.
    """

    image: str
    path: Path | None = None
    url: str | None = None
    data: bytes | None = field(default=None, repr=False)
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    relative: str = ""

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("an item needs a name")
        places = (self.path, self.url, self.data, self.pixels)
        if sum(place is not None for place in places) != 1:
            raise ValueError(f"item {self.image!r} needs exactly one of path, url, data or pixels")
        if self.pixels is not None and (
            self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3
        ):
            shape, dtype = self.pixels.shape, self.pixels.dtype
            raise ValueError(f"pixels must be uint8 [H, W, 3], but got {dtype} {list(shape)}")

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], relative: str = "") -> Self:
        """An item that is named by its path, as written.

        Args:
            path: The file.
            relative: Its path below the folder that was asked for, when it was found in one.
        """
        written = os.fspath(path)
        return cls(image=written, path=Path(path), relative=relative or os.path.basename(written))


@dataclass(frozen=True, slots=True)
class Tag:
    """A word that is true of the image, independently of other words.

    Attributes:
        name: The tag, as in the model's vocabulary.
        score: Probability, 0..1.
        category: Which kind of tag it is ("general", "animal", ...); empty when the vocabulary has none.
    """

    name: str
    score: float
    category: str = ""

    def __post_init__(self) -> None:
        _check_text("tag name", self.name)
        _check_probability("tag score", self.score)

    def to_json(self) -> Json:
        """The tag as a JSON object; an empty category is left out."""
        value: Json = {"name": self.name, "score": self.score}
        if self.category:
            value["category"] = self.category
        return value


@dataclass(frozen=True, slots=True)
class Label:
    """One of the labels that the user offered, with its probability (zero-shot).

    Attributes:
        name: The label, as the user wrote it.
        score: Probability, 0..1.
    """

    name: str
    score: float

    def __post_init__(self) -> None:
        _check_text("label name", self.name)
        _check_probability("label score", self.score)

    def to_json(self) -> Json:
        """The label as a JSON object."""
        return {"name": self.name, "score": self.score}


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about the image.

    Attributes:
        text: The sentence.
        score: How sure the model that wrote it is of its words, 0..1: the geometric mean of their probabilities;
            absent when it gives none.
        match: How probably it belongs to the image, 0..1, by a model that was asked to judge it; absent without one.
    """

    text: str
    score: float | None = None
    match: float | None = None

    def __post_init__(self) -> None:
        _check_optional_probability("caption score", self.score)
        _check_optional_probability("caption match", self.match)

    def to_json(self) -> Json:
        """The caption as a JSON object; what is absent is left out."""
        return _without_none({"text": self.text, "score": self.score, "match": self.match})


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a question about the image.

    Attributes:
        question: The question, as the user wrote it.
        text: The answer.
        score: What the model makes of it, 0..1; absent when it gives none.
    """

    question: str
    text: str
    score: float | None = None

    def __post_init__(self) -> None:
        _check_text("question", self.question)
        _check_optional_probability("answer score", self.score)

    def to_json(self) -> Json:
        """The answer as a JSON object; an absent score is left out."""
        return _without_none({"question": self.question, "text": self.text, "score": self.score})


@dataclass(frozen=True, slots=True)
class Match:
    """Whether a text that the user offered belongs to the image.

    Attributes:
        text: The text, as the user wrote it.
        score: Probability that it does, 0..1.
        cosine: Of the image's vector and the text's, -1..1; absent where the model has none.
    """

    text: str
    score: float
    cosine: float | None = None

    def __post_init__(self) -> None:
        _check_text("text", self.text)
        _check_probability("match score", self.score)
        if self.cosine is not None and not -1.0 <= self.cosine <= 1.0:
            raise ValueError(f"cosine must be in -1..1, but got {self.cosine!r}")

    def to_json(self) -> Json:
        """The match as a JSON object; an absent cosine is left out."""
        return _without_none({"text": self.text, "score": self.score, "cosine": self.cosine})


@dataclass(frozen=True, slots=True)
class Box:
    """A thing and where it is.

    Attributes:
        label: What it is.
        score: Probability, 0..1.
        xyxy: Left, top, right and bottom edge in pixels of the upright image; left <= right and top <= bottom.
    """

    label: str
    score: float
    xyxy: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        _check_text("box label", self.label)
        _check_probability("box score", self.score)
        if len(self.xyxy) != 4 or not all(math.isfinite(edge) for edge in self.xyxy):
            raise ValueError(f"xyxy must be four finite numbers, but got {self.xyxy!r}")
        left, top, right, bottom = self.xyxy
        if left > right or top > bottom:
            raise ValueError(f"xyxy must be (left, top, right, bottom), but got {self.xyxy!r}")

    def to_json(self) -> Json:
        """The box as a JSON object."""
        return {"label": self.label, "score": self.score, "xyxy": list(self.xyxy)}


@dataclass(frozen=True, slots=True)
class Embedding:
    """The image as a point on the unit sphere.

    Attributes:
        vector: Coordinates; the length of the vector is 1 within 1e-3.
    """

    vector: tuple[float, ...]

    def __post_init__(self) -> None:
        length = math.sqrt(math.fsum(value * value for value in self.vector))
        if not abs(length - 1.0) <= 1e-3:
            raise ValueError(f"an embedding must have length 1, but got {length:.6g}")

    def to_json(self) -> list[float]:
        """The coordinates."""
        return list(self.vector)


Action: TypeAlias = Literal["allow", "review", "block"]
"""What a policy makes of an image, from the mildest to the strictest."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule of a policy that an image met.

    Attributes:
        name: The label or tag that was looked at.
        score: Its probability, 0..1.
        threshold: From which score on the rule holds, 0..1.
        action: What the rule asks for.
    """

    name: str
    score: float
    threshold: float
    action: Action

    def __post_init__(self) -> None:
        _check_text("the name of a reason", self.name)
        _check_probability("the score of a reason", self.score)
        _check_probability("the threshold of a reason", self.threshold)
        _check_action(self.action)

    def to_json(self) -> Json:
        """The reason as a JSON object."""
        return {
            "name": self.name,
            "score": self.score,
            "threshold": self.threshold,
            "action": self.action,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of an image, and why.

    Attributes:
        action: The strictest of what the rules ask for.
        reasons: The rules that were met, the strictest first.
    """

    action: Action
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        _check_action(self.action)
        if not isinstance(self.reasons, tuple) or not all(
            isinstance(reason, Reason) for reason in self.reasons
        ):
            raise ValueError(f"reasons must be a tuple of Reason, but got {self.reasons!r}")

    def to_json(self) -> Json:
        """The decision as a JSON object."""
        return {"action": self.action, "reasons": [reason.to_json() for reason in self.reasons]}


@dataclass(frozen=True, slots=True)
class Annotation:
    """All that was said of one image.

    A part that no model was asked for is empty and has no entry in `sources`; JSON leaves it out. A part that a model
    was asked for and found nothing in is empty and has an entry.

    Attributes:
        image: The item's name.
        width: Pixels of the upright image (after EXIF rotation).
        height: Pixels of the upright image.
        tags: In descending order of score, unless another order was asked for.
        labels: In descending order of score.
        captions: Best first.
        answers: In the order of the questions.
        matches: In the order of the texts.
        boxes: In descending order of score.
        embedding: A unit vector.
        decision: What a policy makes of it.
        sources: Which model card said which part, as `{"tags": "starter@1.1"}`.
    """

    image: str
    width: int
    height: int
    tags: tuple[Tag, ...] = ()
    labels: tuple[Label, ...] = ()
    captions: tuple[Caption, ...] = ()
    answers: tuple[Answer, ...] = ()
    matches: tuple[Match, ...] = ()
    boxes: tuple[Box, ...] = ()
    embedding: Embedding | None = None
    decision: Decision | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    ok: ClassVar[bool] = True
    """Whether the image was annotated; `Failure` has the same field, and there it is false."""

    def __post_init__(self) -> None:
        _check_text("image", self.image)
        if not all(isinstance(side, int) and side >= 1 for side in (self.width, self.height)):
            raise ValueError(
                f"size must be whole and positive, but got {self.width} x {self.height}"
            )
        for part, kind in _PARTS.items():
            entries = getattr(self, part)
            if not isinstance(entries, tuple) or not all(isinstance(e, kind) for e in entries):
                raise ValueError(f"{part} must be a tuple of {kind.__name__}, but got {entries!r}")
        for part, kind in (("embedding", Embedding), ("decision", Decision)):
            if not isinstance(getattr(self, part), kind | None):
                raise ValueError(
                    f"{part} must be one {kind.__name__}, but got {getattr(self, part)!r}"
                )

    def to_json(self) -> Json:
        """The record as a JSON object; absent parts are left out."""
        value: Json = {"image": self.image, "width": self.width, "height": self.height}
        for part in _PARTS:
            entries = getattr(self, part)
            if entries or part in self.sources:
                value[part] = [entry.to_json() for entry in entries]
        if self.embedding is not None:
            value["embedding"] = self.embedding.to_json()
        if self.decision is not None:
            value["decision"] = self.decision.to_json()
        if self.sources:
            value["sources"] = dict(self.sources)
        return value

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The record of a JSON object.

        Raises:
            ValueError: A part is missing, unknown or out of range; the message names it.
        """
        _check_keys("annotation", value, cls.__slots__)
        try:
            return cls(
                image=value["image"],
                width=value["width"],
                height=value["height"],
                tags=tuple(Tag(**entry) for entry in value.get("tags", ())),
                labels=tuple(Label(**entry) for entry in value.get("labels", ())),
                captions=tuple(Caption(**entry) for entry in value.get("captions", ())),
                answers=tuple(Answer(**entry) for entry in value.get("answers", ())),
                matches=tuple(Match(**entry) for entry in value.get("matches", ())),
                boxes=tuple(
                    Box(**{**entry, "xyxy": tuple(entry["xyxy"])})
                    for entry in value.get("boxes", ())
                ),
                embedding=Embedding(tuple(value["embedding"])) if "embedding" in value else None,
                decision=_decision(value["decision"]) if "decision" in value else None,
                sources=dict(value.get("sources", {})),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an annotation: {error}") from error


def _decision(value: Json) -> Decision:
    _check_keys("decision", value, Decision.__slots__)
    return Decision(value["action"], tuple(Reason(**reason) for reason in value.get("reasons", ())))


_PARTS = {
    "tags": Tag,
    "labels": Label,
    "captions": Caption,
    "answers": Answer,
    "matches": Match,
    "boxes": Box,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be annotated, and why.

    Attributes:
        image: The item's name.
        error: The name of the error's class, from `annotary.errors`.
        message: One line that a person understands.
    """

    image: str
    error: str
    message: str

    ok: ClassVar[bool] = False
    """Whether the image was annotated: never."""

    def __post_init__(self) -> None:
        _check_text("image", self.image)
        _check_text("error", self.error)

    @classmethod
    def of(cls, image: str, error: Exception) -> Self:
        """The failure that an exception amounts to; line breaks of its message become spaces."""
        return cls(image, type(error).__name__, " ".join(str(error).split()))

    def to_json(self) -> Json:
        """The record as a JSON object."""
        return {"image": self.image, "error": self.error, "message": self.message}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The record of a JSON object.

        Raises:
            ValueError: A part is missing or unknown; the message names it.
        """
        _check_keys("failure", value, cls.__slots__)
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"not a failure: {error}") from error


Record: TypeAlias = Annotation | Failure


def to_line(record: Record) -> str:
    """The record as one line of JSON without its line break, for any encoding that can hold Unicode.

    A file name that is not valid UTF-8 holds lone surrogates (PEP 383); they are written as JSON escapes, so that the
    line is valid UTF-8 and reading it gives the same name back.
    """
    text = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_line(line: str | bytes) -> Record:
    """The record of one line of JSON.

    Raises:
        ValueError: The line is no record; the message says why.
    """
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise ValueError("a record is not nested so deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"a record is a JSON object, but got {type(value).__name__}")
    return Failure.from_json(value) if "error" in value else Annotation.from_json(value)


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be text that is not empty, but got {value!r}")


def _check_probability(what: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{what} must be in 0..1, but got {value!r}")


def _check_action(value: object) -> None:
    if value not in get_args(Action):
        raise ValueError(f"action must be one of {', '.join(get_args(Action))}, but got {value!r}")


def _check_optional_probability(what: str, value: float | None) -> None:
    if value is not None:
        _check_probability(what, value)


def _check_keys(what: str, value: Json, known: tuple[str, ...]) -> None:
    unknown = set(value) - set(known)
    if unknown:
        raise ValueError(f"{what} has unknown parts: {', '.join(sorted(unknown))}")


def _without_none(value: Json) -> Json:
    return {key: part for key, part in value.items() if part is not None}
