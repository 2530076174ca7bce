"""Answers to questions about images: free ones, or the likeliest of some that were offered."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.records import Answer, Item
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.captioning import rounded
from annotary.tasks.label_sets import shortened, split_labels
from annotary.tasks.own_texts import OwnTexts, read_rows
from annotary.tasks.writing import Answerer, Decoding

ANSWERS = Decoding(beams=3, min_length=1, max_length=10)
"""How free answers are written, as in BLIP: they are short."""

SHORTLIST = 128
"""Answers that are looked at to their end, as in BLIP (`k_test`)."""


class Question(NamedTuple):
    """What is asked.

    Attributes:
        text: The question.
        answers: What may be answered; None where the model finds its own words.
    """

    text: str
    answers: tuple[str, ...] | None = None


class Answering(AsksOneModel[Answerer]):
    """The task of answering questions.

    Args:
        answerer: Answers.
        questions: What every image is asked.
        decoding: How free answers are written.
        shortlist: How many of the answers to choose from are looked at to their end: those that begin the likeliest.
        top: How many of the answers to choose from are told of each question, the best first.
        of_image: What images are asked beside that, each its own.

    Attributes:
        truncated: Questions of which the model does not read the end.
        unasked: Images so far of which nothing was asked.

    Raises:
        UsageError: There is no question, or one is empty.
    """

    part = "answers"

    def __init__(
        self,
        answerer: Answerer,
        questions: Sequence[Question] = (),
        decoding: Decoding = ANSWERS,
        *,
        shortlist: int = SHORTLIST,
        top: int = 1,
        of_image: OwnTexts[Question] | None = None,
    ) -> None:
        super().__init__(answerer)
        if not questions and of_image is None:
            raise UsageError("say at least one question, such as 'what is this?'")
        if shortlist < 1 or top < 1:
            raise UsageError(f"shortlist and top must be at least 1, but got {shortlist} and {top}")
        every = (*questions, *(of_image.every if of_image is not None else ()))
        for question in every:
            _check(question)
        for answer in dict.fromkeys(one for question in every for one in question.answers or ()):
            if not answerer.is_read_whole(answer):
                told = shortened(answer)
                raise UsageError(f"the answer {told!r} is longer than {answerer.card.id} reads")
        self._questions = tuple(questions)
        self._decoding = decoding
        self._shortlist = shortlist
        self._top = top
        self._of_image = of_image
        self.truncated = tuple(q.text for q in every if not answerer.is_read_whole(q.text))
        self.unasked = 0
        self._counting = threading.Lock()

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `answers` of every image, in the order of the questions."""
        (batch,) = batches
        asked = [self._asked(picture.item) for picture in pictures]
        found: list[list[tuple[Answer, ...]]] = [[()] * len(own) for own in asked]
        for answers in dict.fromkeys(q.answers for own in asked for q in own):
            texts = [[q.text for q in own if q.answers == answers] for own in asked]
            if answers is None:
                written = self._model.write_answers(batch, texts, self._decoding)
                ranked = [[[one] for one in some] for some in written]
            else:
                ranked = self._model.rank_answers(batch, texts, answers, self._shortlist)
            for own, places, some in zip(asked, found, ranked, strict=True):
                mine = (i for i, question in enumerate(own) if question.answers == answers)
                for place, best in zip(mine, some, strict=True):
                    places[place] = tuple(
                        Answer(own[place].text, one.text, rounded(one.score))
                        for one in best[: self._top]
                    )
        return [{"answers": tuple(one for some in own for one in some)} for own in found]

    def settings(self) -> dict[str, Any]:
        """What the answers depend on beside the model, in one way of writing."""
        told = json.dumps(self._questions).encode()
        return {
            "questions": hashlib.sha256(told).hexdigest()[:16],
            "questions_of_image": self._of_image and self._of_image.digest,
            "decoding": asdict(self._decoding),
            "shortlist": self._shortlist,
            "top": self._top,
        }

    def _asked(self, item: Item) -> tuple[Question, ...]:
        own = self._of_image.of(item) if self._of_image is not None else ()
        asked = (*self._questions, *own)
        if not asked:
            with self._counting:
                self.unasked += 1
        return asked


def read_questions(path: Path, answers: Sequence[str] | None = None) -> OwnTexts[Question]:
    """The questions of a table with the columns image and question, and answers where they are to be chosen from.

    Answers are a list, or a text with commas between them.

    Args:
        path: .csv, .tsv, .jsonl or .parquet.
        answers: What is chosen from where a row has no answers.

    Raises:
        UsageError: The table cannot be read, or a row lacks something; the message says which.
        MissingExtra: It is Parquet, and there is no pyarrow.
    """
    found: dict[str, list[Question]] = {}
    for row in read_rows(path, ("image", "question"), ("answers",)):
        image, text, told = row
        own = split_labels(told) if isinstance(told, str) else told
        if own is not None and not isinstance(own, list | tuple):
            raise UsageError(f"{path}: the answers of {image!r} must be texts, but are {told!r}")
        question = Question(text, tuple(own or answers or ()) or None)
        _check(question)
        if question.answers is not None:
            question = Question(text, tuple(dict.fromkeys(question.answers)))
        found.setdefault(image, []).append(question)
    return OwnTexts(found, str(path.parent))


def _check(question: Question) -> None:
    """Check that there is something in a question.

    Raises:
        UsageError: There is not.
    """
    if not isinstance(question.text, str) or not question.text.strip():
        raise UsageError(f"a question is empty: {question.text!r}")
    for answer in question.answers or ():
        if not isinstance(answer, str) or not answer.strip():
            what = "is empty" if isinstance(answer, str) else "must be a text"
            raise UsageError(f"an answer to {question.text!r} {what}: {answer!r}")
    if question.answers is not None and not question.answers:
        raise UsageError(f"say at least one answer to {question.text!r}")
