"""Texts about images: what models that write, answer and judge are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import Card
from annotary.errors import UsageError
from annotary.models import Model
from annotary.models._generation import Decoding as Decoding
from annotary.models._generation import Matched as Matched
from annotary.models._generation import Written as Written

Batch = npt.NDArray[np.generic]
"""Images, prepared as the model's card says."""


class Captioner(Protocol):
    """A model that describes images."""

    card: Card
    streams: int
    batch_size: int

    def check_prompt(self, prompt: str, decoding: Decoding) -> None:
        """Check, before the first image, that a prompt can be continued so.

        Raises:
            UsageError: It leaves no room, or the model takes none, or cannot write so long texts.
        """

    def write_captions(
        self, batch: Batch, prompts: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        """Captions of every image, best first, each text once. Thread-safe.

        Args:
            batch: b images.
            prompts: b beginnings, which are continued and left out of the texts; they may be of different lengths.
            decoding: How.

        Raises:
            UsageError: A prompt leaves no room, or the model takes none.
        """


class Answerer(Protocol):
    """A model that answers questions about images."""

    card: Card
    streams: int
    batch_size: int

    def is_read_whole(self, question: str) -> bool:
        """Whether a question is short enough to be read to its end."""

    def write_answers(
        self, batch: Batch, questions: Sequence[Sequence[str]], decoding: Decoding
    ) -> list[list[Written]]:
        """The answer to each question of each image, in the order of the questions. Thread-safe.

        Args:
            batch: b images.
            questions: The questions of each of the b images, which may be of different numbers.
            decoding: How.
        """

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
        """


class Matcher(Protocol):
    """A model that judges whether texts belong to images."""

    card: Card
    streams: int
    batch_size: int

    def is_read_whole(self, text: str) -> bool:
        """Whether a text is short enough to be read to its end."""

    def match_texts(self, batch: Batch, texts: Sequence[Sequence[str]]) -> list[list[Matched]]:
        """For each image how well each of its texts fits, in the order of the texts. Thread-safe.

        Args:
            batch: b images.
            texts: The texts of each of the b images, which may be of different numbers.
        """


def captioner(model: Model) -> Captioner:
    """A model as a captioner.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "write_captions"):
        raise UsageError(
            f"{model.card.id} writes no captions; blip-image-captioning-base does, and -large does it better (annotary"
            " pull blip-image-captioning-base, then --model NAME, or --caption-model NAME in annotary annotate)"
        )
    return cast(Captioner, model)


def answerer(model: Model) -> Answerer:
    """A model as one that answers.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "write_answers"):
        raise UsageError(
            f"{model.card.id} answers no questions; blip-vqa-base does (annotary pull blip-vqa-base, then --model NAME,"
            " or --ask-model NAME in annotary annotate)"
        )
    return cast(Answerer, model)


def matcher(model: Model) -> Matcher:
    """A model as one that judges texts.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "match_texts"):
        raise UsageError(
            f"{model.card.id} does not judge texts; blip-itm-base-coco does (annotary pull blip-itm-base-coco)"
        )
    return cast(Matcher, model)
