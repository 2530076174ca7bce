"""What is asked of the images of CapFilt: a captioner writes, and a filter says how well texts fit.

Three kinds of models can filter, and their scores are three things:

* `itm`: the probability that image and text belong together, by a network that sees both (BLIP). The paper's filter.
* `sigmoid`: the probability by weights that judge each text by itself (SigLIP): sigmoid(scale * cosine + bias).
* `cosine`: of the vectors of image and text, -1..1, of weights whose texts compete (CLIP, MetaCLIP, the starter). They
  say nothing of a single text, so that there is no threshold that fits all of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, PreprocessSpec, digest_of
from annotary.errors import UsageError
from annotary.models import Model, find, load_model
from annotary.runtime import RuntimeOptions
from annotary.tasks import Picture
from annotary.tasks.captioning import rounded
from annotary.tasks.comparison import cosine_of
from annotary.tasks.encoding import DualEncoder, dual_encoder
from annotary.tasks.writing import Captioner, Decoding, Matcher, captioner, matcher

Batch = npt.NDArray[np.generic]
ScoreKind: TypeAlias = Literal["itm", "sigmoid", "cosine"]

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".pt", ".pth")
"""Endings of files that hold the numbers of networks."""


class Score(NamedTuple):
    """How well a text fits an image.

    Attributes:
        score: What decides, as the filter's `kind` says.
        cosine: Of the vectors of both, -1..1; None where the model has none.
        is_cut: Whether the text is longer than the model reads.
    """

    score: float
    cosine: float | None
    is_cut: bool


class Filter(Protocol):
    """A model that says how well texts fit images."""

    card: Card
    streams: int
    batch_size: int
    kind: ScoreKind

    def scores(self, batch: Batch, texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each of b images how well each of its texts fits. Thread-safe."""


class Matching:
    """A filter that sees image and text together.

    Args:
        model: Judges.
    """

    kind: ScoreKind = "itm"

    def __init__(self, model: Matcher) -> None:
        self._model = model
        self.card, self.streams, self.batch_size = model.card, model.streams, model.batch_size

    def scores(self, batch: Batch, texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each of b images how well each of its texts fits, by the probability of a match."""
        if not any(texts):
            return [[] for _ in texts]
        found = self._model.match_texts(batch, texts)
        return [
            [
                Score(rounded(one.score), _six(one.cosine), not self._model.is_read_whole(text))
                for text, one in zip(own, some, strict=True)
            ]
            for own, some in zip(texts, found, strict=True)
        ]


class Comparing:
    """A filter that embeds image and text, each by itself.

    Args:
        model: Embeds them.
    """

    def __init__(self, model: DualEncoder) -> None:
        self._model = model
        self.card, self.streams, self.batch_size = model.card, model.streams, model.batch_size
        self._similarity = model.similarity
        is_sigmoid = self._similarity.kind == "sigmoid"
        self.kind: ScoreKind = "sigmoid" if is_sigmoid else "cosine"

    def scores(self, batch: Batch, texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each of b images how well each of its texts fits, by the cosine."""
        every = list(dict.fromkeys(text for some in texts for text in some))
        if not every:
            return [[] for _ in texts]
        images, embedded = self._model.embed_images(batch), self._model.embed_texts(every)
        place = {text: number for number, text in enumerate(every)}
        found = []
        for image, some in zip(images, texts, strict=True):
            own = []
            for text in some:
                cosine = cosine_of(image, embedded.vectors[place[text]])
                is_cut = bool(embedded.is_truncated[place[text]])
                own.append(Score(self._score(cosine), _six(cosine), is_cut))
            found.append(own)
        return found

    def _score(self, cosine: float) -> float:
        if self.kind == "cosine":
            return _six(cosine) or 0.0
        logit = self._similarity.scale * cosine + self._similarity.bias
        return rounded(0.5 * (1.0 + math.tanh(0.5 * logit)))


def _six(number: float | None) -> float | None:
    """A number in six digits: more is noise of float32."""
    return None if number is None else float(f"{number:.6g}")


class Written(NamedTuple):
    """A synthetic caption.

    Attributes:
        text: Without the prompt.
        certainty: How sure the captioner is of its words, 0..1.
        score: Of the whole sentence; None without a filter.
    """

    text: str
    certainty: float
    score: Score | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of an image.

    Attributes:
        scores: Web text to how well it fits; empty without a filter.
        caption: The synthetic caption; None without a captioner.
    """

    scores: Mapping[str, Score]
    caption: Written | None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal."""
        return {
            "scores": {text: list(score) for text, score in self.scores.items()},
            "caption": None if self.caption is None else list(self.caption),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Judged:
        """What `to_json` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            caption = None
            if value["caption"] is not None:
                text, certainty, score = value["caption"]
                caption = Written(
                    str(text), float(certainty), None if score is None else Score(*score)
                )
            return cls({text: Score(*one) for text, one in value["scores"].items()}, caption)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of an image: {error}") from error


class Asked:
    """The texts of the images that are under way, for the threads of networks."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def put(self, image: str, texts: Sequence[str]) -> None:
        """An image sets out, with its texts."""
        with self._lock:
            self._texts[image] = tuple(texts)

    def get(self, image: str) -> tuple[str, ...]:
        """The texts of an image that is under way."""
        with self._lock:
            return self._texts[image]

    def drop(self, image: str) -> None:
        """An image has arrived."""
        with self._lock:
            self._texts.pop(image, None)


class CapFilt:
    """The task of writing one caption for each image, and of saying how well it and the web texts fit.

    Args:
        writer: Writes; None writes nothing.
        decoding: How.
        prompt: What every caption begins with; it is left out of the captions.
        filter_: Says how well texts fit; None leaves them without a score.
        asked: Has the web texts of the images.

    Raises:
        UsageError: The prompt leaves no room.
    """

    part = ""

    def __init__(
        self,
        writer: Captioner | None,
        decoding: Decoding,
        prompt: str,
        filter_: Filter | None,
        asked: Asked,
    ) -> None:
        self._writer = writer
        self._decoding = decoding
        self._prompt = prompt
        self._filter = filter_
        self._asked = asked
        self._models: list[Captioner | Filter] = [one for one in (writer, filter_) if one]
        if writer is not None:
            writer.check_prompt(prompt, decoding)

    @property
    def source(self) -> str:
        """The ids of the cards of what writes and what filters."""
        return "+".join(model.card.id for model in self._models)

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How images are prepared for what writes and for what filters."""
        return tuple(model.card.preprocess for model in self._models)

    @property
    def streams(self) -> int:
        """How many batches are worked on at once."""
        return min(model.streams for model in self._models)

    @property
    def batch_size(self) -> int:
        """How many images are taken at once: as many as the smaller of both networks likes."""
        return min(model.batch_size for model in self._models)

    def annotate(self, pictures: Sequence[Picture], *batches: Batch) -> list[Mapping[str, Any]]:
        """`judged` of every image, beside its record."""
        web = [self._asked.get(picture.item.image) for picture in pictures]
        written = self._written(batches[0], len(pictures))
        if self._filter is None:
            return [{"judged": Judged({}, one and Written(*one, None))} for one in written]
        whole = [one and self._whole(one[0]) for one in written]
        texts = [[*own, *([one] if one else [])] for own, one in zip(web, whole, strict=True)]
        found = self._filter.scores(batches[-1], texts)
        answers: list[Mapping[str, Any]] = []
        for own, one, some in zip(web, written, found, strict=True):
            scores = dict(zip(own, some, strict=False))
            caption = one and Written(*one, some[-1] if len(some) > len(own) else None)
            answers.append({"judged": Judged(scores, caption)})
        return answers

    def settings(self) -> dict[str, Any]:
        """What the captions and scores depend on beside the models."""
        told: dict[str, Any] = {"score": self._filter and self._filter.kind}
        if self._writer is not None:
            told |= {"prompt": self._prompt, "decoding": asdict(self._decoding)}
        return told

    def _written(self, batch: Batch, count: int) -> list[tuple[str, float] | None]:
        """Text and certainty of the caption of each image; None without a captioner."""
        if self._writer is None:
            return [None] * count
        prompts = [self._prompt] * count
        found = self._writer.write_captions(batch, prompts, self._decoding)
        # A model that could write nothing wrote an empty caption, which is told as one.
        return [(some[0].text, rounded(some[0].score)) if some else ("", 0.0) for some in found]

    def _whole(self, text: str) -> str:
        """The sentence that is judged: with the prompt, without which it may say nothing; nothing of nothing."""
        return f"{self._prompt.strip()} {text}".strip() if text.strip() else ""


class Loaded(NamedTuple):
    """A model that is ready.

    Attributes:
        model: It.
        weights: A text that changes with its files, and with arithmetic that rounds differently.
        files: The sha256 of the files that hold its numbers.
    """

    model: Model
    weights: str
    files: frozenset[str]


def loaded(model: str | Model | None, options: RuntimeOptions) -> Loaded | None:
    """A model by name, or as it is; None for none."""
    if model is None:
        return None
    if not isinstance(model, str):
        return Loaded(model, model.card.id, frozenset())
    found = find(model, options)
    ready, files = load_model(found, options), found.fingerprint()
    is_rounded = ready.choice.precision in ("bf16", "fp16")
    numbers = {name for name in found.card.files if Path(name).suffix in _WEIGHTS}
    digests = (digest_of(found.directory / name) for name in sorted(numbers))
    weights = f"{files}-{ready.choice.precision}" if is_rounded else files
    return Loaded(ready, weights, frozenset(digests))


def is_same_model(one: Loaded, other: Loaded) -> bool:
    """Whether two models are one: the same object, or the same numbers in their files, whatever these are called."""
    if one.model is other.model or one.weights == other.weights:
        return True
    return bool(one.files & other.files)


def writer_of(found: Loaded | None) -> Captioner | None:
    """A model as a captioner.

    Raises:
        UsageError: It writes no captions.
    """
    if found is None:
        return None
    if not hasattr(found.model, "write_captions"):
        raise UsageError(
            f"{found.model.card.id} writes no captions; blip-image-captioning-base does (annotary pull"
            " blip-image-captioning-base, then --captioner blip-image-captioning-base)"
        )
    return captioner(found.model)


def filter_of(found: Loaded | None) -> Filter | None:
    """A model as a filter.

    Raises:
        UsageError: It says nothing of images and texts.
    """
    if found is None:
        return None
    model = found.model
    if hasattr(model, "match_texts"):
        return Matching(matcher(model))
    if hasattr(model, "embed_images") and hasattr(model, "embed_texts"):
        return Comparing(dual_encoder(model))
    raise UsageError(
        f"{model.card.id} does not say how well texts fit images; blip-itm-base-coco does, and so do models that embed"
        " both, such as starter"
    )
