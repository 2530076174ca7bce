"""BLIP: captions, answers, and whether texts fit, with the checkpoints that Salesforce publishes on Hugging Face.

Paper: Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
Generation" (2022). Original code: salesforce/BLIP (BSD-3-Clause), whose licence the weights have, too. The modules that
hold the weights are those of the library transformers (Apache-2.0).

What differs from transformers (5.24): texts that are read together with an image begin with [ENC], as in training, and
not with [CLS] (huggingface/transformers#25629); nothing looks at what fills up a question, because nothing is filled
up; what the decoder looks at of an image is computed once and not once a beam; an image is encoded once for all that is
asked of it; texts have scores; a prompt is taken off in tokens and not in characters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, Similarity
from annotary.errors import MissingExtra, ModelError, UsageError
from annotary.models._blip_tokens import (
    MOST_TOKENS,
    VOCABULARY_FILE,
    BertTokens,
    is_longer,
    read_caption,
    read_question,
)
from annotary.models._checkpoint_files import (
    CONFIG_FILE,
    SETTINGS_FILES,
    TOKENIZER_FILE,
    read_json,
    weight_files,
)
from annotary.models._checkpoint_preprocess import (
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    check_size,
    read_preprocess,
)
from annotary.models._decoding import Found, write
from annotary.models._generation import Decoding, Matched, Written
from annotary.models._texts import Texts
from annotary.runtime import Choice, RuntimeOptions, decide, offers

if TYPE_CHECKING:
    from annotary.models._blip_decoder import Memory, TextLayers, Writer
    from annotary.models._blip_judging import Judge
    from annotary.models._blip_tower import Encoded, Tower

Batch = npt.NDArray[np.generic]

READ_FIRST = (CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
"""What tells whether a repository is of this family, before anything large is fetched."""

MODEL_TYPES = ("blip",)
"""What `config.json` calls checkpoints of this family."""

LOOKED_FOR = (
    f"{CONFIG_FILE} of a BLIP, {PREPROCESSOR_FILE} and {TOKENIZER_FILE} or {VOCABULARY_FILE} with model.safetensors or"
    " pytorch_model.bin"
)

_ABILITIES = {
    "BlipForConditionalGeneration": "writes captions",
    "BlipForQuestionAnswering": "answers questions",
    "BlipForImageTextRetrieval": "judges whether texts fit",
}
"""What a checkpoint does, by the first of the `architectures` in its `config.json`."""

_IMAGES_ON_PROCESSOR = 8
"""Images whose texts are written side by side: enough that a step of the decoder, which takes as long as its weights
take to be read, serves many; few enough for the memory, as each image has 42 MB of keys and values in float32."""

_ROWS = 64
"""Questions that are read or answered side by side."""

_TOKENS_AT_ONCE = 4096
"""Tokens of texts that are read together: enough for the cores, little memory."""

_One = TypeVar("_One")


class _Blip:
    """What all three kinds have.

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
    """

    def __init__(self, card: Card, tower: Tower, tokens: BertTokens) -> None:
        self.card = card
        self._tower = tower
        self._tokens = tokens
        choice = tower.session.choice
        # The networks for texts keep what they are at, and run one batch at a time wherever that is.
        self.streams = 1
        self.batch_size = max(choice.batch_size, _IMAGES_ON_PROCESSOR)

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._tower.session.choice

    @property
    def encoded(self) -> int:
        """How many images went through the image tower so far."""
        return self._tower.encoded

    def _read(self, first: int, text: str) -> list[int]:
        """A text that is read: what begins it, as much as there is room for, and its end."""
        return [first, *self._tokens.numbers(text)[: MOST_TOKENS - 2], self._tokens.end]


class BlipCaptioner(_Blip):
    """A model that describes images.

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
    """

    def __init__(self, card: Card, tower: Tower, tokens: BertTokens, writer: Writer) -> None:
        super().__init__(card, tower, tokens)
        self._writer = writer

    def check_prompt(self, prompt: str, decoding: Decoding) -> None:
        """Check that a prompt leaves room for a caption.

        Raises:
            UsageError: It does not.
        """
        _check_length(self.card, decoding, self._writer.layers)
        length = len(self._beginning(prompt))
        if length >= decoding.max_length:
            told = f"with its start takes {length} tokens, and max_length is {decoding.max_length}"
            raise UsageError(f"the prompt {_shortened(prompt)} {told}: allow more, or say less")

    def write_captions(
        self, batch: Batch, prompts: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        """Captions of every image, best first, each text once. Thread-safe.

        Args:
            batch: b images.
            prompts: b beginnings, which are continued and left out of the texts; they may be of different lengths.
            decoding: How.

        Raises:
            UsageError: A prompt leaves no room.
        """
        for prompt in dict.fromkeys(prompts):
            self.check_prompt(prompt, decoding)
        beginnings = [self._beginning(prompt) for prompt in prompts]
        found: list[list[Written]] = [[] for _ in prompts]
        with self._tower.computing():
            encoded = self._tower.encode(batch)
            for places in _of_one_length(beginnings, self.batch_size):
                memories = self._writer.layers.memories([encoded[i].states for i in places])
                texts = _written(
                    self._writer,
                    memories,
                    [beginnings[i] for i in places],
                    decoding,
                    self._tokens.end,
                    [encoded[i].digest for i in places],
                )
                for place, some in zip(places, texts, strict=True):
                    found[place] = _told(some, self._tokens)
        return found

    def _beginning(self, prompt: str) -> list[int]:
        return [self._tokens.start, *self._tokens.numbers(prompt)]


class BlipAnswerer(_Blip):
    """A model that answers questions about images.

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
    """

    def __init__(
        self, card: Card, tower: Tower, tokens: BertTokens, reader: TextLayers, writer: Writer
    ) -> None:
        super().__init__(card, tower, tokens)
        self._reader = reader
        self._writer = writer

    def is_read_whole(self, question: str) -> bool:
        """Whether a question is short enough to be read to its end."""
        return len(self._tokens.numbers(read_question(question))) <= MOST_TOKENS - 2

    def write_answers(
        self, batch: Batch, questions: Sequence[Sequence[str]], decoding: Decoding
    ) -> list[list[Written]]:
        """The answer to each question of each image, in the order of the questions. Thread-safe.

        Args:
            batch: b images.
            questions: The questions of each of the b images, which may be of different numbers.
            decoding: How.
        """
        _check_length(self.card, decoding, self._writer.layers)
        answers: list[Written] = []
        with self._tower.computing():
            for memories, seeds in self._asked(batch, questions):
                beginnings = [[self._tokens.start]] * len(memories)
                texts = _written(
                    self._writer, memories, beginnings, decoding, self._tokens.end, seeds
                )
                for some in texts:
                    told = _told(some, self._tokens)
                    answers.append(told[0] if told else Written("", float(np.exp(some[0].score))))
        return _grouped(answers, questions)

    def rank_answers(
        self,
        batch: Batch,
        questions: Sequence[Sequence[str]],
        answers: Sequence[str],
        shortlist: int,
    ) -> list[list[list[Written]]]:
        """For each question of each image the likeliest of some answers, best first. Thread-safe.

        Args:
            batch: b images.
            questions: The questions of each of the b images.
            answers: What may be answered.
            shortlist: How many of them are looked at to their end: those whose first token is the likeliest.

        Returns:
            At most `shortlist` answers for each question; the score is the probability of the whole answer, 0..1.

        Raises:
            UsageError: There is no answer, or one is empty or too long.
        """
        rows = self._answer_rows(answers)
        first = np.array([row[1] for row in rows], np.int64)
        found: list[list[Written]] = []
        with self._tower.computing():
            for memories, _ in self._asked(batch, questions):
                starts = np.full((len(memories), 1), self._tokens.start, np.int64)
                logits = self._writer.steps(memories).begin(starts)[:, first]
                for memory, likely in zip(memories, logits, strict=True):
                    places = np.argsort(-likely, kind="stable")[:shortlist]
                    found.append(self._ranked(memory, [int(i) for i in places], rows, answers))
        return _grouped(found, questions)

    def _ranked(
        self,
        memory: Memory,
        places: Sequence[int],
        rows: Sequence[Sequence[int]],
        answers: Sequence[str],
    ) -> list[Written]:
        """Some answers with the probabilities of the whole of them, best first."""
        scores = np.zeros(len(places))
        for some in _of_one_length([rows[place] for place in places], _ROWS):
            tokens = np.array([rows[places[i]] for i in some], np.int64)
            scores[some] = self._writer.log_probabilities(tokens, memory)
        order = np.argsort(-scores, kind="stable")
        probabilities = np.exp(np.minimum(scores, 0.0))
        return [Written(answers[places[i]], float(probabilities[i])) for i in order]

    def _answer_rows(self, answers: Sequence[str]) -> list[list[int]]:
        """Answers in tokens, with what begins and ends them.

        Raises:
            UsageError: One is empty or too long.
        """
        if not answers:
            raise UsageError("say at least one answer to choose from")
        rows = []
        for answer in answers:
            numbers = self._tokens.numbers(answer)
            if not numbers or len(numbers) > MOST_TOKENS - 2:
                why = "is empty" if not numbers else f"is longer than {MOST_TOKENS - 2} tokens"
                raise UsageError(f"the answer {_shortened(answer)} {why}")
            rows.append([self._tokens.start, *numbers, self._tokens.end])
        return rows

    def _asked(
        self, batch: Batch, questions: Sequence[Sequence[str]]
    ) -> Iterator[tuple[list[Memory], list[bytes]]]:
        """What the decoder looks at for each question of each image, some at a time, and bytes to draw by."""
        encoded = self._tower.encode(batch)
        for some in _some_images(questions, _ROWS):
            asked = [(i, text) for i in some for text in questions[i]]
            rows = [self._read(self._tokens.together, read_question(text)) for _, text in asked]
            beside = self._reader.memories([encoded[i].states for i in some])
            of_image = dict(zip(some, beside, strict=True))
            states: list[Any] = [None] * len(rows)
            for places in _of_one_length(rows, _ROWS):
                read = self._reader.read(
                    self._reader.tensor([rows[i] for i in places]),
                    [of_image[asked[i][0]] for i in places],
                )
                for place, one in zip(places, read, strict=True):
                    states[place] = one
            seeds = [encoded[i].digest + text.encode() for i, text in asked]
            yield self._writer.layers.memories(states), seeds


class BlipMatcher(_Blip):
    """A model that judges whether texts belong to images, together (ITM) and each by itself (ITC).

    Attributes:
        card: What it is.
        streams: How many batches of images it works on at once.
        batch_size: Images in a batch, at its best.
    """

    def __init__(self, card: Card, tower: Tower, tokens: BertTokens, judge: Judge) -> None:
        super().__init__(card, tower, tokens)
        self._judge = judge

    @property
    def similarity(self) -> Similarity:
        """How a cosine becomes a score: nobody knows.

        Raises:
            UsageError: Always; the temperature of training is not in the checkpoints.
        """
        raise UsageError(
            f"{self.card.id} does not say how likely a cosine is, so it cannot classify; `annotary match` judges texts"
        )

    def is_read_whole(self, text: str) -> bool:
        """Whether a text is short enough to be read to its end."""
        numbers = self._tokens.numbers(read_caption(text))
        return not is_longer(text) and len(numbers) <= MOST_TOKENS - 2

    def match_texts(self, batch: Batch, texts: Sequence[Sequence[str]]) -> list[list[Matched]]:
        """For each image how well each of its texts fits, in the order of the texts. Thread-safe.

        Args:
            batch: b images.
            texts: The texts of each of the b images, which may be of different numbers.
        """
        every = [read_caption(text) for some in texts for text in some]
        with self._tower.computing():
            encoded = self._tower.encode(batch)
            logits = self._logits(encoded, texts, every)
            images = self._judge.image_vectors([one.states for one in encoded])
            vectors = self._text_vectors(every)
        owners = [place for place, some in enumerate(texts) for _ in some]
        cosines = np.clip((images[owners] * vectors).sum(axis=1), -1.0, 1.0)
        # The probability of the second of two classes: 1 / (1 + exp(no - yes)).
        scores = 0.5 * (1.0 + np.tanh(0.5 * (logits[:, 1] - logits[:, 0]).astype(np.float64)))
        found = [
            Matched(float(score), float(cosine), float(logit))
            for score, cosine, logit in zip(scores, cosines, logits[:, 1], strict=True)
        ]
        return _grouped(found, texts)

    def embed_images(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Unit vectors float32[b, d] for a batch prepared as the card says. Thread-safe."""
        with self._tower.computing():
            return self._judge.image_vectors([one.states for one in self._tower.encode(batch)])

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of any number of texts, in their order. Thread-safe."""
        if isinstance(texts, str):
            raise UsageError("texts must be several texts, but got one; put it in a list")
        with self._tower.computing():
            vectors = self._text_vectors([read_caption(text) for text in texts])
        is_cut = [not self.is_read_whole(text) for text in texts]
        return Texts(vectors, np.array(is_cut, np.bool_))

    def _logits(
        self, encoded: Sequence[Encoded], texts: Sequence[Sequence[str]], every: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """float32[n, 2] of all pairs, in their order."""
        rows = [self._read(self._tokens.together, text) for text in every]
        found = np.zeros((len(rows), 2), np.float32)
        starts = np.cumsum([0, *(len(some) for some in texts)])
        for images in _some_images(texts, _ROWS):
            memories = self._judge.layers.memories([encoded[i].states for i in images])
            of_row = {
                row: memory
                for i, memory in zip(images, memories, strict=True)
                for row in range(starts[i], starts[i + 1])
            }
            own = list(of_row)
            for places in _of_one_length([rows[row] for row in own], 0):
                some = [own[place] for place in places]
                found[some] = self._judge.logits([rows[i] for i in some], [of_row[i] for i in some])
        return found

    def _text_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32[n, d]; a text that comes several times is read once."""
        each = list(dict.fromkeys(texts))
        rows = [self._read(self._tokens.alone, text) for text in each]
        vectors = np.zeros((len(each), self._judge.width), np.float32)
        for places in _of_one_length(rows, 0):
            vectors[places] = self._judge.text_vectors([rows[i] for i in places])
        where = {text: place for place, text in enumerate(each)}
        return vectors[[where[text] for text in texts]]


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files that a run with these options needs; None without settings, a tokenizer or weights for torch."""
    settings = [name for name in (PREPROCESSOR_FILE, PROCESSOR_FILE) if name in names][:1]
    tokenizer = [name for name in (TOKENIZER_FILE, VOCABULARY_FILE) if name in names][:1]
    weights = weight_files(names)
    if CONFIG_FILE not in names or not settings or not tokenizer or not weights:
        return None
    if options.runtime == "onnxruntime":
        return None
    beside = [name for name in SETTINGS_FILES if name in names]
    return (CONFIG_FILE, *settings, *tokenizer, *beside, *weights)


def describe(directory: Path) -> Card:
    """A card for a directory that has none, from the checkpoint's own settings.

    Raises:
        ModelError: They are damaged, or those of another kind of model.
    """
    kind, config = _read_config(directory)
    preprocess = read_preprocess(directory, MODEL_TYPES[0])
    check_size(directory, config, preprocess)
    return Card(
        name=directory.name or MODEL_TYPES[0],
        version="unversioned",
        family="blip",
        licence="unknown",
        description=f"A BLIP checkpoint: {_ABILITIES[kind]}.",
        preprocess=preprocess,
    )


def check_libraries(name: str) -> None:
    """Check that there is what runs a model of this name.

    Raises:
        MissingExtra: There is no torch, or no transformers.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra(name, "torch")


def load(
    card: Card, directory: Path, options: RuntimeOptions
) -> BlipCaptioner | BlipAnswerer | BlipMatcher:
    """The captioner, answerer or matcher of a directory or a repository.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
        MissingExtra: There is no torch.
    """
    here = tuple(entry.name for entry in os.scandir(directory) if entry.is_file())
    if files(here, RuntimeOptions()) is None:
        raise ModelError(f"{card.id}: {directory} is no BLIP: it needs {LOOKED_FOR}")
    kind, config = _read_config(directory)
    # The checkpoint's own settings say it best; a card of this package only tells what they are.
    card = replace(card, preprocess=read_preprocess(directory, MODEL_TYPES[0]))
    check_size(directory, config, card.preprocess)
    check_libraries(card.name)
    decision = decide(options, offers(None, has_torch=True), name=card.name)
    from annotary.models._blip_decoder import TextLayers, Writer
    from annotary.models._blip_judging import Judge
    from annotary.models._blip_tower import Tower
    from annotary.models._transformers_loading import load_network

    network = load_network(directory, kind)
    tokens = BertTokens(directory, network.config.text_config)
    in_torch = replace(options, runtime="torch", device=decision.device)
    tower = Tower(network.vision_model, in_torch, card.preprocess.size)
    where = tower.session.choice.device, tower.session.numbers
    if kind == "BlipForConditionalGeneration":
        return BlipCaptioner(card, tower, tokens, Writer(network.text_decoder, *where, card.id))
    if kind == "BlipForQuestionAnswering":
        reader = TextLayers(network.text_encoder, *where)
        writer = Writer(network.text_decoder, *where, card.id)
        return BlipAnswerer(card, tower, tokens, reader, writer)
    return BlipMatcher(card, tower, tokens, Judge(network, *where, card.id))


def _written(
    writer: Writer,
    memories: Sequence[Memory],
    beginnings: Sequence[Sequence[int]],
    decoding: Decoding,
    end: int,
    seeds: Sequence[bytes],
) -> list[list[Found]]:
    """Texts with beginnings of one length."""
    starts = np.array(beginnings, np.int64)
    try:
        return write(writer.steps(memories), starts, decoding, end, seeds)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _told(found: Sequence[Found], tokens: BertTokens) -> list[Written]:
    """Texts in words, each once; what has no words is none."""
    told: dict[str, Written] = {}
    for one in found:
        text = tokens.text(one.tokens)
        if text and text not in told:
            told[text] = Written(text, float(np.exp(min(one.score, 0.0))))
    return list(told.values())


def _of_one_length(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Places of rows of the same length, in their order: at most so many, or of so many tokens that fit (0)."""
    by_length: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(place)
    for length, places in by_length.items():
        size = most or max(1, _TOKENS_AT_ONCE // length)
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _some_images(texts: Sequence[Sequence[str]], most: int) -> Iterator[list[int]]:
    """Places of images that have texts: as many at a time as have about so many texts, and no more than are a batch."""
    some: list[int] = []
    count = 0
    for place, own in enumerate(texts):
        if not own:
            continue
        if some and (count + len(own) > most or len(some) == _IMAGES_ON_PROCESSOR):
            yield some
            some, count = [], 0
        some.append(place)
        count += len(own)
    if some:
        yield some


def _grouped(found: Sequence[_One], texts: Sequence[Sequence[str]]) -> list[list[_One]]:
    """What was found for all texts, by image."""
    rest = iter(found)
    return [[next(rest) for _ in own] for own in texts]


def _check_length(card: Card, decoding: Decoding, layers: TextLayers) -> None:
    """Check that the network has so many places for tokens.

    Raises:
        UsageError: It has not.
    """
    if decoding.max_length > layers.places:
        raise UsageError(
            f"max_length must be at most {layers.places} with {card.id}, but got {decoding.max_length}"
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """Which class of transformers a checkpoint is of, and all of `config.json`.

    Raises:
        ModelError: It cannot be read, or is that of another kind of model.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    if config.get("model_type") not in MODEL_TYPES:
        raise ModelError(f"{path} is of a model of the type {config.get('model_type')!r}, no BLIP")
    named = config.get("architectures")
    kind = named[0] if isinstance(named, list) and named else None
    if not isinstance(kind, str) or kind not in _ABILITIES:
        known = ", ".join(_ABILITIES)
        raise ModelError(
            f"{path} says architectures = {named!r}, which is not supported, only {known}"
        )
    return kind, config
